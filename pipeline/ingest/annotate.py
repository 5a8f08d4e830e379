"""What is known of each listed image, by its path, a table of labels or a sidecar, and by what the user says on top."""

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.base.errors import InputError, UsageError
from pipeline.base.text import folded
from pipeline.images.unit import Unit
from pipeline.ingest import remarks
from pipeline.ingest.annotation import UNKNOWN, Annotation, normalize, with_sites, with_subjects
from pipeline.ingest.class_folders import given_split, patient_folder
from pipeline.ingest.class_rules import ClassRules
from pipeline.ingest.further_columns import Column
from pipeline.ingest.gather import Listing
from pipeline.ingest.label_table import ALIASES, TableLabels, annotate_from_table, is_truth, roles_of
from pipeline.ingest.layouts import GENERIC, LAYOUTS, Layout, annotate, left_out, recognize
from pipeline.ingest.split_names import split_named
from pipeline.ingest.splits import FRACTIONS, SplitRule, Use
from pipeline.ingest.subject_places import about_both_labels, told_apart
from pipeline.ingest.subject_table import join_subjects
from pipeline.sources.listing import base_folder
from pipeline.sources.manifest import MANIFEST_SCHEMA
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
    site_pattern: str | None = None
    labels: str | None = None
    subjects: str | None = None
    subjects_shared: bool | None = None
    unit: Unit | None = None
    contradictions: str | None = None
    near_copies: bool = True
    split_rule: SplitRule = "auto"
    fractions: tuple[float, ...] = FRACTIONS
    use: Use = "split"
    seed: int = 0
    lists_part: bool = False  # filters or a limit leave out images on purpose


@dataclass
class Annotated:
    """What is known of the listed images. `rows` and the values of `further`: one an image, in order."""

    layout: Layout
    rows: list[Annotation]
    labels_from: str  # 'paths', 'sidecars' or the URI of a table
    said: list[str]  # what a person should know, in sentences
    further: list[Column] = field(default_factory=list)
    names_subjects: bool = False  # a table or sidecars do, as ids of people, wherever their images lie


def annotate_all(listing: Listing, roots: Sequence[str], options: IngestOptions, stores: Stores) -> Annotated:
    """By paths, tables and sidecars, then by the user's flags, whose word is the last.

    Raises InputError and UsageError for what cannot be read, or means nothing here.
    """
    layout = recognize(listing.paths, options.layout)
    if options.layout is None:
        _refuse_left_out(listing.paths, layout)
    found = _by_layout_or_table(listing, roots, layout, options, stores)
    found.rows = with_subjects(
        found.rows, listing.paths, subject_pattern=options.subject_pattern, subject_blocks=options.subject_blocks
    )
    if options.site_pattern is not None:
        found.rows = with_sites(found.rows, listing.paths, options.site_pattern)
    if options.subject_pattern or (found.layout.name in GENERIC and not found.names_subjects):
        found.rows, said = told_apart(found.rows, listing.paths, options.subjects_shared)
        found.said += [*said, *about_both_labels(found.rows, listing.paths)]
    is_told = found.labels_from != "paths" and any(row.split for row in found.rows)
    if options.split_rule == "auto" and options.use == "split" and not is_told and any(r.is_used for r in found.rows):
        found.said += remarks.about_parts(listing.paths)
    if options.subjects is not None:
        _join_subjects(found, options.subjects, stores)
    return found


def _refuse_left_out(paths: Sequence[str], layout: Layout) -> None:
    if unread := left_out(paths, layout):
        named = ", ".join(f"{name} ({count:,} images)" for name, count in sorted(unread.items())[:_NAMED])
        raise InputError(
            f"the names look like {layout.name}, which does not read all classes of this source: {named} would be left "
            f"out; --layout class-folders reads every folder as a class, --layout {layout.name} leaves them out"
        )


def _by_layout_or_table(
    listing: Listing, roots: Sequence[str], layout: Layout, options: IngestOptions, stores: Stores
) -> Annotated:
    """What paths say, or sidecars, or a table, completed by the paths where these are of a known set."""
    paths, is_forced = listing.paths, options.layout is not None
    said = remarks.about_layout(
        layout, paths, forced=is_forced, subject_pattern=options.subject_pattern, subject_blocks=options.subject_blocks
    )
    of_paths = annotate(paths, layout)
    labels = _labels_uri(roots, layout, options, stores)
    if labels is None:
        own = _from_sidecars(listing) if layout.name == "flat" and listing.meta else None
        if own is not None:
            names_subjects = any(row.subject_id for row in own.annotations)
            rows, kept = _with_what_folders_say(own.annotations, of_paths, paths)
            return Annotated(layout, rows, "sidecars", [*_about_flags(listing), *kept], own.further, names_subjects)
        return Annotated(layout, of_paths, "paths", said)
    base, folder = base_folder(roots), posixpath.dirname(labels)
    inside = folder[len(base) + 1 :] if folder.startswith(f"{base}/") else ""
    paths_tell = layout.name not in ("flat", "table")
    rows = read_table(labels, stores)
    with _named(labels):
        table = annotate_from_table(
            rows, paths, base=base, folder=inside, is_part=options.lists_part, needs_class=not paths_tell
        )
    names_subjects = any(row.subject_id for row in table.annotations)
    found = Annotated(layout, table.annotations, labels, table.said, table.further, names_subjects)
    if not is_forced and layout.name in GENERIC and (table.tells_class or not paths_tell):
        found.layout = LAYOUTS["table"]
        found.rows, kept = _with_what_folders_say(table.annotations, of_paths, paths)
        found.said = [*table.said, *kept, *_about_other_labels(table.annotations, of_paths)]
    else:
        found.said = [*said, *table.said, *_about_overruled(table.annotations, of_paths)]
        found.rows = [_merged(row, known) for row, known in zip(table.annotations, of_paths, strict=True)]
    return found


def _with_what_folders_say(
    rows: Sequence[Annotation], of_paths: Sequence[Annotation], paths: Sequence[str]
) -> tuple[list[Annotation], list[str]]:
    """Labels of a table or of sidecars that name no split, or no subject: both as the folders tell them.

    Otherwise a test set kept in a folder of its own would be mixed into training by a table of labels beside it.
    """
    split_known, subject_known = any(row.split for row in rows), any(row.subject_id for row in rows)
    result, counts = [], Counter[str]()
    for row, known, path in zip(rows, of_paths, paths, strict=True):
        if row == UNKNOWN:
            result.append(row)
            continue
        folder = normalize(path).rpartition("/")[0]
        split = row.split if split_known else given_split(folder)
        subject = row.subject_id if subject_known else known.subject_id or patient_folder(folder)
        counts["splits"] += split is not None and not split_known
        counts["subjects"] += subject is not None and not subject_known
        result.append(replace(row, split=split, subject_id=subject))
    said = [f"{what} of {count:,} images are those that their folders name" for what, count in counts.items() if count]
    return result, said


def _about_overruled(said: Sequence[Annotation], of_paths: Sequence[Annotation]) -> list[str]:
    pairs = [(row.split, known.split) for row, known in zip(said, of_paths, strict=True)]
    count = sum(split is not None and known is not None and split != known for split, known in pairs)
    return [f"the table gives {count:,} images another split than their folders do; the table holds"] if count else []


def _about_other_labels(said: Sequence[Annotation], of_paths: Sequence[Annotation]) -> list[str]:
    """Where names of folders contradict the table: rows may have slipped, or folders may say what a patient has."""
    pairs = [(row.label, known.label) for row, known in zip(said, of_paths, strict=True)]
    count = sum(label is not None and known is not None and label != known for label, known in pairs)
    if not count:
        return []
    return [f"the table gives {count:,} images another label than the names of their folders; the table holds"]


def _merged(first: Annotation, second: Annotation) -> Annotation:
    """`first`, completed where it says nothing."""
    if UNKNOWN in (first, second):
        return second if first == UNKNOWN else first
    is_same = first.class_name is None or folded(first.class_name) == folded(second.class_name or "")
    return Annotation(
        first.class_name or second.class_name,
        first.label if first.label is not None or not is_same else second.label,
        first.subject_id or second.subject_id,
        first.split or second.split,
        site=first.site or second.site,
        is_block=second.is_block and not first.subject_id,
    )


def _labels_uri(roots: Sequence[str], layout: Layout, options: IngestOptions, stores: Stores) -> str | None:
    """The table of labels: the one named, the source itself where it is one, or `labels.csv` beside flat images."""
    if options.labels:
        return absolute(options.labels)
    root = roots[0]
    if len(roots) == 1 and is_table(root):
        return root if len(roles_of(read_table(root, stores))) > 1 else None
    if len(roots) > 1 or layout.name not in ("flat", "table"):
        return None
    found = [join(root, name) for name in _LABEL_FILES if stores.of(root).head(join(root, name)) is not None]
    if layout.name == "table" and not found:
        raise UsageError(f"--layout table needs --labels FILE, or {' or '.join(_LABEL_FILES)} in {root}")
    return found[0] if found else None


def _from_sidecars(listing: Listing) -> TableLabels | None:
    """Labels of WebDataset shards (`x.cls`, `x.json` beside `x.jpg`), None where the sidecars tell no class."""
    known = {alias for role in ("label", "class_name") for alias in ALIASES[role]}
    rows: list[dict[str, str]] = []
    for path, found in listing.meta.items():
        said = {("label" if key == "cls" else key.casefold()): text for key, text in found.items()}
        rows.append({"path": path, **{key: text for key, text in said.items() if _is_said_of_image(key, text)}})
    columns = {key for row in rows for key in row}
    if not columns & known:
        return None
    table = pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in sorted(columns)})
    return annotate_from_table(table, listing.paths)


def _is_said_of_image(key: str, text: str) -> bool:
    """Which image a sidecar describes is told by where it lies, by nothing in it; 'subset' may mean anything."""
    is_split = key in ALIASES["split"] and split_named(text) is not None
    return is_split or not (key in ALIASES["path"] or key in ALIASES["split"] or _is_split_flag(key, text))


def _is_split_flag(key: str, text: str) -> bool:
    return split_named(key) is not None and is_truth(text)


def _about_flags(listing: Listing) -> list[str]:
    """Keys such as `is_test`, of which nothing is made: whoever wrote them may have kept a test set apart."""
    flags = {key for found in listing.meta.values() for key, text in found.items() if _is_split_flag(key, text)}
    return [
        f"{key.upper()} OF THE SIDECARS SEEMS TO SAY WHICH IMAGES ARE KEPT APART, AND IS NOT READ: give a table with a "
        "column 'split' (--labels)"
        for key in sorted(flags)
    ]


@contextmanager
def _named(uri: str) -> Iterator[None]:
    """Errors about a table say which file it is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{uri}: {error}") from error


def _join_subjects(found: Annotated, uri: str, stores: Stores) -> None:
    """Site and further columns of a table of subjects, for the images of each."""
    table = read_table(absolute(uri), stores)
    taken = [*MANIFEST_SCHEMA.names, *(column.field.name for column in found.further)]
    with _named(uri):
        joined = join_subjects(table, found.rows, taken)
    found.rows = [replace(row, site=row.site or site) for row, site in zip(found.rows, joined.sites, strict=True)]
    found.further += joined.further
    found.said += joined.said
