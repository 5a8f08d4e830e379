"""Sources to a manifest: listed, recognized, annotated, split, in this order.

Takes source URIs and options, gives a `ManifestDraft`: the table of the manifest and what is worth saying about it.
`jobs.ingest` puts flags and words around it.
"""

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.errors import InputError
from pipeline.ingest import remarks, splits
from pipeline.ingest.annotate import IngestOptions, annotate_all
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.class_rules import apply_rules, one_spelling
from pipeline.ingest.copies import find_copies
from pipeline.ingest.gather import Listing, read_sources
from pipeline.ingest.layouts import Layout
from pipeline.sources import manifest
from pipeline.sources.archives import is_archive
from pipeline.sources.filters import Filters
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join

_SYNTHETIC_MARK = "SYNTHETIC.txt"


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
    layout, annotations, labels_from, warnings = annotate_all(listing, roots, options, stores)
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
    annotations, _ = one_spelling(annotate_all(listing, roots, options, stores)[1])
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


# ---- split and table ---------------------------------------------------------------------------------------


def _is_used(row: Annotation) -> bool:
    return row.class_name is not None and not row.is_ignored


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
