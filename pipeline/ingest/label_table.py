"""Labels from a table (CSV or Parquet, already read into Arrow) joined to the paths of the images.

A row names its image by path relative to the source, by URI, by any unique end of the path, or by file name,
with or without extension. Every row must find exactly one image; images without a row stay unlabelled.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.base.errors import InputError
from pipeline.ingest.annotation import UNKNOWN, Annotation, normalize
from pipeline.ingest.class_names import common_label
from pipeline.ingest.split_names import Split, split_named

ALIASES: Mapping[str, tuple[str, ...]] = {
    "path": (
        "path", "uri", "url", "filename", "file_name", "file", "filepath", "file_path", "image", "image_path",
        "image_name", "image_file", "new_names", "key", "image_id", "id",
    ),  # 'new_names' is what C-NMC 2019 calls it
    "label": ("label", "labels", "target", "y", "is_positive"),
    "class_name": ("class_name", "class", "category", "cell_type", "type", "diagnosis"),
    "subject_id": ("subject_id", "subject", "patient_id", "patient", "case_id", "case", "donor"),
    "split": ("split", "subset", "partition", "set"),
}  # fmt: skip
_LABEL_WORDS = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0}
_WHOLE = re.compile(r"^(\d+)\.0+$")
_NAMED = 5  # rows named in an error
_C_NMC_NAME = re.compile(r"UID_(H?\d+)_\d+_\d+_(all|hem)", re.IGNORECASE)


def annotate_from_table(
    rows: pa.Table, paths: Sequence[str], *, folder: str = "", allow_unmatched: bool = False
) -> tuple[list[Annotation], int]:
    """One annotation a path, in order, UNKNOWN for paths without a row; and how many rows name no path.

    `rows` needs a column that names the image and a column `label` or `class_name` (or one of their
    `ALIASES`, in any case); `subject_id` and `split` are optional. A `label` of 0/1, true/false or yes/no is
    a label; any other values are class names. `folder`: where the table lies below the source; names that several
    images have are looked for there first. Raises InputError naming missing columns, rows of an unknown or
    ambiguous image, and doubled rows. `allow_unmatched` lets rows pass whose image is not in `paths` (a table
    of a larger set).
    """
    columns = _columns(rows)
    found = _locate(columns["path"], paths, folder)
    _check_matches(columns["path"], found, allow_unmatched)
    annotations = _annotations(columns, rows.num_rows)
    result = [UNKNOWN] * len(paths)
    for annotation, position in zip(annotations, found, strict=True):
        if position is not None and position >= 0:
            result[position] = annotation
    return result, sum(position is None for position in found)


def _columns(rows: pa.Table) -> dict[str, list[Any]]:
    by_name = {name.strip().casefold(): name for name in rows.column_names}
    columns: dict[str, list[Any]] = {}
    for role, aliases in ALIASES.items():
        if name := next((by_name[alias] for alias in aliases if alias in by_name), None):
            if rows.column_names.count(name) > 1:
                raise InputError(f"the table of labels has several columns called {name!r}; keep one")
            columns[role] = rows.column(name).to_pylist()
    have = f"the table of labels has the columns {', '.join(rows.column_names) or '(none)'}"
    if "path" not in columns:
        raise InputError(f"{have}, none of which names the image; call one of them 'path' (or {_or('path')})")
    if "label" not in columns and "class_name" not in columns:
        raise InputError(
            f"{have}, but no label; call one of them 'label' (0 or 1; or {_or('label')}) "
            f"or 'class_name' (or {_or('class_name')})"
        )
    return columns


def _or(role: str) -> str:
    return ", ".join(ALIASES[role][1:])


# ---- which image a row means -------------------------------------------------------------------------------

_AMBIGUOUS = -1


def _locate(names: Sequence[Any], paths: Sequence[str], folder: str) -> list[int | None]:
    """Position in `paths` of every row's image: None where there is none, _AMBIGUOUS where there are several."""
    plain = [normalize(path) for path in paths]
    found = _locate_among(names, plain)
    inside = [position for position, path in enumerate(plain) if path.startswith(f"{folder}/")] if folder else []
    if not inside:
        return found
    beside = _locate_among(names, [plain[position][len(folder) + 1 :] for position in inside])
    return [
        inside[near] if near is not None and near >= 0 and far == _AMBIGUOUS else far
        for near, far in zip(beside, found, strict=True)
    ]


def _locate_among(names: Sequence[Any], plain: Sequence[str]) -> list[int | None]:
    exact = _index(plain)
    endings: dict[tuple[int, bool], dict[str, int]] = {}  # (folders kept, extension cut) -> ending -> position

    def by_ending(name: str, cut: bool) -> int | None:
        depth = name.count("/") + 1
        if (depth, cut) not in endings:
            ends = ("/".join(path.split("/")[-depth:]) for path in plain)
            endings[depth, cut] = _index(_without_extension(end) if cut else end for end in ends)
        return endings[depth, cut].get(name)

    def locate(value: Any) -> int | None:
        name = normalize(str(value)) if value is not None else ""
        if not name:
            return None
        if name in exact:
            return exact[name]
        rooted = "://" in str(value) or str(value).startswith("/")
        tail = name.partition("://")[2] or name
        while "/" in tail:  # drop leading folders one by one; only a full address may shrink to a bare file name
            tail = tail.partition("/")[2]
            if tail in exact and (rooted or "/" in tail):
                return exact[tail]
        if rooted:
            return None
        position = by_ending(name, cut=False)
        return by_ending(name, cut=True) if position is None else position

    return [locate(value) for value in names]


def _index(names: Iterable[str]) -> dict[str, int]:
    index: dict[str, int] = {}
    for position, name in enumerate(names):
        index[name] = _AMBIGUOUS if name in index else position
    return index


def _without_extension(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _check_matches(names: Sequence[Any], found: Sequence[int | None], allow_unmatched: bool) -> None:
    missing = [f"row {row} '{names[row]}'" for row, position in enumerate(found) if position is None]
    if missing and (not allow_unmatched or len(missing) == len(found)):
        raise InputError(
            f"{len(missing)} of {len(found)} rows of the table of labels name no image of the source: "
            f"{_some(missing)}; paths must be relative to the source, or its file names"
        )
    several = [f"row {row} '{names[row]}'" for row, position in enumerate(found) if position == _AMBIGUOUS]
    if several:
        raise InputError(
            f"{len(several)} rows of the table of labels fit several images: {_some(several)}; "
            "write the path relative to the source"
        )
    first: dict[int, int] = {}
    doubled = []
    for row, position in enumerate(found):
        if position is not None and first.setdefault(position, row) != row:
            doubled.append(f"rows {first[position]} and {row} '{names[row]}'")
    if doubled:
        raise InputError(f"the table of labels names {len(doubled)} images twice: {_some(doubled)}; keep one row each")


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:_NAMED]) + (f" and {len(items) - _NAMED} more" if len(items) > _NAMED else "")


# ---- what a row says ---------------------------------------------------------------------------------------


def _annotations(columns: Mapping[str, list[Any]], n_rows: int) -> list[Annotation]:
    nothing: list[Any] = [None] * n_rows
    labels = [_label_text(value) for value in columns.get("label", nothing)]
    classes = [_text(value) for value in columns.get("class_name", nothing)]
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
    subjects = [_text(value) for value in columns.get("subject_id", nothing)]
    result = []
    for label, class_name, subject, split in zip(labels, classes, subjects, splits, strict=True):
        number = words[label] if label is not None else common_label(class_name) if class_name else None
        if subject and (cell := _C_NMC_NAME.search(subject)):  # its 'Patient_ID' holds the names of files
            class_name = cell[2].lower() if "class_name" not in columns else class_name
            subject = cell[1].upper()
        result.append(Annotation(class_name, number, subject, split))
    return result


def _text(value: Any) -> str | None:
    """A cell as text: 3.0 is '3', True is 'true', empty and NaN are None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _label_text(value: Any) -> str | None:
    """As `_text`; '1.0', which pandas writes where a column of integers has a gap, is '1'."""
    text = _text(value)
    return _WHOLE.sub(r"\1", text) if text is not None else None


def _splits(values: Sequence[Any]) -> list[Split | None]:
    texts = [_text(value) for value in values]
    if unknown := sorted({text for text in texts if text is not None and split_named(text) is None}):
        raise InputError(
            f"the split column of the table of labels holds {_some(unknown)}; write train, validation or test"
        )
    return [split_named(text) if text is not None else None for text in texts]
