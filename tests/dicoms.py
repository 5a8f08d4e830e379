"""DICOM files made by code, with a patient in their headers who must never be seen."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit

from tests.images import encoded

PATIENT = "Mustermann^Erika"
MICROSCOPIC, CAPTURE = "1.2.840.10008.5.1.4.1.1.77.1.2", "1.2.840.10008.5.1.4.1.1.7"


def dataset(samples: NDArray[Any], *, kind: str = MICROSCOPIC, **elements: Any) -> Dataset:
    """Pixels (H, W) or (H, W, 3), unsigned or signed, native; `elements` replace or add by keyword."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = UID(kind), UID("1.2.3.4")
    made.PatientName, made.PatientID, made.PatientBirthDate = PATIENT, PATIENT, "19500101"
    made.Rows, made.Columns = samples.shape[:2]
    made.SamplesPerPixel = 3 if samples.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if samples.ndim == 3 else "MONOCHROME2"
    if samples.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = samples.dtype.itemsize * 8
    made.PixelRepresentation = int(samples.dtype.kind == "i")
    made.PixelData = samples.tobytes() + b"\0" * (samples.nbytes % 2)
    made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"
    for name, value in elements.items():
        setattr(made, name, value)
    if "HighBit" not in elements:
        made.HighBit = made.BitsStored - 1
    return made


def written(made: Dataset) -> bytes:
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(samples: NDArray[Any], **elements: Any) -> bytes:
    return written(dataset(samples, **elements))


def compressed(samples: NDArray[Any], syntax: str, **elements: Any) -> bytes:
    """By pydicom: RLE, JPEG-LS or JPEG 2000."""
    made = dataset(samples, **elements)
    made.compress(UID(syntax), generate_instance_uid=False)
    return written(made)


def with_codestream(stream: bytes, shape: tuple[int, ...], syntax: str = JPEGBaseline8Bit, **elements: Any) -> bytes:
    """Coded pixels as they are, for an image of such a shape."""
    made = dataset(np.zeros(shape, np.uint8), **elements)
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.PixelData = encapsulate([stream])
    made["PixelData"].is_undefined_length = True
    return written(made)


def with_jpeg(image: Image.Image, photometric: str = "YBR_FULL_422", **elements: Any) -> bytes:
    stream = encoded(image, "JPEG", quality=95)
    return with_codestream(stream, np.asarray(image).shape, PhotometricInterpretation=photometric, **elements)
