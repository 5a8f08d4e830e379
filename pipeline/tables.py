"""Tables that people bring, of URIs or of labels: CSV or Parquet, read into Arrow as they were written."""

import io

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.storage import S3Settings, StoreError, store_for

SUFFIXES = (".csv", ".parquet")
_DELIMITERS = ",;\t"
_NOTHING = ["", "NaN", "nan", "NULL", "null"]


def is_table(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def read_table(uri: str, s3: S3Settings | None = None) -> pa.Table:
    """All columns, those of a CSV as text: '007' stays so. Commas, semicolons or tabs between them; UTF-8, BOM or not.

    Raises InputError when it is missing or neither CSV nor Parquet.
    """
    try:
        with store_for(uri, s3).open(uri) as file:
            return pq.read_table(file) if uri.lower().endswith(".parquet") else _read_csv(file.read())
    except StoreError as error:
        raise InputError(str(error)) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{uri}: not a readable CSV or Parquet table ({error})") from error


def _read_csv(data: bytes) -> pa.Table:
    data = data.removeprefix(b"\xef\xbb\xbf")
    header = data.split(b"\n", 1)[0].decode("utf-8", "replace")
    parse = pyarrow.csv.ParseOptions(delimiter=max(_DELIMITERS, key=header.count), newlines_in_values=True)
    first = pyarrow.csv.open_csv(io.BytesIO(data), parse_options=parse)
    types = {name: pa.string() for name in first.schema.names}
    convert = pyarrow.csv.ConvertOptions(column_types=types, null_values=_NOTHING, strings_can_be_null=True)
    return pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=convert)
