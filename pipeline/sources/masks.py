"""Masks and annotations beside the images they belong to: known by their names, once an original shows it.

A name alone proves nothing: `Seg` is a class of cells as well. So what sounds like a mask is one where its original
lies beside it under the same name without the word (`cell_mask.png`, `cell.png`), or where folders run in parallel
(`masks/7.png`, `images/7.png`; a folder `Ground Truth/Baso/areaforexpert1/7_expert.bmp`, `Main Dataset/Baso/7.bmp`).
"""

import functools
import itertools
import posixpath
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.sources.filters import matches
from pipeline.sources.rows import NESTED

MASKS = "masks"  # why an image is left out
_EXAMPLES = 3
MASKS_NAMED = 20  # of those, so many are told by name
_WORDS = (
    r"(?:masks?|segm?|segmentations?|segmented|annot|annotated|annotations?|experts?|gt|ground[ _-]?truth"
    r"|overlays?|contours?|labels?|masken?|masques?|m[aá]scaras?)"
)
_SUFFIX = re.compile(rf"(?P<stem>.+?)[ _.-]+{_WORDS}[ _-]?\d*", re.IGNORECASE)
_PREFIX = re.compile(rf"{_WORDS}[ _.-]+(?P<stem>.+)", re.IGNORECASE)
_BREAKS = re.compile(r"[ _.!-]+")
# Folders: words that no class of cells has, wherever in a name; names that a class may have; and what lies beside them.
_STRONG = re.compile(r"masks?|masken?|masques?|m[aá]scaras?|annotations?|groundtruths?|ground truth|areaforexperts?\d*")
_TWO = re.compile(r"[ _.-]+([^\W\d_]+)[ _.-]+([^\W\d_]+)\Z")  # `7_nucleus_mask`, `7_segmentation_mask`
_WEAK = re.compile(r"segm?|segmentations?|segmented|gt|labels?|contours?|overlays?", re.IGNORECASE)
_IMAGES = re.compile(r"(?:images?|imgs?|originals?|raw|rgb|jpegimages|inputs?)(?:[ _.!-].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class _Suspect:
    """A path whose name sounds like a mask's. `stems`: what its original may be called."""

    above: str  # the folder that holds the first folder of masks
    below: tuple[str, ...]  # folders below that, without those of masks
    folder: str
    stems: tuple[str, ...]
    has_suffix: bool
    is_strong: bool  # by its folders
    is_weak: bool


class Masks:
    """Takes the paths of all images that a listing meets; memory is 8 bytes each, and the names of their folders."""

    def __init__(self, include: Sequence[str] = ()) -> None:
        self._include = include
        self._keys = array("q")
        self._sorted = np.empty(0, np.int64)
        self._inside: defaultdict[str, set[str]] = defaultdict(set)  # folder -> folders in it
        self._folders: set[str] = set()

    def is_suspect(self, path: str) -> bool:
        """Whether it may be a mask: then `find` decides, once all paths were shown. If not it may be an original."""
        folder, stem = _split(path)
        sounds = _is_mask_folder(folder) or _SUFFIX.fullmatch(stem) or _PREFIX.fullmatch(stem) or _two_words(stem)
        if sounds and not self._is_asked_for(path):
            return True
        self._keys.append(_key(folder, stem))
        if folder not in self._folders:
            self._add_folder(folder)
        return False

    def _add_folder(self, folder: str) -> None:
        self._folders.add(folder)
        while folder:
            above, _, name = folder.rpartition("/")
            if name in self._inside[above]:
                return
            self._inside[above].add(name)
            folder = above

    def _is_asked_for(self, path: str) -> bool:
        """Whether a pattern of `--include` means it, and not what it would be called without the words."""
        if not self._include:
            return False
        folder, stem = _split(path)
        parts = [part for part in folder.split("/") if part and not _is_mask_folder(part)]
        plain = "/".join([*parts, min(_stems(stem), key=len) + posixpath.splitext(path)[1]])
        return any(_fits(path, pattern) and not _fits(plain, pattern) for pattern in self._include)

    def find(self, paths: Iterable[str]) -> list[bool]:
        """Which of the suspects are masks. Of a folder of masks all are, when one is."""
        self._sorted = np.sort(np.frombuffer(self._keys, np.int64)) if self._keys else self._sorted
        suspects = [_suspect(path) for path in paths]
        proven = [self._is_proven(suspect) for suspect in suspects]
        folders = {one.folder for one, is_proven in zip(suspects, proven, strict=True) if is_proven and one.is_strong}
        folders |= {one.folder for one in suspects if self._lies_beside_images(one)}
        return [ok or one.folder in folders for one, ok in zip(suspects, proven, strict=True)]

    def _is_proven(self, one: _Suspect) -> bool:
        if one.has_suffix and any(self._holds(one.folder, stem) for stem in one.stems[1:]):
            return True
        return one.is_strong and any(self._holds(folder, stem) for folder in self._parallel(one) for stem in one.stems)

    def _parallel(self, one: _Suspect) -> Iterator[str]:
        """Folders in which originals of a folder of masks may lie: above it, and beside it."""
        yield _joined(one.above, *one.below)
        for name in self._inside.get(one.above, ()):
            yield _joined(one.above, name, *one.below)

    def _lies_beside_images(self, one: _Suspect) -> bool:
        if not (one.is_strong or one.is_weak):
            return False
        return any(_IMAGES.fullmatch(name) for name in self._inside.get(one.above, ()))

    def _holds(self, folder: str, stem: str) -> bool:
        key = _key(folder, stem)
        at = int(self._sorted.searchsorted(key))
        return at < len(self._sorted) and bool(self._sorted[at] == key)


def masks_note(count: int, places: Sequence[str]) -> str:
    """A sentence on masks that were left out, of which the first are named."""
    return (
        f"{count:,} masks or annotations of other images are left out, e.g. {', '.join(places[:_EXAMPLES])}; an "
        "--include that names them ('*_mask.*') takes them in"
    )


def _split(path: str) -> tuple[str, str]:
    folder, name = posixpath.split(path)
    return folder, posixpath.splitext(name)[0]


def _key(folder: str, stem: str) -> int:
    return hash((folder, stem.casefold()))


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _fits(path: str, pattern: str) -> bool:
    return matches([path, path.rpartition(NESTED)[2]], [pattern])


@functools.lru_cache(maxsize=65_536)
def _is_mask_folder(path: str) -> bool:
    """Whether one of the folders of a path sounds like one of masks."""
    return any(_is_strong(name) or _WEAK.fullmatch(name) for name in path.split("/"))


def _is_strong(name: str) -> bool:
    words = [word for word in _BREAKS.split(name.lower()) if word]
    pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    return any(_STRONG.fullmatch(word) for word in (*words, *pairs))


def _stems(stem: str) -> tuple[str, ...]:
    """The name itself, then what it is without a word for masks."""
    found = (pattern.fullmatch(stem) for pattern in (_SUFFIX, _PREFIX))
    return (stem, *(match["stem"] for match in found if match), *filter(None, [_two_words(stem)]))


def _two_words(stem: str) -> str | None:
    """What a name is without its last two words, where one of them is a mask's beyond doubt."""
    found = _TWO.search(stem)
    return stem[: found.start()] if found and any(_STRONG.fullmatch(word.lower()) for word in found.groups()) else None


def _suspect(path: str) -> _Suspect:
    folder, stem = _split(path)
    parts = folder.split("/")
    strong = [index for index, name in enumerate(parts) if _is_strong(name)]
    weak = [index for index, name in enumerate(parts) if _WEAK.fullmatch(name)]
    of_masks = sorted({*strong, *weak})
    first = of_masks[0] if of_masks else len(parts)
    below = tuple(name for index, name in enumerate(parts) if index > first and index not in of_masks)
    stems = _stems(stem)
    above = "/".join(parts[:first])
    return _Suspect(above, below, folder, stems, len(stems) > 1, bool(strong), bool(weak))
