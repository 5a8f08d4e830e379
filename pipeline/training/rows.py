"""Rows of a manifest to what training learns from: a target for each image, a share for each rank."""

import shlex
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import InputError
from pipeline.sources.manifest import Manifest
from pipeline.sources.rows import LOCATION_FIELDS, ListingRow

Task = Literal["binary", "multiclass"]


ROW_SCHEMA = pa.schema([*LOCATION_FIELDS, pa.field("target", pa.int64(), nullable=False)])  # index into the classes


@dataclass(frozen=True, slots=True)
class TargetRow(ListingRow):
    """One row of ROW_SCHEMA."""

    target: int


@dataclass(frozen=True)
class LabelledRows:
    """What training needs of a manifest. `target` indexes `classes`; binary targets are the labels themselves."""

    task: Task
    classes: tuple[str, ...]
    positive_classes: tuple[str, ...]
    train: pa.Table  # ROW_SCHEMA
    validation: pa.Table  # ROW_SCHEMA
    note: str = ""  # what a person must know of `positive_classes`

    @property
    def splits(self) -> dict[str, pa.Table]:
        return {"train": self.train, "validation": self.validation}

    def counts(self, split: str) -> list[int]:
        """Images of each class."""
        table = self.train if split == "train" else self.validation
        counts: list[int] = np.bincount(table["target"].to_numpy(), minlength=len(self.classes)).tolist()
        return counts


def labelled_rows(manifest: Manifest, task: Literal["auto", "binary", "multiclass"] = "auto") -> LabelledRows:
    """The train and validation rows with their targets. Raises InputError when there is nothing to learn from them."""
    if manifest.info.split_rule == "test":
        raise InputError(
            f"{manifest.uri}: is for testing alone (leukoray ingest --use test), so nothing is learnt from it; "
            "train on another manifest, or ingest again without --use test"
        )
    known = manifest.table.filter(pc.is_in(manifest.table["split"], pa.array(["train", "validation"])))
    labels = set(pc.unique(known["label"].drop_null()).to_pylist())
    names = sorted(pc.unique(known["class_name"].drop_null()).to_pylist())
    chosen: Task = ("binary" if labels == {0, 1} else "multiclass") if task == "auto" else task
    if not labels and not names:
        raise InputError(f"{manifest.uri}: {_why_nothing(manifest.table)}")
    if chosen == "binary":
        if labels != {0, 1}:
            hint = (
                "name the classes that mean leukemia with `leukoray ingest --positive CLASS`, or use --task multiclass"
            )
            raise InputError(f"{manifest.uri}: {_seen(labels)}; two classes need positive and negative images: {hint}")
        known = known.filter(pc.is_valid(known["label"]))
        targets = known["label"].cast(pa.int64())
        classes: tuple[str, ...] = ("negative", "positive")
        positive: tuple[str, ...] = ("positive",)
        note = ""
    else:
        if len(names) < 2:
            raise InputError(f"{manifest.uri}: one class only ({', '.join(names) or 'none'}); nothing to tell apart")
        known = known.filter(pc.is_valid(known["class_name"]))
        targets = pc.index_in(known["class_name"], pa.array(names)).cast(pa.int64())
        classes, (positive, note) = tuple(names), _positive_names(known)
    rows = known.append_column("target", targets)
    columns = [field.name for field in ROW_SCHEMA]
    train, validation = (
        rows.filter(pc.equal(rows["split"], split)).select(columns).cast(ROW_SCHEMA).combine_chunks()
        for split in ("train", "validation")
    )
    labelled = LabelledRows(chosen, classes, positive, train, validation, note)
    _refuse_gaps(manifest.uri, labelled)
    return labelled


def _why_nothing(table: pa.Table) -> str:
    """Why no row of train and validation has a class: none is labelled, or the labelled ones are in other splits."""
    labelled = table.filter(pc.or_(pc.is_valid(table["label"]), pc.is_valid(table["class_name"]))).num_rows
    if not labelled:
        return (
            "no labels to learn from; give a source with class folders or a table of labels to `leukoray ingest`, or "
            "score it with a trained model"
        )
    return (
        f"{labelled} of its images are labelled, none of them is in the train or validation split; `leukoray ingest` "
        "says why: too few subjects, or --fractions"
    )


def _seen(labels: set[int]) -> str:
    if not labels:
        return "no image is labelled positive or negative"
    return f"every labelled image is {'positive' if labels == {1} else 'negative'}"


def _positive_names(table: pa.Table) -> tuple[tuple[str, ...], str]:
    """Class names whose every labelled image is positive, where the labels know both sides; and a note for a person.

    A class without any label may mean disease or not, so then none is decided on.
    """
    sides: dict[str, set[int]] = {}
    for name, label in zip(table["class_name"].to_pylist(), table["label"].to_pylist(), strict=True):
        sides.setdefault(name, set()).update(() if label is None else (label,))
    positive = tuple(sorted(name for name, labels in sides.items() if labels == {1}))
    unlabelled = sorted(name for name, labels in sides.items() if not labels)
    if not positive or len(positive) == len(sides):
        return (), ""
    if unlabelled:
        told = f"{', '.join(positive)} mean disease, and nothing says whether {', '.join(unlabelled)} do"
        return (), f"{told}: the model will decide nothing about disease; ingest with --positive or --negative for them"
    return positive, ""


def _refuse_gaps(uri: str, rows: LabelledRows) -> None:
    for split, table in (("train", rows.train), ("validation", rows.validation)):
        if not table.num_rows:
            raise InputError(
                f"{uri}: no labelled images in the {split} split; run `leukoray ingest` again so that it makes splits"
            )
        missing = [name for name, count in zip(rows.classes, rows.counts(split), strict=True) if not count]
        if missing:
            without = "" if rows.task == "binary" else f", or leave the class out with --ignore {shlex.join(missing)}"
            raise InputError(
                f"{uri}: the {split} split has no image of class {', '.join(missing)}; every split needs subjects of "
                f"it that are in no other: add some, then ingest again{without}"
            )
