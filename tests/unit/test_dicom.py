"""DICOM: each coding gives the pixels it shows, what is not read is refused by name, and no patient is ever named."""

import builtins
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.formats import dicom as dicom_format
from pipeline.images.load import Limits, load_image, read_header
from tests.dicoms import CAPTURE, PATIENT, compressed, dataset, dicom, with_codestream, with_jpeg, written
from tests.images import encoded, scene
from tests.searches import search

SIZE = 48
RGB = np.asarray(scene())
GRAY = np.asarray(scene().convert("L"))
DEEP = GRAY.astype(np.uint16)
YBR = np.asarray(scene().convert("YCbCr"))
SHOWN = {"rgb": scene(), "gray": scene().convert("L"), "palette": scene().quantize(200)}


def off_by(data: bytes, shown: Image.Image) -> float:
    """Mean difference in levels."""
    wanted = load_image(encoded(shown.convert("RGB"), "PNG"), SIZE).pixels.astype(int)
    return float(np.abs(load_image(data, SIZE).pixels.astype(int) - wanted).mean())


def refusal(data: bytes, limits: Limits = Limits()) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        load_image(data, SIZE, limits)
    assert PATIENT.split("^")[0] not in caught.value.message
    assert caught.value.__cause__ is None  # a traceback of --debug would print what pydicom says
    return caught.value


def palette() -> bytes:
    image = SHOWN["palette"]
    colors = np.zeros((256, 3), np.uint16)
    found = np.asarray(image.getpalette()).reshape(-1, 3)
    colors[: len(found)] = found.astype(np.uint16) * 257
    elements: dict[str, Any] = {}
    for index, name in enumerate(("Red", "Green", "Blue")):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = colors[:, index].astype("<u2").tobytes()
    return dicom(np.asarray(image), PhotometricInterpretation="PALETTE COLOR", **elements)


def implicit() -> bytes:
    made = dataset(RGB)
    made.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    return written(made)


GOOD: dict[str, tuple[Callable[[], bytes], str, float]] = {  # bytes, what it shows, levels it may be off
    "rgb": (lambda: dicom(RGB), "rgb", 0),
    "implicit": (implicit, "rgb", 0),
    "secondary capture": (lambda: dicom(RGB, kind=CAPTURE), "rgb", 0),
    "planes": (lambda: dicom(RGB, PlanarConfiguration=1, PixelData=np.moveaxis(RGB, 2, 0).tobytes()), "rgb", 0),
    "ybr": (lambda: dicom(YBR, PhotometricInterpretation="YBR_FULL"), "rgb", 2),
    "monochrome 2": (lambda: dicom(GRAY), "gray", 0),
    "monochrome 1": (lambda: dicom(255 - GRAY, PhotometricInterpretation="MONOCHROME1"), "gray", 0),
    "palette": (palette, "palette", 1),
    "10 bits": (lambda: dicom(DEEP * 4, BitsStored=10), "gray", 1),
    "12 bits": (lambda: dicom(DEEP * 16, BitsStored=12), "gray", 1),
    "12 bits below an overlay": (lambda: dicom(DEEP * 16 + (DEEP % 2 << 14), BitsStored=12), "gray", 1),
    "16 bits": (lambda: dicom(DEEP * 257), "gray", 0),
    "signed 12 bits": (lambda: dicom((DEEP * 16).astype(np.int16) - 2048, BitsStored=12), "gray", 1),
    "signed 8 bits": (lambda: dicom((GRAY.astype(np.int16) - 128).astype(np.int8)), "gray", 0),
    "12 bits of colour": (lambda: dicom(RGB.astype(np.uint16) * 16, BitsStored=12), "rgb", 2),
    "rle": (lambda: compressed(RGB, uid.RLELossless), "rgb", 0),
    "rle of 12 bits": (lambda: compressed(DEEP * 16, uid.RLELossless, BitsStored=12), "gray", 1),
    "jpeg 2000": (lambda: compressed(RGB, uid.JPEG2000Lossless), "rgb", 0),
    "jpeg 2000 of 12 bits": (lambda: compressed(DEEP * 16, uid.JPEG2000Lossless, BitsStored=12), "gray", 1),
    "jpeg-ls": (lambda: compressed(RGB, uid.JPEGLSLossless), "rgb", 0),
    "jpeg-ls of 12 bits": (lambda: compressed(DEEP * 16, uid.JPEGLSLossless, BitsStored=12), "gray", 1),
    "baseline jpeg": (lambda: with_jpeg(scene()), "rgb", 2),
    "gray baseline jpeg": (lambda: with_jpeg(scene().convert("L"), "MONOCHROME2"), "gray", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_dicom_image_gives_the_pixels_it_shows(name: str) -> None:
    make, shown, tolerance = GOOD[name]
    data = make()
    header = read_header(data)
    assert (header.format, header.width, header.height, header.frames) == ("dicom", 160, 120, 1)
    assert off_by(data, SHOWN[shown]) <= tolerance


def bare(stream: bytes) -> bytes:
    """A JPEG without its first segment, which says what its colours are."""
    return stream[:2] + stream[4 + int.from_bytes(stream[4:6], "big") :]


def adobe(stream: bytes) -> bytes:
    return stream[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1" + stream[2:]


_YCC, _RGB = encoded(scene(), "JPEG", quality=95), encoded(scene(), "JPEG", quality=95, keep_rgb=True)
_UNCONVERTED = encoded(Image.merge("YCbCr", scene().split()), "JPEG", quality=95)  # RGB samples that pass for YCbCr


@pytest.mark.parametrize(
    ("stream", "photometrics"),
    [(_YCC, ("RGB", "YBR_FULL", "YBR_FULL_422")), (adobe(bare(_YCC)), ("RGB", "YBR_FULL", "YBR_FULL_422")),
     (_RGB, ("RGB", "YBR_FULL")), (bare(_YCC), ("YBR_FULL", "YBR_FULL_422")), (bare(_UNCONVERTED), ("RGB",))],
    ids=["JFIF", "Adobe", "Adobe RGB", "unnamed YCbCr", "unnamed RGB"],
)  # fmt: skip
def test_colours_of_a_jpeg_are_converted_once_whatever_the_header_says(
    stream: bytes, photometrics: tuple[str, ...]
) -> None:
    for photometric in photometrics:
        assert off_by(with_codestream(stream, RGB.shape, PhotometricInterpretation=photometric), scene()) < 2


def test_dark_samples_are_measured_by_the_bits_stored_and_not_by_the_brightest() -> None:
    data = dicom(np.full((64, 64), 100, np.uint16), BitsStored=10)
    assert load_image(data, SIZE).pixels.max() == round(100 * 255 / 1023)


def test_all_16_bits_stored_say_nothing_of_samples_that_do_not_fill_them() -> None:
    data = dicom(DEEP * 16)
    assert load_image(data, SIZE).remarks == ("depth guessed as 12 bits",) and off_by(data, Image.fromarray(GRAY)) < 1
    assert load_image(data, SIZE, bit_depth=16).pixels.max() < 20
    color = dicom(RGB.astype(np.uint16) * 16)
    assert "--bit-depth 12" in refusal(color).message
    assert load_image(color, SIZE, bit_depth=12).pixels.max() > 200


REFUSED: dict[str, Callable[[], bytes]] = {
    "whole slide": lambda: dicom(RGB, kind="1.2.840.10008.5.1.4.1.1.77.1.6"),
    "CT Image Storage": lambda: dicom(DEEP, kind="1.2.840.10008.5.1.4.1.1.2"),
    "something unknown": lambda: dicom(DEEP, kind="1.2.3.4.5"),
    "3 frames": lambda: dicom(np.concatenate([GRAY] * 3), Rows=120, NumberOfFrames=3),
    "32": lambda: dicom(DEEP.astype(np.uint32)),
    "palette in segments": lambda: dicom(GRAY, PhotometricInterpretation="PALETTE COLOR"),
    "JPEG Lossless": lambda: with_codestream(b"\xff\xd8\xff\xd9", RGB.shape, uid.JPEGLossless),
    "Deflated": lambda: dicom(RGB).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99\0")
    .replace(b"\x02\0\x10\0UI\x14\0", b"\x02\0\x10\0UI\x17\0"),
    "not the lowest": lambda: dicom(DEEP, BitsStored=12, HighBit=15),
    "signed samples": lambda: dicom(DEEP.astype(np.int16)),
    "colours": lambda: dicom(RGB, PhotometricInterpretation="HSV"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_dicom_that_is_not_read_is_refused_by_its_name(name: str) -> None:
    error = refusal(REFUSED[name]())
    assert error.code is Code.UNSUPPORTED_FORMAT
    assert name in error.message


def test_a_large_image_is_refused_before_it_is_decoded() -> None:
    assert refusal(dicom(RGB, Rows=30_000, Columns=30_000)).code is Code.TOO_MANY_PIXELS


def rle_bomb() -> bytes:
    """Three segments that each unpack to a hundred times what the header says."""
    segment = b"\x81\x00" * 15_000
    offsets = np.array([3, 64, 64 + len(segment), 64 + 2 * len(segment), *[0] * 12], "<u4").tobytes()
    return with_codestream(offsets + segment * 3, RGB.shape, uid.RLELossless)


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_codestream(
            encoded(scene(1600, 1200), "JPEG"), RGB.shape, PhotometricInterpretation="YBR_FULL_422"
        ),
        lambda: with_codestream(encoded(scene(1600, 1200), "JPEG2000", no_jp2=True), RGB.shape, uid.JPEG2000Lossless),
        lambda: with_codestream(encoded(scene(), "JPEG", progressive=True), RGB.shape),
        rle_bomb,
    ],
    ids=["jpeg", "jpeg 2000", "progressive", "rle"],
)
def test_pixels_that_are_more_than_the_header_says_are_not_decoded(make: Callable[[], bytes]) -> None:
    assert refusal(make()).message == "damaged dicom: its pixels are not what its header says"


def test_without_its_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(RGB)
    dicom_format._pydicom.cache_clear()
    load = builtins.__import__

    def refusing(name: str, *arguments: Any) -> Any:
        if name.startswith("pydicom"):
            raise ImportError(name)
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refusing)
    error = refusal(data)
    assert (error.code, error.message) == (Code.UNSUPPORTED_FORMAT, "DICOM: pip install leukoray[dicom]")


CUT = {name: GOOD[name][0]() for name in ("rgb", "12 bits", "rle", "jpeg 2000", "jpeg-ls", "baseline jpeg")}


@pytest.mark.parametrize("percent", range(5, 100, 5))
@pytest.mark.parametrize("name", CUT)
def test_a_dicom_cut_anywhere_is_truncated(name: str, percent: int) -> None:
    cut = CUT[name][: len(CUT[name]) * percent // 100]
    expected = {Code.TRUNCATED} if len(cut) > 400 else {Code.TRUNCATED, Code.CORRUPT, Code.UNSUPPORTED_FORMAT}
    assert refusal(cut).code in expected


@pytest.mark.parametrize("name", CUT)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8))
@search(40)
def test_flipped_bytes_give_pixels_or_a_code_and_never_the_patient(
    name: str, flips: list[tuple[float, int]], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(CUT[name])
    span = min(len(data), 1500)  # the header, and the beginning of the pixels
    for place, mask in flips:
        data[128 + int((span - 128) * place)] ^= mask
    with caplog.at_level(logging.DEBUG):
        try:
            assert load_image(bytes(data), SIZE, Limits(max_pixels=4_000_000)).pixels.shape == (SIZE, SIZE, 3)
        except ImageRejected as error:
            assert error.message and "Muster" not in error.message
    assert "Muster" not in caplog.text + "".join(capfd.readouterr())


def test_the_index_of_a_medium_is_called_one() -> None:
    made = dataset(np.zeros((4, 4), np.uint8))
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3"
    del made.SOPClassUID, made.PixelData
    refused = refusal(written(made))
    assert refused.code is Code.UNSUPPORTED_FORMAT and "Media Storage Directory" in str(refused)
