"""Hive partitioning of the output: `key=value` folders, the value taken from where an image lies."""

import hashlib
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import UsageError
from pipeline.scoring.schemas import prediction_schema, quarantine_schema
from pipeline.sources.rows import place_of

_MOST_BYTES = 160  # of a value: no folder's name may have more than 255, its key and `=` included


def _columns() -> set[str]:
    """Of the files that lie in the folders, in lower case: DuckDB and Spark do not tell case apart."""
    return {name.casefold() for schema in (prediction_schema((), ()), quarantine_schema()) for name in schema.names}


@dataclass(frozen=True)
class Partition:
    """The value is what the first group of `pattern` finds."""

    key: str
    pattern: str

    @classmethod
    def parse(cls, text: str) -> "Partition":
        key, _, pattern = text.partition("=")
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise UsageError(f"--partition-by {text!r}: not a pattern ({error})") from error
        if not re.fullmatch(r"\w+", key) or groups != 1:
            raise UsageError(f"--partition-by {text!r}: give KEY=REGEX with one group, e.g. 'site=/site-([^/]+)/'")
        if key.startswith("_"):
            raise UsageError(
                f"--partition-by {text!r}: readers pass over folders that begin with _; choose another name"
            )
        if key.casefold() in _columns() or key.casefold().startswith(("prob_", "meta_")):
            raise UsageError(
                f"--partition-by {text!r}: {key} is a column of the files too, and readers refuse such folders; choose "
                f"another name, e.g. by_{key}"
            )
        return cls(key, pattern)

    def value(self, path: str) -> str:
        found = re.search(self.pattern, path)
        text = found.group(1) if found else None  # a group may have no part in the match
        if not text:
            return "__HIVE_DEFAULT_PARTITION__"
        value = re.sub(r"[^\w.-]", "_", text)
        if len(value.encode()) <= _MOST_BYTES:
            return value
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return f"{value.encode()[: _MOST_BYTES - 17].decode('utf-8', 'ignore')}-{digest}"

    def split(self, table: pa.Table) -> list[tuple[str, pa.Table]]:
        """(folder with a slash behind it, its rows) of a table with `uri` and `member`."""
        places = map(place_of, table["uri"].to_pylist(), table["member"].to_pylist())
        values = pa.array(map(self.value, places), pa.string())
        return [
            (f"{self.key}={value}/", table.filter(pc.equal(values, value))) for value in sorted(set(values.to_pylist()))
        ]
