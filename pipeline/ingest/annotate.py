"""What is known of each listed image, by its path, a table of labels or a sidecar, and by what the user says on top."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest import remarks
from pipeline.ingest.annotation import UNKNOWN, Annotation, with_subjects
from pipeline.ingest.class_rules import ClassRules
from pipeline.ingest.gather import Listing
from pipeline.ingest.label_table import ALIASES, annotate_from_table
from pipeline.ingest.layouts import GENERIC, LAYOUTS, Layout, annotate, left_out, recognize
from pipeline.ingest.split_names import split_named
from pipeline.ingest.splits import SplitRule
from pipeline.sources.listing import base_folder
from pipeline.sources.tables import is_table, read_table
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

_LABEL_FILES = ("labels.csv", "labels.parquet")
_NAMED = 8  # classes named in an error


@dataclass(frozen=True)
class IngestOptions:
    """What the user says beyond the source itself; None and 'auto' leave it to the layout."""

    layout: str | None = None
    classes: ClassRules = field(default_factory=ClassRules)
    subject_pattern: str | None = None
    subject_blocks: int | None = None
    labels: str | None = None
    split_rule: SplitRule = "auto"
    fractions: tuple[float, ...] = (0.7, 0.15, 0.15)
    seed: int = 0


def annotate_all(
    listing: Listing, roots: Sequence[str], options: IngestOptions, stores: Stores
) -> tuple[Layout, list[Annotation], str, list[str]]:
    """(layout, one annotation a row, where the labels come from, warnings)."""
    paths = listing.paths
    layout = recognize(paths, options.layout)
    subjects: dict[str, Any] = {"subject_pattern": options.subject_pattern, "subject_blocks": options.subject_blocks}
    if options.layout is None and (unread := left_out(paths, layout)):
        named = ", ".join(f"{name} ({count:,} images)" for name, count in sorted(unread.items())[:_NAMED])
        raise InputError(
            f"the names look like {layout.name}, which does not read all classes of this source: {named} would be left "
            f"out; --layout class-folders reads every folder as a class, --layout {layout.name} leaves them out"
        )
    said = remarks.about_layout(layout, paths, forced=options.layout is not None, **subjects)
    labels = _labels_uri(roots, layout, options, stores)
    if options.split_rule == "auto" and labels is None and layout.name == "class-folders":
        said += remarks.about_parts(paths)
    if labels is None:
        own = _from_sidecars(listing) if layout.name == "flat" and listing.meta else None
        if own is None:
            return layout, annotate(paths, layout, **subjects), "paths", said
        return layout, with_subjects(own, paths, **subjects), "sidecars", []
    table = read_table(labels, stores)
    base, folder = base_folder(roots), posixpath.dirname(labels)
    inside = folder[len(base) + 1 :] if folder.startswith(f"{base}/") else ""
    found, lost = annotate_from_table(table, paths, folder=inside, allow_unmatched=True)
    warnings = [f"{lost} of {table.num_rows} rows of {labels} name no image that was listed"] if lost > 0 else []
    if options.layout is None and layout.name in GENERIC:
        layout = LAYOUTS["table"]
    else:
        found = [_merged(row, layout.annotate(path)) for path, row in zip(paths, found, strict=True)]
        warnings += said
    return layout, with_subjects(found, paths, **subjects), labels, warnings


def _merged(first: Annotation, second: Annotation) -> Annotation:
    """`first`, completed where it says nothing."""
    if first == UNKNOWN:
        return first if second == UNKNOWN else second
    return Annotation(
        first.class_name or second.class_name,
        first.label if first.label is not None else second.label if first.class_name is None else None,
        first.subject_id or second.subject_id,
        first.split or second.split,
    )


def _labels_uri(roots: Sequence[str], layout: Layout, options: IngestOptions, stores: Stores) -> str | None:
    """The table of labels: the one named, the source itself where it is one, or `labels.csv` beside flat images."""
    if options.labels:
        return absolute(options.labels)
    root = roots[0]
    if len(roots) == 1 and is_table(root):
        known = {alias for role in ("label", "class_name") for alias in ALIASES[role]}
        names = {name.strip().casefold() for name in read_table(root, stores).column_names}
        return root if names & known else None
    if len(roots) > 1 or layout.name not in ("flat", "table"):
        return None
    found = [join(root, name) for name in _LABEL_FILES if stores.of(root).head(join(root, name)) is not None]
    if layout.name == "table" and not found:
        raise UsageError(f"--layout table needs --labels FILE, or {' or '.join(_LABEL_FILES)} in {root}")
    return found[0] if found else None


def _from_sidecars(listing: Listing) -> list[Annotation] | None:
    """Labels of WebDataset shards (`x.cls`, `x.json` beside `x.jpg`), None where the sidecars tell no class."""
    known = {alias for role in ("label", "class_name") for alias in ALIASES[role]}
    rows: list[dict[str, str]] = []
    for path, found in listing.meta.items():
        said = {("label" if key == "cls" else key.casefold()): text for key, text in found.items()}
        rows.append({"path": path, **{key: text for key, text in said.items() if _is_said_of_image(key, text)}})
    columns = {key for row in rows for key in row}
    if not columns & known:
        return None
    wanted = sorted(columns & {alias for aliases in ALIASES.values() for alias in aliases} - set(ALIASES["path"][1:]))
    table = pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in wanted})
    return annotate_from_table(table, listing.paths)[0]


def _is_said_of_image(key: str, text: str) -> bool:
    """Which image a sidecar describes is told by where it lies, by nothing in it; 'subset' may mean anything."""
    return key not in ALIASES["path"] and (key not in ALIASES["split"] or split_named(text) is not None)
