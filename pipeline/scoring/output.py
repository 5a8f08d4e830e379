"""Parquet files of a run, put in their place whole while their rows come piece by piece."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.scoring.run_folder import RunFolder

ROW_GROUP = 16 * 1024  # rows, about 5 MB of columns
_LOOSE_ROWS = 4096
SERIES_ROWS = 1_000_000


@dataclass(frozen=True)
class Written:
    """One output file, as recorded in parts.json."""

    name: str
    rows: int
    bytes: int
    sha256: str


class OutputFile:
    """A file in the making. Memory holds the rows of one row group, and what is packed already."""

    def __init__(self, schema: pa.Schema) -> None:
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(self._buffer, schema, compression="zstd", store_schema=True)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._schema = schema
        self._loose: list[dict[str, Any]] = []
        self.rows = 0

    def add_row(self, row: dict[str, Any]) -> None:
        """Append one row by column names; a column that is missing is null."""
        self._loose.append(row)
        self.rows += 1
        if len(self._loose) >= _LOOSE_ROWS:
            self._pack()

    def _pack(self) -> None:
        if self._loose:
            rows, self._loose = self._loose, []
            self._append(pa.Table.from_pylist(rows, self._schema))

    def add(self, table: pa.Table) -> None:
        """Append rows of the file's schema."""
        self.rows += table.num_rows
        self._append(table)

    def _append(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting_rows:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=self._waiting_rows)
            self._waiting, self._waiting_rows = [], 0

    def finish(self) -> bytes:
        """The whole file; nothing can be added any more."""
        self._pack()
        self._flush()
        self._writer.close()
        return self._buffer.getvalue()

    def write(self, folder: RunFolder, name: str) -> Written:
        """Finish the file and put it at `name` in the run's folder."""
        data = self.finish()
        folder.write(name, data)
        return Written(name, self.rows, len(data), hashlib.sha256(data).hexdigest())


class OutputSeries:
    """Files of one kind, `<kind>/part-000000.parquet` and so on, each written when it is full: memory stays bounded."""

    def __init__(self, folder: RunFolder, kind: str, schema: pa.Schema) -> None:
        self._folder, self._kind, self._schema = folder, kind, schema
        self._open: OutputFile | None = None
        self._written: list[Written] = []

    def add_row(self, row: dict[str, Any]) -> None:
        self._file().add_row(row)

    def add(self, table: pa.Table) -> None:
        self._file().add(table)

    def _file(self) -> OutputFile:
        if self._open is not None and self._open.rows >= SERIES_ROWS:
            self._close()
        self._open = self._open or OutputFile(self._schema)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            name = f"{self._kind}/part-{len(self._written):06d}.parquet"
            self._written.append(self._open.write(self._folder, name))
            self._open = None

    def finish(self) -> list[Written]:
        """All files; none where there was no row."""
        self._close()
        return self._written
