"""Whose cells they are, and which subjects are positive as a whole: where a manifest lets that be asked at all."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import InputError, UsageError
from pipeline.base.text import as_word
from pipeline.evaluation.calibration import CalibratedOn
from pipeline.evaluation.subject_fit import CellCounts, count_cells, fit_rules
from pipeline.images.unit import Unit
from pipeline.model.subject_rules import SubjectLabel, SubjectRules
from pipeline.sources.manifest import Manifest


def why_no_subjects(unit: Unit | None, units: str, subjects: Sequence[str | None]) -> str:
    """Why nothing is said of subjects, a clause; empty where it can be. `units`: what a manifest calls them."""
    if unit is None:
        return "nobody has said that an image is one cell (`leukoray ingest --unit cell`)"
    if unit != "cell":
        return "an image is a field with many cells, so a share of images is no share of cells"
    if units != "subjects":
        return f"the images come in {units}, which are no patients"
    if not any(subjects):
        return "no subject is known"
    return ""


def rules_of(
    diseased: NDArray[np.bool_],
    called: NDArray[np.bool_],
    subjects: Sequence[str | None],
    manifest: Manifest,
    label: SubjectLabel,
    *,
    on: CalibratedOn,
    threshold: float,
    temperature: float,
) -> SubjectRules | None:
    """Fitted to (N,) images of the manifest; None where these are no cells of known subjects. Raises as `labels_in`."""
    if why_no_subjects(manifest.info.unit, manifest.info.units, subjects):
        return None
    given = {} if label.column is None else labels_in(manifest, label)
    counts = count_cells(diseased, called, subjects)
    labels = labels_of(counts, given, label)
    return fit_rules(counts, labels, label, on=on, threshold=threshold, temperature=temperature)


def check_label(manifest: Manifest, label: SubjectLabel, *, has_disease: bool) -> None:
    """Before anything is trained. Raises UsageError where nothing can be said of subjects, and as `labels_in`."""
    info = manifest.info
    refused = why_no_subjects(info.unit, info.units, manifest.table["subject_id"].to_pylist())
    if not has_disease:
        refused = "the classes do not say which mean disease, so no cell is called positive"
    if refused:
        raise UsageError(f"--subject-label {label.column}: {refused}; leave it out")
    labels_in(manifest, label)


def labels_of(counts: CellCounts, given: dict[str, bool], label: SubjectLabel) -> list[bool | None]:
    """Whether each subject is positive: as the manifest says (`labels_in`), else by the true share of its cells."""
    if label.column is not None:
        return [given.get(subject) for subject in counts.subjects]
    return [bool(share > label.share_above) for share in counts.diseased / np.maximum(counts.cells, 1)]


def labels_in(manifest: Manifest, label: SubjectLabel, *, of_any_value: bool = False) -> dict[str, bool]:
    """Subject -> whether its value is one of the label's; those without a value are left out.

    Raises UsageError where there is no such column, or no subject has such a value and it is not `of_any_value`;
    InputError where a subject has several.
    """
    name = label.column
    if name not in manifest.further:
        known = ", ".join(manifest.further) or "none"
        raise UsageError(
            f"--subject-label {label.column}: {manifest.uri} has no such column (it has: {known}); give the table with "
            "`leukoray ingest --subjects`"
        )
    table = pa.table({"subject": manifest.table["subject_id"], "value": manifest.table[name]})
    table = table.filter(pc.and_(pc.is_valid(table["subject"]), pc.is_valid(table["value"])))
    found: dict[str, str] = {}
    for subject, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
        word = as_word(value)
        if found.setdefault(subject, word) != word:
            raise InputError(
                f"subject {subject!r} has {name} {found[subject]!r} and {word!r}; keep one value a subject"
            )
    values = set(found.values())
    if not of_any_value and (unknown := [value for value in label.values if value not in values]):
        some = ", ".join(sorted(values)[:8])
        raise UsageError(f"--subject-label {name}={unknown[0]}: no subject has that value; there are {some}")
    return {subject: word in label.values for subject, word in found.items()}
