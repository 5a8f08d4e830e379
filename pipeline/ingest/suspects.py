"""Labels that are likely wrong, as a table that a person edits and `leukoray ingest --labels` reads back.

A row for every image of the manifest, suspects first: a table of labels is all that counts of an image, so one of the
suspects alone would take the labels of all others away. SUSPECT_COLUMNS are notes, which ingest does not keep.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.base.csv_text import csv_of
from pipeline.sources.manifest import Manifest
from pipeline.sources.rows import places_of

SUSPECTS_TABLE = "suspects.csv"
SUSPECT_COLUMNS = ("suspect_rank", "suspect_given", "suspect_suggested", "suspect_margin", "suspect_reason")


@dataclass(frozen=True)
class Suspect:
    """An image whose label is likely wrong."""

    image_id: int
    suggested: str  # class
    margin: float  # probability of the given class less that of the likeliest other one, -1..1
    reason: str


class SuspectsTable:
    """How a manifest is written down so that ingest makes it again, and what a person changes in it.

    What only stands for something is left out, and made again by the flags of `command`: blocks for subjects, a split
    made image by image.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._table, self._info = manifest.table, manifest.info
        named = self._table["class_name"].null_count < self._table.num_rows
        pairs = set(zip(*(self._table[name].to_pylist() for name in ("class_name", "label")), strict=True))
        self._label_of = {name: label for name, label in pairs if name is not None and label is not None}
        follows = all(self._label_of.get(name) == label or name in self._info.ignored for name, label in pairs)
        # a label that does not follow from its class is what a person must be able to change
        self.edited = "class_name" if named and follows else "label"
        is_made = {"subject_id": self._info.units == "blocks", "split": self._info.split_rule == "images"}
        columns = ("class_name" if named else "label", "label", "subject_id", "split", "site", *manifest.further)
        wanted = [self.edited, *(name for name in columns if name != "label" and not is_made.get(name))]
        self._columns = [
            name for name in dict.fromkeys(wanted)
            if name == self.edited or self._table[name].null_count < self._table.num_rows
        ]  # fmt: skip

    def suggestion(self, class_name: str) -> str:
        """A class of the model in words of the column to change: of two, each may stand for several."""
        label = {"negative": 0, "positive": 1}.get(class_name)
        if label is None or class_name in self._label_of:
            return class_name
        if self.edited == "label":
            return str(label)
        names = self._classes(label)
        return names[0] if len(names) == 1 else f"one of {', '.join(names)} ({class_name})"

    def _classes(self, label: int) -> list[str]:
        """Those whose images have this label."""
        return sorted(name for name, its in self._label_of.items() if its == label)

    @property
    def command(self) -> str:
        """What reads the table back, with the flags that make again what it does not hold."""
        hidden = self._info.pseudonym_key_id is not None
        words = ["leukoray", "ingest", *(["SOURCE"] if hidden else self._info.source), "--labels", SUSPECTS_TABLE]
        if self.edited == "class_name":
            for flag, label in (("--positive", 1), ("--negative", 0)):
                names = self._classes(label)
                words += [flag, *names] if names else []
            words += ["--ignore", *self._info.ignored] if self._info.ignored else []
        if self._info.units == "blocks":
            words += ["--subject-blocks", str(self._info.configuration.get("subject_blocks", "N"))]
        if self._info.split_rule == "images":
            words += ["--split-rule", "images"]
        return shlex.join(words)

    def csv(self, suspects: Sequence[Suspect]) -> str:
        """All rows of the manifest, `suspects` first and in their order."""
        table, rank = self._table, {suspect.image_id: number for number, suspect in enumerate(suspects)}
        columns = {name: table[name].to_pylist() for name in self._columns}
        ids, places = table["image_id"].to_pylist(), places_of(table)
        lines: list[list[object]] = [["path", *columns, *SUSPECT_COLUMNS]]
        for row in sorted(range(table.num_rows), key=lambda row: rank.get(ids[row], len(rank))):
            said = [values[row] for values in columns.values()]
            number = rank.get(ids[row])
            notes = [""] * len(SUSPECT_COLUMNS)
            if number is not None:
                found = suspects[number]
                suggested = self.suggestion(found.suggested)
                notes = [str(number + 1), said[0], suggested, f"{found.margin:.3f}", found.reason]
            lines.append([places[row], *said, *notes])
        return csv_of(lines)
