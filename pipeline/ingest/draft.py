"""Sources to a manifest: listed, recognized, annotated, split, in this order.

Takes source URIs and options, gives a `ManifestDraft`: the table of the manifest and what is worth saying about it.
`jobs.ingest` puts flags and words around it.
"""

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest import remarks, splits
from pipeline.ingest.annotation import UNKNOWN, Annotation, with_subjects
from pipeline.ingest.class_rules import ClassRules, apply_rules, one_spelling
from pipeline.ingest.copies import find_copies
from pipeline.ingest.label_table import ALIASES, annotate_from_table
from pipeline.ingest.layouts import GENERIC, LAYOUTS, Layout, annotate, left_out, recognize
from pipeline.ingest.split_names import split_named
from pipeline.sources import manifest
from pipeline.sources.archives import Problem, is_archive
from pipeline.sources.filters import Filters
from pipeline.sources.listing import Tally, base_folder, entry_row, list_sources, path_below
from pipeline.sources.rows import LISTING_SCHEMA, ListingRow, read_rows, to_table
from pipeline.sources.tables import is_table, read_table
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join

_LABEL_FILES = ("labels.csv", "labels.parquet")
_SYNTHETIC_MARK = "SYNTHETIC.txt"
_BATCH_ROWS = 8192
_KEPT_PROBLEMS = 100_000
_NAMED = 8  # classes named in an error


@dataclass(frozen=True)
class IngestOptions:
    """What the user says beyond the source itself; None and 'auto' leave it to the layout."""

    layout: str | None = None
    classes: ClassRules = field(default_factory=ClassRules)
    subject_pattern: str | None = None
    subject_blocks: int | None = None
    labels: str | None = None
    split_rule: splits.SplitRule = "auto"
    fractions: tuple[float, ...] = (0.7, 0.15, 0.15)
    seed: int = 0


@dataclass
class Listing:
    """What lies in the sources. `paths`: what layouts look at, one a row of `table` (LISTING_SCHEMA), sorted."""

    table: pa.Table
    paths: list[str]
    meta: dict[str, dict[str, str]]  # WebDataset sidecars by path
    problems: list[Problem]
    tally: Tally


@dataclass
class ManifestDraft:
    """A manifest before it is written."""

    table: pa.Table  # MANIFEST_SCHEMA
    layout: Layout
    labels_from: str  # 'paths', 'sidecars' or the URI of a table
    split: splits.SplitResult
    is_synthetic: bool
    listing: Listing
    warnings: list[str]
    why: str  # the split is as it is; empty where the user decided it
    ignored: list[str]  # classes in no split, by the user's word
    units: str  # what `subject_id` names: 'subjects', or 'blocks' of consecutive file numbers

    @property
    def positive(self) -> dict[str, int]:
        """Label by class, of the classes that have one."""
        pairs = zip(self.table["class_name"].to_pylist(), self.table["label"].to_pylist(), strict=True)
        return dict(sorted({name: label for name, label in pairs if name is not None and label is not None}.items()))

    @property
    def classes(self) -> list[str]:
        return sorted(set(self.table["class_name"].drop_null().to_pylist()))


def ingest(
    sources: Sequence[str],
    options: IngestOptions = IngestOptions(),
    filters: Filters = Filters(),
    stores: Stores = Stores(),
    limit: int | None = None,
) -> ManifestDraft:
    """List, recognize, annotate and split.

    Raises InputError for sources that are missing, empty, doubled or leaky, UsageError for options that they cannot
    meet.
    """
    roots = [absolute(source) for source in sources]
    for root in roots:
        _refuse_manifest(root, stores)
    listing = read_sources(roots, filters, stores, limit)
    layout, annotations, labels_from, warnings = _annotate(listing, roots, options, stores)
    annotations, merged = one_spelling(annotations)
    annotations = apply_rules(annotations, options.classes)
    warnings += merged
    copies = find_copies(listing.table, [_is_used(row) for row in annotations], stores)
    result = _split(annotations, listing.paths, copies, layout, options)
    table = _manifest_table(listing.table, annotations, result.splits)
    synthetic = layout.name == "leukoray-samples" or any(_is_marked_synthetic(root, stores) for root in roots)
    if not options.classes.say_labels:
        warnings += remarks.about_labels(annotations)
    warnings += remarks.about_copies(copies, annotations, result)
    warnings = list(dict.fromkeys([*warnings, *result.warnings]))
    own_words = options.subject_pattern or options.subject_blocks or labels_from != "paths"
    why = layout.why if result.rule == layout.split_rule and not own_words else ""
    by_layout = layout.block_size and not options.subject_pattern and labels_from == "paths"
    ignored = sorted({str(row.class_name) for row in annotations if row.is_ignored})
    units = "blocks" if options.subject_blocks or by_layout else "subjects"
    return ManifestDraft(table, layout, labels_from, result, synthetic, listing, warnings, why, ignored, units)


# ---- listing -----------------------------------------------------------------------------------------------


def read_sources(roots: Sequence[str], filters: Filters, stores: Stores, limit: int | None) -> Listing:
    """Everything in the sources, sorted by path, so that the same source gives the same manifest."""
    tally, problems = Tally(), list[Problem]()
    base = base_folder(roots)
    batches, waiting = list[pa.Table](), list[ListingRow]()
    paths, meta = list[str](), dict[str, dict[str, str]]()
    for found in list_sources(roots, tally, filters, stores, limit):
        if isinstance(found, Problem):
            if len(problems) < _KEPT_PROBLEMS:
                problems.append(found)
            continue
        waiting.append(entry_row(found))
        paths.append(path_below(found, base))
        if found.meta:
            meta[paths[-1]] = found.meta
        if len(waiting) >= _BATCH_ROWS:
            batches.append(to_table(waiting, LISTING_SCHEMA))
            waiting = []
    batches.append(to_table(waiting, LISTING_SCHEMA))
    if not paths:
        raise InputError(_nothing_found(roots, tally, problems))
    table = pa.concat_tables(batches)
    keys = pa.table({"path": paths, "id": table["image_id"]})
    order = pc.sort_indices(keys, sort_keys=[("path", "ascending"), ("id", "ascending")])
    table, paths = table.take(order), keys["path"].take(order).to_pylist()
    _refuse_doubles(table)
    return Listing(table, paths, meta, problems, tally)


def _nothing_found(roots: Sequence[str], tally: Tally, problems: Sequence[Problem]) -> str:
    seen = ", ".join(f"{count} {reason}" for reason, count in tally.left_out.most_common(5))
    where = ", ".join(roots[:3])
    failed = (
        f"; {len(problems)} could not be listed, e.g. {problems[0].place}: {problems[0].message}" if problems else ""
    )
    held = f"it holds {seen}" if seen else "it is empty"
    return (
        f"{where}: no images ({held}{failed}); "
        "JPEG, PNG, TIFF, BMP, WebP and GIF are read, also inside tar and zip; check the path, --include and --since"
    )


def _refuse_doubles(table: pa.Table) -> None:
    counts = table.group_by("image_id").aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts["count_all"], 1))["image_id"]
    if len(doubled):
        rows = table.filter(pc.is_in(table["image_id"], value_set=doubled.combine_chunks()))
        example = read_rows(rows.slice(0, 1), ListingRow)[0]
        raise InputError(
            f"{len(doubled)} images are listed twice (id {example.image_id}: {example.place}): "
            "two of the sources name the same file; give each once"
        )


def list_classes(
    sources: Sequence[str],
    options: IngestOptions,
    filters: Filters = Filters(),
    stores: Stores = Stores(),
    limit: int | None = None,
) -> list[Annotation]:
    """What is known of each image before anything is split: for those who want to see the classes first."""
    roots = [absolute(source) for source in sources]
    listing = read_sources(roots, filters, stores, limit)
    annotations, _ = one_spelling(_annotate(listing, roots, options, stores)[1])
    return apply_rules(annotations, options.classes)


def _refuse_manifest(root: str, stores: Stores) -> None:
    try:
        found = manifest.is_manifest(root, stores)
    except StoreError as error:
        raise error.refusal() from error
    if found:
        origin = " ".join(manifest.read_info(root, stores).source)
        raise InputError(f"{root}: is a manifest already, made from {origin}; give it to train or score as it is")


def _is_marked_synthetic(root: str, stores: Stores) -> bool:
    folder = posixpath.dirname(root) if is_archive(root) else root
    return stores.of(root).head(join(folder, _SYNTHETIC_MARK)) is not None


# ---- annotation --------------------------------------------------------------------------------------------


def _annotate(
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


def _is_used(row: Annotation) -> bool:
    return row.class_name is not None and not row.is_ignored


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


# ---- split and table ---------------------------------------------------------------------------------------


def _split(
    annotations: Sequence[Annotation],
    paths: Sequence[str],
    copies: Sequence[Sequence[int]],
    layout: Layout,
    options: IngestOptions,
) -> splits.SplitResult:
    """The split by the user's rule, else by the layout's honest one; refuses a subject on two sides."""
    rule = options.split_rule
    if rule == "auto":
        rule = layout.split_rule
        if rule == "images" and (options.subject_pattern or options.subject_blocks):
            rule = "subjects"
    subjects = [row.subject_id for row in annotations]
    groups: list[int | None] = [None] * len(paths)
    for number, rows in enumerate(copies):
        for row in rows:
            groups[row] = number
    result = splits.assign_splits(
        [row.class_name if _is_used(row) else None for row in annotations],
        subjects,
        [row.split for row in annotations],
        keys=paths,
        groups=groups,
        labels=[row.label for row in annotations],
        fractions=options.fractions,
        seed=options.seed,
        rule=rule,
    )
    if result.rule != "images":
        splits.check_leaks(subjects, result.splits, keys=paths)
    return result


def _manifest_table(listing: pa.Table, annotations: Sequence[Annotation], split: Sequence[str | None]) -> pa.Table:
    columns = {
        "label": [row.label for row in annotations],
        "class_name": [row.class_name for row in annotations],
        "subject_id": [row.subject_id for row in annotations],
        "split": list(split),
    }
    arrays = [pa.array(columns[column.name], column.type) for column in manifest.LABEL_FIELDS]
    return pa.Table.from_arrays([*listing.columns, *arrays], schema=manifest.MANIFEST_SCHEMA)


def counts(table: pa.Table) -> manifest.Counts:
    """Images by class and split, subjects by split, images by label."""
    names = [name or "(none)" for name in table["class_name"].to_pylist()]
    parts = [part or "none" for part in table["split"].to_pylist()]
    by_class: dict[str, Counter[str]] = {}
    for name, part in zip(names, parts, strict=True):
        by_class.setdefault(name, Counter())[part] += 1
    subjects: dict[str, set[str]] = {}
    for subject, part in zip(table["subject_id"].to_pylist(), parts, strict=True):
        if subject is not None:
            subjects.setdefault(part, set()).add(subject)
    labels = Counter({1: "positive", 0: "negative"}.get(label, "unknown") for label in table["label"].to_pylist())
    return manifest.Counts(
        classes={name: by_class[name] for name in sorted(by_class)},
        splits=Counter(parts),
        subjects={part: len(found) for part, found in subjects.items()},
        labels=labels,
    )
