"""Labels from a table (CSV or Parquet, already read into Arrow) joined to the paths of the images.

Each row names one image; `table_paths` finds it. Images without a row stay unlabelled, rows without an image are said,
and half of them are an error.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.base.errors import InputError
from pipeline.base.text import folded
from pipeline.ingest.annotation import UNKNOWN, Annotation
from pipeline.ingest.class_names import common_label
from pipeline.ingest.further_columns import Column, further_columns
from pipeline.ingest.split_names import Split, split_named
from pipeline.ingest.suspects import SUSPECT_COLUMNS
from pipeline.ingest.table_paths import AMBIGUOUS, Located, locate, why_unmatched
from pipeline.sources.manifest import MANIFEST_SCHEMA

ALIASES: Mapping[str, tuple[str, ...]] = {
    "path": (
        "path", "uri", "url", "filename", "file_name", "file", "filepath", "file_path", "image", "image_path",
        "image_name", "image_file", "new_names", "key", "image_id", "id",
    ),  # 'new_names' is what C-NMC 2019 calls it
    "label": ("label", "labels", "target", "y", "is_positive"),
    "class_name": ("class_name", "class", "category", "cell_type", "type", "diagnosis"),
    "subject_id": ("subject_id", "subject", "patient_id", "patient", "case_id", "case", "donor"),
    "split": ("split", "subset", "partition", "set"),
    "site": (
        "site", "site_id", "hospital", "centre", "center", "institution", "institute", "clinic", "laboratory", "lab",
    ),
}  # fmt: skip
_LABEL_WORDS = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0}
_NOTHING = frozenset(
    {"", "na", "n/a", "#n/a", "n.a.", "<na>", "nan", "none", "null", "nil", "-", "--", "?", "k.a.", "missing"}
)
_NOBODY = frozenset({"unknown", "unbekannt", "unk", "anonymous", "anonymized", "anonymised"})
_WHOLE = re.compile(r"^(\d+)\.0+$")
_NAMED = 5  # rows named in an error
_EXAMPLES = 3  # of each reason
_FEW = 0.05  # of the images, without a row in a table that is of a larger set
_FEWEST_CLASSES = 2  # columns of 0 and 1 that may be classes
_C_NMC_NAME = re.compile(r"UID_(H?\d+)_\d+_\d+_(all|hem)", re.IGNORECASE)


@dataclass(frozen=True)
class TableLabels:
    """What a table says. `annotations` and the values of `further`: one a path, in order."""

    annotations: list[Annotation]  # UNKNOWN for paths without a row
    further: list[Column]
    said: list[str]  # what a person should know, in sentences
    tells_class: bool


def annotate_from_table(
    rows: pa.Table,
    paths: Sequence[str],
    *,
    base: str = "",
    folder: str = "",
    is_part: bool = False,
    needs_class: bool = True,
) -> TableLabels:
    """What the rows say of the images at `paths`, which lie below `base`.

    `rows` needs a column that names the image and one of `label`, `class_name`, `subject_id`, `split`, `site` (or of
    their `ALIASES`, in any case), or a column of 0 and 1 for each class. A `label` of 0/1, true/false or yes/no is a
    label; any other values are class names. All other columns are kept as `further`. `folder`: where the table lies
    below the source. `is_part`: the paths are a part of the source by the user's word. `needs_class`: nothing else
    tells the classes.

    Raises InputError naming missing columns, doubled rows, rows that fit several images, and rows without an image
    where they are half of all: but for a table of a larger set, where nearly every image has found its row.
    """
    rows, roles = distinct(rows), roles_of(rows)
    if not rows.num_rows:
        raise InputError("the table of labels has no rows; give one a row for each image")
    columns = {role: rows.column(name).to_pylist() for role, name in roles.items()}
    if folded(roles.get("split", "split")) != "split" and not any(map(_is_split, columns["split"])):
        del roles["split"], columns["split"]  # 'set' and 'subset' may mean anything
    found_split = _split_column(rows, roles) if "split" not in roles else None
    if found_split is not None:
        roles["split"], columns["split"] = found_split, rows[found_split].to_pylist()
    _check_columns(rows, columns)
    names = [as_text(value) or "" for value in columns["path"]]
    found = locate(names, paths, base=base, folder=folder)
    _check_matches(names, found)
    said = _about_matches(names, found, paths, is_part)
    if found_split is not None:
        said.append(f"the column {found_split!r} of the table holds train and test, and is taken for the given split")
    classes: list[str] = []
    if not columns.keys() & {"label", "class_name"} and (needs_class or len(columns) == 1):
        classes, of_row, odd = _one_hot(rows, roles)
        columns |= {"class_name": of_row} if classes else {}
        said += odd
    annotations = [UNKNOWN] * len(paths)
    row_of: list[int | None] = [None] * len(paths)
    for row, annotation in enumerate(_annotations(columns, rows.num_rows)):
        if (position := found.positions[row]) is not None:
            annotations[position], row_of[position] = annotation, row
    taken = {*roles.values(), *classes, *SUSPECT_COLUMNS}
    others = [name for name in rows.column_names if name.strip() and name not in taken]
    further = [column.at(row_of) for column in further_columns(rows, others, "image", MANIFEST_SCHEMA.names)]
    return TableLabels(annotations, further, said, tells_class=bool(columns.keys() & {"label", "class_name"}))


def roles_of(rows: pa.Table, roles: Sequence[str] = tuple(ALIASES)) -> dict[str, str]:
    """Role -> the column that has it. Raises InputError where two columns of that name are there."""
    by_name = {folded(name): name for name in reversed(rows.column_names)}
    found = {role: next((by_name[folded(a)] for a in ALIASES[role] if folded(a) in by_name), None) for role in roles}
    for name in found.values():
        if rows.column_names.count(name) > 1:
            raise InputError(f"the table has several columns called {name!r}; keep one")
    return {role: name for role, name in found.items() if name is not None}


def _split_column(rows: pa.Table, roles: Mapping[str, str]) -> str | None:
    """The column that holds nothing but words for train, validation and test, whatever it is called.

    Raises InputError where several do, and for a flag such as `is_test`: an overlooked test set is trained on.
    """
    others = [name for name in rows.column_names if name not in roles.values()]
    words = {name: {text for value in _values(rows[name]) if (text := as_text(value))} for name in others}
    flags = [name for name in others if split_named(name) and len(words[name]) > 1 and all(map(is_truth, words[name]))]
    parts = {name: {split_named(text) for text in words[name]} for name in others}
    found = [name for name in others if len(parts[name]) > 1 and None not in parts[name]]
    if flags and not found:
        raise InputError(
            f"the column {flags[0]!r} of the table of labels seems to say which images are kept apart; write a column "
            "'split' with train, validation and test, or give it another name"
        )
    if len(found) > 1:
        raise InputError(f"the columns {_some(found)} of the table of labels all hold splits; call one of them 'split'")
    return found[0] if found else None


def is_truth(text: str) -> bool:
    """0 or 1, true or false, yes or no."""
    return _is_set(text) is not None or text.casefold() in ("yes", "no")


def distinct(rows: pa.Table) -> pa.Table:
    """With a number behind the second and later columns of one name, but for those that have a role."""
    roles, seen = set(roles_of(rows).values()), Counter[str]()
    names = []
    for name in rows.column_names:
        seen[name] += 1
        names.append(name if seen[name] == 1 or name in roles else f"{name} {seen[name]}")
    return rows.rename_columns(names)


def _check_columns(rows: pa.Table, columns: Mapping[str, list[Any]]) -> None:
    have = f"the table of labels has the columns {', '.join(rows.column_names) or '(none)'}"
    if "path" not in columns:
        raise InputError(f"{have}, none of which names the image; call one of them 'path' (or {_or('path')})")
    if len(columns) == 1 and not _class_columns(rows, []):
        raise InputError(
            f"{have}, but no label; call one of them 'label' (0 or 1; or {_or('label')}) "
            f"or 'class_name' (or {_or('class_name')}), or give a column of 0 and 1 for each class"
        )


def _or(role: str) -> str:
    return ", ".join(ALIASES[role][1:])


# ---- which image a row means -------------------------------------------------------------------------------


def _check_matches(names: Sequence[str], found: Located) -> None:
    several = [f"row {row} '{names[row]}'" for row, position in enumerate(found.positions) if position == AMBIGUOUS]
    if several:
        raise InputError(
            f"{len(several)} rows of the table of labels fit several images: {_some(several)}; "
            "write the path relative to the source"
        )
    first: dict[int, int] = {}
    doubled = []
    for row, position in enumerate(found.positions):
        if position is not None and first.setdefault(position, row) != row:
            doubled.append(f"rows {first[position]} and {row} '{names[row]}'")
    if doubled:
        raise InputError(f"the table of labels names {len(doubled)} images twice: {_some(doubled)}; keep one row each")


def _about_matches(names: Sequence[str], found: Located, paths: Sequence[str], is_part: bool) -> list[str]:
    """What was looked past, and what found nothing on either side."""
    said = [f"{count:,} rows of the table name their image but for {past}" for past, count in found.past.items()]
    missing = [row for row, position in enumerate(found.positions) if position is None]
    bare = set(range(len(paths))).difference(position for position in found.positions if position is not None)
    if missing:
        reasons: dict[str, list[str]] = {}
        for row, (reason, named) in zip(missing, why_unmatched([names[row] for row in missing], paths), strict=True):
            reasons.setdefault(reason, []).append(f"row {row} {named}")
        told = "; ".join(
            f"{len(rows):,} {reason}, e.g. {', '.join(rows[:_EXAMPLES])}"
            for reason, rows in sorted(reasons.items(), key=lambda item: -len(item[1]))
        )
        is_partial = len(bare) > _FEW * len(paths) and not is_part
        sentence = f"{len(missing):,} of {len(names):,} rows of the table of labels name no image of the source: {told}"
        if len(missing) == len(names) or (2 * len(missing) >= len(names) and is_partial):
            raise InputError(
                f"{sentence}; listed is e.g. '{paths[0]}'; write the paths relative to the source, or their "
                "file names, or leave out the rows of images that lie elsewhere"
            )
        said.append(sentence)
    if bare:
        examples = ", ".join(f"'{paths[at]}'" for at in sorted(bare)[:_EXAMPLES])
        said.append(f"{len(bare):,} of {len(paths):,} images have no row in the table of labels, e.g. {examples}")
    return said


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:_NAMED]) + (f" and {len(items) - _NAMED} more" if len(items) > _NAMED else "")


# ---- what a row says ---------------------------------------------------------------------------------------


def _class_columns(rows: pa.Table, taken: Iterable[str]) -> list[str]:
    """Columns that hold nothing but 0 and 1, and both of them: each may be a class."""
    others = [name for name in rows.column_names if name.strip() and name not in taken]
    found = [name for name in others if {_is_set(value) for value in _values(rows[name])} == {True, False}]
    return found if len(found) >= _FEWEST_CLASSES else []


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Each value once; none of a nested column."""
    return [] if pa.types.is_nested(column.type) else column.unique().to_pylist()


def _is_set(value: Any) -> bool | None:
    return {"1": True, "true": True, "0": False, "false": False}.get((_label_text(value) or "").casefold())


def _one_hot(rows: pa.Table, roles: Mapping[str, str]) -> tuple[list[str], list[str | None], list[str]]:
    """(columns that are classes, the class of each row whose 1 is in one of them, what to know, in sentences).

    Half of the rows with a 1 in none or several columns: they are something else, and nothing is left that tells a
    class. Raises InputError where the table says nothing else either.
    """
    classes = _class_columns(rows, roles.values())
    ones = [[bool(_is_set(value)) for value in rows[name].to_pylist()] for name in classes]
    of_row = [[name for name, is_set in zip(classes, row, strict=True) if is_set] for row in zip(*ones, strict=True)]
    odd = [f"row {row} ({' and '.join(names) or 'none'})" for row, names in enumerate(of_row) if len(names) != 1]
    columns, examples = ", ".join(classes), ", ".join(odd[:_EXAMPLES])
    if 2 * len(odd) >= len(of_row):
        if len(roles) > 1:
            return [], [], []
        raise InputError(
            f"the table of labels has no label, and its columns of 0 and 1 ({columns}) are not one class a row: "
            f"{len(odd)} of {len(of_row)} rows have a 1 in none or several, e.g. {examples}; keep the columns of "
            "classes only, or give a column 'label' or 'class_name'"
        )
    said = [f"the columns {columns} of the table hold 0 and 1: each is taken for a class"]
    if odd:
        said.append(f"{len(odd):,} rows of the table have a 1 in none or several of these: no class, e.g. {examples}")
    return classes, [names[0] if len(names) == 1 else None for names in of_row], said


def _annotations(columns: Mapping[str, list[Any]], n_rows: int) -> list[Annotation]:
    nothing: list[Any] = [None] * n_rows
    labels = [_label_text(value) for value in columns.get("label", nothing)]
    classes = [as_text(value) for value in columns.get("class_name", nothing)]
    known = {value for value in labels if value is not None}
    words = {value: _LABEL_WORDS.get(value.casefold(), common_label(value)) for value in known}
    if "class_name" in columns and (unread := sorted(value for value in known if words[value] is None)):
        raise InputError(f"the label column holds {_some(unread)}; a label is 0 or 1 (or true, false, yes, no)")
    if "class_name" not in columns:
        if all(value.casefold() in _LABEL_WORDS for value in known):
            names = {value: "positive" if words[value] else "negative" for value in known}
            classes = [names[value] if value is not None else None for value in labels]
        else:
            classes = labels
            words = {value: common_label(value) for value in known}
    splits = _splits(columns.get("split", nothing))
    subjects = [_subject(value) for value in columns.get("subject_id", nothing)]
    sites = [as_text(value) for value in columns.get("site", nothing)]
    result = []
    for label, class_name, subject, split, site in zip(labels, classes, subjects, splits, sites, strict=True):
        number = words[label] if label is not None else common_label(class_name) if class_name else None
        if subject and (cell := _C_NMC_NAME.search(subject)):  # its 'Patient_ID' holds the names of files
            class_name = cell[2].lower() if "class_name" not in columns else class_name
            subject = cell[1].upper()
        result.append(Annotation(class_name, number, subject, split, site=site))
    return result


def as_text(value: Any) -> str | None:
    """A cell as text: 3.0 is '3', True is 'true', empty and NaN are None, and what people write for them.

    'NA' taken for a name would make one subject of all whose subject is not known.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return text if text.casefold() not in _NOTHING else None


def _label_text(value: Any) -> str | None:
    """As `as_text`; '1.0', which pandas writes where a column of integers has a gap, is '1'."""
    text = as_text(value)
    return _WHOLE.sub(r"\1", text) if text is not None else None


def _subject(value: Any) -> str | None:
    text = _label_text(value)
    return text if text is not None and text.casefold() not in _NOBODY else None


def _is_split(value: Any) -> bool:
    text = as_text(value)
    return text is not None and split_named(text) is not None


def _splits(values: Sequence[Any]) -> list[Split | None]:
    texts = [as_text(value) for value in values]
    if unknown := sorted({text for text in texts if text is not None and split_named(text) is None}):
        raise InputError(
            f"the split column of the table of labels holds {_some(unknown)}; write train, validation or test"
        )
    return [split_named(text) if text is not None else None for text in texts]
