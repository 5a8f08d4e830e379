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
from pipeline.images.unit import Unit
from pipeline.ingest import remarks, splits
from pipeline.ingest.alike import Alike, find_alike
from pipeline.ingest.annotate import IngestOptions, annotate_all
from pipeline.ingest.annotation import Annotation, units_of
from pipeline.ingest.class_names import are_cell_types
from pipeline.ingest.class_rules import apply_rules, one_spelling
from pipeline.ingest.further_columns import Column
from pipeline.ingest.gather import Listing, read_sources
from pipeline.ingest.layouts import Layout
from pipeline.ingest.split_choice import split_images
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

    table: pa.Table  # MANIFEST_SCHEMA and further columns
    layout: Layout
    labels_from: str  # 'paths', 'sidecars' or the URI of a table
    split: splits.SplitResult
    is_synthetic: bool
    listing: Listing
    warnings: list[str]
    why: str  # the split is as it is; empty where the user decided it
    ignored: list[str]  # classes in no split, by the user's word
    units: str  # what `subject_id` names: 'subjects', or 'blocks' of consecutive file numbers
    alike: Alike
    unit: Unit | None  # what an image shows

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
    found = annotate_all(listing, roots, options, stores)
    annotations, merged = one_spelling(found.rows)
    annotations = apply_rules(annotations, options.classes)
    verdicts, near_copies = options.contradictions, options.near_copies
    alike = find_alike(listing.table, annotations, verdicts=verdicts, near_copies=near_copies, stores=stores)
    split, annotations = split_images(alike.annotations, listing.paths, alike.groups, found.layout, options)
    unit = options.unit or found.layout.unit or _unit_of_classes(annotations)
    table = _manifest_table(listing.table, annotations, split.splits, unit, found.further)
    synthetic = found.layout.name == "leukoray-samples" or any(_is_marked_synthetic(root, stores) for root in roots)
    labels = [] if options.classes.say_labels else remarks.about_labels(annotations)
    labels += remarks.about_sites(annotations)
    said = [*found.said, *merged, *labels, *remarks.about_copies(alike.copies, alike.contradictions, split)]
    said += [*remarks.about_near_copies(alike.near, annotations, split, listing.paths), *split.warnings]
    own_words = options.subject_pattern or options.subject_blocks or found.labels_from != "paths"
    return ManifestDraft(
        table=table,
        layout=found.layout,
        labels_from=found.labels_from,
        split=split,
        is_synthetic=synthetic,
        listing=listing,
        warnings=list(dict.fromkeys(said)),
        why=found.layout.why if split.rule == found.layout.split_rule and not own_words else "",
        ignored=sorted({str(row.class_name) for row in annotations if row.is_ignored}),
        units=units_of(annotations),
        alike=alike,
        unit=unit,
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
    annotations, _ = one_spelling(annotate_all(listing, roots, options, stores).rows)
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


def _unit_of_classes(annotations: Sequence[Annotation]) -> Unit | None:
    names = {row.class_name for row in annotations if row.class_name is not None}
    return "cell" if are_cell_types(names) else None


def _manifest_table(
    listing: pa.Table,
    annotations: Sequence[Annotation],
    split: Sequence[str | None],
    unit: Unit | None,
    further: Sequence[Column],
) -> pa.Table:
    columns = {field.name: [getattr(row, field.name, None) for row in annotations] for field in manifest.LABEL_FIELDS}
    columns |= {"split": list(split), "unit": [unit] * len(annotations)}
    table = listing
    for field in manifest.LABEL_FIELDS:
        table = table.append_column(field, pa.array(columns[field.name], field.type))
    for column in further:
        table = table.append_column(column.field, column.values)
    return table


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
