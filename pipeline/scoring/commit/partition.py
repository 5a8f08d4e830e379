"""Hive partitioning of the output: `key=value` folders, the value taken from where an image lies."""

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import UsageError
from pipeline.sources.rows import place_of


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
        return cls(key, pattern)

    def value(self, path: str) -> str:
        found = re.search(self.pattern, path)
        text = found.group(1) if found else None  # a group may have no part in the match
        return re.sub(r"[^\w.-]", "_", text) if text else "__HIVE_DEFAULT_PARTITION__"

    def split(self, table: pa.Table) -> list[tuple[str, pa.Table]]:
        """(folder with a slash behind it, its rows) of a table with `uri` and `member`."""
        places = map(place_of, table["uri"].to_pylist(), table["member"].to_pylist())
        values = pa.array(map(self.value, places), pa.string())
        return [
            (f"{self.key}={value}/", table.filter(pc.equal(values, value))) for value in sorted(set(values.to_pylist()))
        ]
