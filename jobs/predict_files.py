"""Which files `leukoray predict` is to send: FILES as typed, in their order, each once.

Named files are sent whatever they are called. Of folders what looks like an image is, without what desktops leave there
and without masks; archives are not opened.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote_from_bytes

from pipeline.base.errors import Code, ImageRejected, InputError, Stage, UsageError
from pipeline.storage.local import LocalStore
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, is_s3, local_path

STDIN = "-"
_ARCHIVES = "archives"


@dataclass(frozen=True)
class Named:
    """One file to send. `refused`: why it is known already that it cannot be."""

    path: str  # as given, or below the folder as given
    refused: ImageRejected | None = None

    @property
    def shown(self) -> str:
        """The path; where its bytes are no UTF-8 its `file://` URI with percent escapes, as in every other table."""
        try:
            self.path.encode()
        except UnicodeEncodeError:
            return "file://" + quote_from_bytes(os.fsencode(os.path.abspath(self.path)))
        return self.path


@dataclass
class FileList:
    """`left_out`: of folders, by reason. `doubled`: named more than once."""

    files: list[Named] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    doubled: int = 0


def list_files(given: Sequence[str]) -> FileList:
    """Raises InputError where there is no file at all, UsageError for what is not on this machine."""
    found, seen = FileList(), set[str]()
    for path in _typed(given):
        if is_s3(path):
            raise UsageError(f"{path}: only files of this machine are sent; leukoray score reads buckets")
        place = local_path(path)
        for named in _below(place, found.left_out) if os.path.isdir(place) else [Named(place)]:
            key = absolute(named.path)
            if key in seen:
                found.doubled += 1
                continue
            seen.add(key)
            found.files.append(named)
    if not found.files:
        raise InputError(f"{' '.join(given)}: no image ({left_out_words(found.left_out) or 'nothing there'})")
    return found


def left_out_words(left_out: Counter[str]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in left_out.most_common())


def _typed(given: Sequence[str]) -> Iterator[str]:
    """`-` stands for paths on stdin: one a line, or each before a zero byte as `find -print0` writes them."""
    for path in given:
        if path != STDIN:
            yield path
            continue
        data = sys.stdin.buffer.read()
        yield from (os.fsdecode(line) for line in data.split(b"\0" if b"\0" in data else b"\n") if line.strip())


def _below(folder: str, left_out: Counter[str]) -> list[Named]:
    """Images below a folder, in the order of their paths."""
    from pipeline.sources.archives.members import COMPRESSED, PLAIN, Entry, Ignored  # with numpy and pyarrow
    from pipeline.sources.archives.other_kinds import unread_archive
    from pipeline.sources.filters import Filters
    from pipeline.sources.folders import walk
    from pipeline.sources.objects import ListingOptions, Root, Subtree

    # Excluded, since looking into a large archive takes long and is for nothing
    closed = Filters(exclude=tuple("*" + _any_case(ending) for ending in (*PLAIN, *COMPRESSED)))
    top, found = absolute(folder), dict[str, Named]()
    for item in walk(Root(top, top), ListingOptions(closed)):
        if isinstance(item, Subtree):
            raise TypeError(f"{folder}: a folder of a disk has no subtrees")
        path = local_path(item.uri)
        if isinstance(item, Ignored):
            left_out[_ARCHIVES if item.reason == "in --exclude" else item.reason] += 1
        elif item.member is not None or unread_archive(path) is not None:
            left_out[_ARCHIVES] += 1
        else:
            below = path[len(top) :].lstrip("/")
            refused = None
            if not isinstance(item, Entry) and item.code is not Code.UNSUPPORTED_FORMAT:  # of which the service judges
                refused = ImageRejected(item.code, item.message, Stage.LIST)
            found[below] = Named(os.path.join(folder, below), refused)
    masks = _masks(found)
    left_out.update({"masks": len(masks)} if masks else {})
    return [found[below] for below in sorted(found, key=lambda below: below.split("/")) if below not in masks]


def _masks(paths: Iterable[str]) -> set[str]:
    from pipeline.sources.masks import Masks

    masks = Masks()
    suspects = [path for path in paths if masks.is_suspect(path)]
    return {path for path, is_mask in zip(suspects, masks.find(suspects), strict=True) if is_mask}


def _any_case(ending: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in ending)


def read_file(named: Named, max_bytes: int) -> bytes:
    """Its bytes. Raises ImageRejected where they cannot be had, or are more than the service takes."""
    if named.refused is not None:
        raise named.refused
    store, path = LocalStore(), named.path
    try:
        info = store.head(path)
        if info is None and os.path.exists(path):
            raise ImageRejected(Code.UNSUPPORTED_FORMAT, "no regular file, whose reading may never end", Stage.FETCH)
        if info is not None and info.size > max_bytes:
            message = f"{info.size} bytes, the service's limit is {max_bytes}; send a smaller image"
            raise ImageRejected(Code.TOO_LARGE, message, Stage.FETCH)
        return store.read(path).data
    except StoreError as error:
        raise ImageRejected(error.code, str(error), Stage.FETCH) from error
    except ValueError as error:  # a zero byte in a name
        raise ImageRejected(Code.NOT_FOUND, f"no name of a file: {error}", Stage.FETCH) from error
