"""What tables say beyond class, subject and split, as typed columns beside those of a manifest: age, sex, stain.

A CSV gives text; a column is of the type that all of its values have. '007' stays text, 0 and 1 stay numbers.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.text import column_names
from pipeline.storage.parquet import described

_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]\d+)?")  # '12E3' is a specimen
_LONG = re.compile(r"[+-]?\d{19,}")  # an id, of which a float would lose the end
_LARGEST = pa.scalar(2**63 - 1, pa.uint64())
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
Of = Literal["image", "subject"]
_RESERVED = ("path",)  # what listings note of an image beside what is said of it
_TRUTH = {"true": True, "false": False, "yes": True, "no": False}


@dataclass(frozen=True)
class Column:
    """Of a manifest: what it is called and means, and a value for each image (or row of a table)."""

    field: pa.Field
    values: pa.ChunkedArray

    def at(self, rows: Sequence[int | None]) -> "Column":
        """The values of these rows, null for None."""
        return Column(self.field, self.values.take(pa.array(rows, pa.int64())))


def further_columns(table: pa.Table, names: Sequence[str], of: Of, taken: Iterable[str]) -> list[Column]:
    """The columns `names` of a table of images or subjects, typed, under names of their own.

    One whose name is `taken` gets `of` before it. Nested and binary ones are left out.
    """
    known = {name.casefold() for name in (*taken, *_RESERVED)}
    found = {name: typed(table[name]) for name in names}
    kept = {name: values for name, values in found.items() if values is not None}
    plain = [f"{of}_{name}" if name.casefold() in known else name for name in column_names(list(kept))]
    return [
        Column(described(name, values.type, f"{said!r} of the table of {of}s"), values)
        for name, (said, values) in zip(column_names(plain, taken=known), kept.items(), strict=True)
    ]


def typed(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The column as int64, float64, bool, date32, timestamp or string; None where it is none of them."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return typed(column.cast(kind.value_type))
    if pa.types.is_boolean(kind) or pa.types.is_date32(kind):
        return column
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", tz=kind.tz), safe=False)
    if pa.types.is_date64(kind):
        return column.cast(pa.date32())
    if pa.types.is_integer(kind):
        fits = kind != pa.uint64() or pc.all(pc.less_equal(column, _LARGEST), min_count=0).as_py()
        return column.cast(pa.int64() if fits else pa.string())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), None, numbers)
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return _of_text(column.cast(pa.string())) if is_text else None


def _of_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    trimmed = [text.strip() if text is not None else None for text in column.to_pylist()]
    words = {text for text in trimmed if text}
    kind, read = _reading(words)
    value = {word: read(word) for word in words}
    return pa.chunked_array([pa.array([value.get(text) if text else None for text in trimmed], kind)])


def _reading(words: set[str]) -> tuple[pa.DataType, Callable[[str], Any]]:
    """The type that all words have, and what makes a value of a word."""
    if words and all(_WHOLE.fullmatch(word) for word in words):
        return pa.int64(), int
    if words and all(_NUMBER.fullmatch(word) and not _LONG.fullmatch(word) for word in words):
        return pa.float64(), float
    if words and all(word.casefold() in _TRUTH for word in words):
        return pa.bool_(), lambda word: _TRUTH[word.casefold()]
    if words and all(_is_date(word) for word in words):
        return pa.date32(), date.fromisoformat
    return pa.string(), str


def _is_date(word: str) -> bool:
    try:
        return _DATE.fullmatch(word) is not None and date.fromisoformat(word) is not None
    except ValueError:
        return False
