"""Whom and what a DICOM image is of: the part of its header that a report has to repeat (PS3.3, C.7.1 and C.7.2).

This is of a patient. It goes into the report and nowhere else: no message and no log quotes a value.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.images.formats.parts import CountedBytes

if TYPE_CHECKING:
    from pydicom import Dataset

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_VALID_UID = re.compile(r"(?=.{1,64}$)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
# There in every report, empty where the image has none: type 2 of the modules Patient and General Study
_REPEATED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_MORE = ("IssuerOfPatientID", "StudyDescription", "PatientAge")
_OF_ONE = ("StudyInstanceUID", "PatientID", "PatientName")  # one without a value is another


class NoReport(Exception):
    """No report can refer to these images; says why, in keywords of DICOM and without values."""


def read_source(data: bytes) -> "Dataset":
    """Identity and study of one image, whose pixels were read already: that silenced pydicom. Raises NoReport."""
    import pydicom

    wanted = ["SpecificCharacterSet", *_UIDS, *_REPEATED, *_MORE]
    try:
        source = pydicom.dcmread(CountedBytes(data), stop_before_pixels=True, specific_tags=wanted)
        source.decode()
        values = {keyword: source.get(keyword) for keyword in wanted}
    except Exception as error:
        raise NoReport(f"its header cannot be repeated ({type(error).__name__})") from None
    for keyword in _UIDS:
        if not _VALID_UID.fullmatch(str(values[keyword] or "")):
            raise NoReport(f"it has no valid {keyword}, by which a report could refer to it")
    for keyword in _REPEATED:
        if values[keyword] is None:
            setattr(source, keyword, "")
    return source


def refuse_mixed(sources: Sequence["Dataset"]) -> None:
    """Raises NoReport where images are of several patients or studies: one report is of one."""
    for keyword in _OF_ONE:
        if len({str(source.get(keyword)) for source in sources}) > 1:
            raise _mixed(keyword)
    for keyword in (*_REPEATED, *_MORE):  # the report takes them from the first image
        if len({value for source in sources if (value := str(source.get(keyword) or "").strip())}) > 1:
            raise _mixed(keyword)
    if len({str(source.SOPInstanceUID) for source in sources}) < len(sources):
        raise NoReport("two images have the same SOPInstanceUID")


def _mixed(keyword: str) -> NoReport:
    return NoReport(f"the images differ in {keyword}: one report is of one patient and one study")
