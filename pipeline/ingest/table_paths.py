"""Which listed image a row of a table means, however its path was written.

Takes names and listed paths as strings, gives a position for each name. Paths of other systems differ by slashes, drive
letters, blanks, letter case and the way letters are composed: each is looked past in turn, only where everything before
found nothing, and only where one image is left.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from unicodedata import normalize as unicode_normalize

from pipeline.ingest.annotation import normalize
from pipeline.ingest.class_names import common_label
from pipeline.ingest.split_names import split_named

AMBIGUOUS = -1
_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])")
_FOREIGN = "another folder at their beginning"
_FEWEST_FOLDERS = 2  # names that a path under a foreign folder must share with the listed one, the file's included


@dataclass
class Located:
    """`positions`: of each name's image in the paths, None where there is none, AMBIGUOUS where there are several.

    `past`: what had to be looked past -> names that were found so.
    """

    positions: list[int | None]
    past: Counter[str] = field(default_factory=Counter)


def locate(names: Sequence[str], paths: Sequence[str], *, base: str = "", folder: str = "") -> Located:
    """The image of each name among `paths`, which lie below `base`.

    A name is a path below the source, a URI, any unique end of the path, or a file name with or without extension.
    `folder`: where the table lies below the source; names that several images have are looked for there first.
    """
    found = Located([None] * len(names))
    for past, written in _SPELLINGS:
        left = [row for row, position in enumerate(found.positions) if position is None and names[row].strip()]
        if not left:
            break
        index = _Index([written(path) for path in paths], written(base), written(folder))
        taken = set(found.positions)
        for row in left:
            position = index.find(written(names[row]), _is_rooted(names[row]))
            if position is not None and (position == AMBIGUOUS or position not in taken):
                found.positions[row] = position
                found.past[past] += 1
        if past == _SPELLINGS[-1][0]:
            _find_foreign(index, [written(name) for name in names], names, found)
    found.past.pop("", None)
    return found


def why_unmatched(names: Sequence[str], paths: Sequence[str]) -> list[tuple[str, str]]:
    """For each name without an image: (reason, the name with the listed path that comes nearest, if any)."""
    by_name = {_plain(path).rpartition("/")[2]: path for path in paths}
    by_stem = {_without_extension(name): path for name, path in by_name.items()}
    reasons = []
    for name in names:
        last = _plain(name).rpartition("/")[2]
        if not last:
            reasons.append(("have no name of an image", "''"))
        elif last in by_name:
            reasons.append(("name a file that lies in another folder", f"'{name}' (listed: '{by_name[last]}')"))
        elif near := by_stem.get(_without_extension(last)) or by_stem.get(last):
            reasons.append(("name a file that has another suffix", f"'{name}' (listed: '{near}')"))
        else:
            reasons.append(("name a file that is not listed", f"'{name}'"))
    return reasons


# ---- ways of writing ---------------------------------------------------------------------------------------


def _tidy(path: str) -> str:
    """With slashes, without a drive letter or blanks around names, letters composed."""
    path = _DRIVE.sub("", path.strip().strip("\"'"), count=1).replace("\\", "/")
    return normalize(unicode_normalize("NFC", "/".join(part.strip() for part in path.split("/"))))


def _plain(path: str) -> str:
    return _tidy(path).casefold()


# What is looked past, in this order.
_SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("", normalize),
    ("slashes, drive letters, blanks or composed letters", _tidy),
    ("letter case, slashes, drive letters or blanks", _plain),
)


def _is_rooted(name: str) -> bool:
    """A full address, of this system or another: it may begin elsewhere than the source does."""
    name = name.strip()
    return "://" in name or name.startswith(("/", "\\")) or _DRIVE.match(name) is not None


# ---- finding -----------------------------------------------------------------------------------------------


class _Index:
    """The listed paths, written in one way, found by themselves and by their ends."""

    def __init__(self, paths: Sequence[str], base: str, folder: str) -> None:
        self.paths = paths
        self.exact = _unique(paths)
        self.wholes = [f"{base}/{path}" for path in paths] if base else paths
        self._base = base
        self._ends: dict[tuple[int, bool, bool], dict[str, int]] = {}
        inside = [position for position, path in enumerate(paths) if path.startswith(f"{folder}/")] if folder else []
        self._inside = inside
        below = [paths[at][len(folder) + 1 :] for at in inside]
        self._beside = _Index(below, f"{base}/{folder}", "") if inside else None

    def find(self, name: str, is_rooted: bool) -> int | None:
        found = self._find(name, is_rooted)
        if found == AMBIGUOUS and self._beside is not None:
            near = self._beside.find(name, is_rooted)
            return self._inside[near] if near is not None and near >= 0 else found
        return found

    def _find(self, name: str, is_rooted: bool) -> int | None:
        if name in self.exact:
            return self.exact[name]
        parts = (name.partition("://")[2] or name).split("/")
        for cut in range(1, len(parts)):  # only a full address may shrink to a bare file name
            tail = "/".join(parts[cut:])
            if tail in self.exact and (is_rooted or "/" in tail) and self._is_own(parts[:cut]):
                return self.exact[tail]
        if is_rooted:
            return None
        for whole, cut in ((False, False), (False, True), (True, False), (True, True)):
            if (position := self.by_end(name, whole=whole, cut=cut)) is not None:
                return position
        return None

    def _is_own(self, folders: Sequence[str]) -> bool:
        """Whether these are the last folders on the way to the source, and not those of another patient's images."""
        named = [folder for folder in folders if folder not in ("", ".", "..")]
        own = (self._base.partition("://")[2] or self._base).split("/")
        return own[max(0, len(own) - len(named)) :] == named if named else True

    def by_end(self, end: str, *, whole: bool = False, cut: bool = False) -> int | None:
        """By as many names as `end` has. `whole`: of the path with its base; `cut`: without extensions."""
        depth = end.count("/") + 1
        key = (depth, whole, cut)
        if key not in self._ends:
            ends = ("/".join(path.split("/")[-depth:]) for path in (self.wholes if whole else self.paths))
            self._ends[key] = _unique(_without_extension(part) if cut else part for part in ends)
        return self._ends[key].get(end)


def _find_foreign(index: _Index, written: Sequence[str], names: Sequence[str], found: Located) -> None:
    """Addresses that begin in another folder than the source, always in the same one.

    A full one may stand for a folder inside the source as well; what is no full one, for the source itself alone.
    """
    taken = set(found.positions)
    pairs: dict[int, tuple[int, str, str]] = {}  # row -> position, folder there, folder here
    for row, position in enumerate(found.positions):
        if position is not None:
            continue
        parts = written[row].split("/")
        for depth in range(len(parts) - 1, _FEWEST_FOLDERS - 1, -1):
            end = "/".join(parts[-depth:])
            at = index.by_end(end, whole=True)
            if at is not None:
                if at != AMBIGUOUS and at not in taken and (_is_rooted(names[row]) or end.endswith(index.paths[at])):
                    pairs[row] = (at, written[row].removesuffix(end), index.wholes[at].removesuffix(end))
                break
    here_of, there_of = dict[str, set[str]](), dict[str, set[str]]()
    for _, there, here in pairs.values():
        here_of.setdefault(there, set()).add(here)
        there_of.setdefault(here, set()).add(there)
    _add_own_names(index, written, found, there_of)
    for row, (at, there, here) in pairs.items():
        if len(here_of[there]) == len(there_of[here]) == 1 and not _contradict(there, here):
            found.positions[row] = at
            found.past[_FOREIGN] += 1


def _add_own_names(index: _Index, written: Sequence[str], found: Located, there_of: dict[str, set[str]]) -> None:
    """To each folder here what the rows that have their image call it: one that has its own name has no other."""
    for row, position in enumerate(found.positions):
        if position is None or position == AMBIGUOUS:
            continue
        whole = index.wholes[position]
        at = whole.rfind("/")
        while at >= 0:
            here, rest = whole[: at + 1], whole[at + 1 :]
            if not f"/{written[row]}".endswith(f"/{rest}"):
                break
            if here in there_of:
                there_of[here].add(written[row].removesuffix(rest))
            at = whole.rfind("/", 0, at)


def _contradict(there: str, here: str) -> bool:
    """Whether two folders are both of one kind, and so not each other's copy: patients, splits, classes."""
    a, b = there.rstrip("/").rpartition("/")[2], here.rstrip("/").rpartition("/")[2]
    tells = (split_named, common_label, lambda name: re.findall(r"\d+", name) or None)
    return any(tell(a) is not None and tell(b) is not None and tell(a) != tell(b) for tell in tells)


def _unique(names: Iterable[str]) -> dict[str, int]:
    index: dict[str, int] = {}
    for position, name in enumerate(names):
        index[name] = AMBIGUOUS if name in index else position
    return index


def _without_extension(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)
