"""Tables that people bring, of URIs or of labels: CSV or Parquet, read into Arrow as they were written."""

import codecs
import io
import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.base.csv_text import unguarded
from pipeline.base.errors import InputError
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError

SUFFIXES = (".csv", ".parquet")
_DELIMITERS = ",;\t"
_SEPARATOR = re.compile(r'"?sep=([^\w\s"]|\t)"?\1*\r?\n', re.IGNORECASE)  # Excel's own first line
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # xlsx and ods, xls
_QUOTED = re.compile(r'"[^"]*"')
_NOTHING = ["", "NaN", "nan", "NULL", "null"]


def is_table(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def read_table(uri: str, stores: Stores = Stores()) -> pa.Table:
    """All columns, those of a CSV as text: '007' stays so.

    A CSV has commas, semicolons or tabs, or what a first line `sep=` says, and is UTF-8, UTF-16 by its mark, or else
    Windows-1252, as Excel writes it.

    Raises InputError when it is missing or neither CSV nor Parquet.
    """
    try:
        with stores.of(uri).open(uri) as file:
            return _as_text(pq.read_table(file)) if uri.lower().endswith(".parquet") else _read_csv(file.read())
    except StoreError as error:
        raise error.refusal() from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{uri}: not a readable CSV or Parquet table ({error})") from error


def _read_csv(data: bytes) -> pa.Table:
    if data.startswith(_WORKBOOKS):
        raise ValueError("it is a workbook of a spreadsheet; save it as CSV")
    text = text_of(data).lstrip("\r\n")
    if said := _SEPARATOR.match(text):
        text, delimiter = text[said.end() :], said[1]
    else:
        header = _QUOTED.sub("", text.split("\n", 1)[0])
        delimiter = max(_DELIMITERS, key=header.count)
    data = text.encode()
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    first = pyarrow.csv.open_csv(io.BytesIO(data), parse_options=parse)
    types = {name: pa.string() for name in first.schema.names}
    convert = pyarrow.csv.ConvertOptions(column_types=types, null_values=_NOTHING, strings_can_be_null=True)
    return _unguarded(pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=convert))


def _unguarded(table: pa.Table) -> pa.Table:
    """Without what keeps spreadsheets from running a cell, in tables that we wrote and people edited."""
    for index, field in enumerate(table.schema):
        if pc.any(pc.match_substring_regex(table[index], "(^|[;\\t\\r\\n])'")).as_py():
            plain = [None if cell is None else unguarded(cell) for cell in table[index].to_pylist()]
            table = table.set_column(index, field.name, pa.array(plain, pa.string()))
    return table


def text_of(data: bytes) -> str:
    """A file that somebody has edited: UTF-8, UTF-16 by its mark, or else Windows-1252."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _as_text(table: pa.Table) -> pa.Table:
    """Columns of bytes, which some writers make of text, as text."""
    for index, field in enumerate(table.schema):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            table = table.set_column(index, field.name, table[index].cast(pa.string()))
    return table
