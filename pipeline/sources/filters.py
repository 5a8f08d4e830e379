"""What of a source counts, by path, name and age; and what a shell pattern means on S3, where no shell expands it."""

import fnmatch
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.base.errors import UsageError
from pipeline.sources.rows import place_of


@dataclass(frozen=True)
class Filters:
    """Patterns are shell globs on the path below the source, or on the file name."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    since: datetime | None = None  # only objects modified at or after it

    def refuse_member(self, path: str, member: str, mtime: float) -> str | None:
        """As `refuse`, for a member of the archive at `path`; patterns may name the archive, the member, or both."""
        return self.refuse([path, member, place_of(path, member)], mtime)

    def refuse(self, names: Sequence[str], mtime: float) -> str | None:
        """Why something known by these names is left out, None if it is not."""
        if self.include and not matches(names, self.include):
            return "not in --include"
        if self.exclude and matches(names, self.exclude):
            return "in --exclude"
        return "older than --since" if self.is_too_old(mtime) else None

    def is_too_old(self, mtime: float) -> bool:
        return self.since is not None and mtime < self.since.timestamp()


NO_FILTERS = Filters()


def matches(names: Sequence[str], patterns: Iterable[str]) -> bool:
    """Whether one of the names, or the last part of one, fits one of the patterns."""
    candidates = {name for path in names for name in (path, posixpath.basename(path))}
    return any(fnmatch.fnmatchcase(name, pattern) for name in candidates for pattern in patterns)


def parse_since(text: str) -> datetime:
    """`2026-11-01`, an ISO 8601 time (UTC unless it says so), or an age such as `36h` or `7d`."""
    units = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
    try:
        if text[-1:] in units:
            return datetime.now(UTC) - timedelta(seconds=float(text[:-1]) * units[text[-1]])
        parsed = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--since {text!r}: give a date (2026-11-01), a time, or an age (36h, 7d)") from error
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


@dataclass(frozen=True)
class UriPattern:
    """A shell pattern over the objects of a store: `s3://archive/2026-11-*/*.tar`.

    `*` and `?` stop at slashes, `**` does not; a pattern that ends at a folder means everything in it.
    """

    uri: str

    @property
    def literal(self) -> str:
        """What every match begins with."""
        return re.split(r"[*?[]", self.uri, maxsplit=1)[0]

    @property
    def folder(self) -> str:
        """The last folder before the first wildcard: what paths are relative to."""
        return self.literal.rpartition("/")[0]

    def compiled(self) -> re.Pattern[str]:
        return re.compile(_regex(self.uri.rstrip("/")) + r"(?:/.*)?\Z", re.DOTALL)


_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\]|.", re.DOTALL)
_WILDCARDS = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}


def _regex(pattern: str) -> str:
    parts = []
    for token in _TOKENS.findall(pattern):
        if token in _WILDCARDS:
            parts.append(_WILDCARDS[token])
        elif len(token) > 2 and token.startswith("["):
            body = token[1:-1].replace("\\", r"\\").replace("[", r"\[")
            parts.append("[" + ("^" + body[1:] if body.startswith("!") else body.replace("^", r"\^", 1)) + "]")
        else:
            parts.append(re.escape(token))
    return "".join(parts)
