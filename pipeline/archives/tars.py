"""Plain tars: the byte range of every member, and WebDataset sidecars beside it."""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

from pipeline.archives.members import (
    DAMAGE,
    NESTED,
    Entry,
    Found,
    Ignored,
    OpenNested,
    Place,
    classify,
    is_archive,
    is_image,
    is_junk,
    readable,
    suffix,
    window,
)  # fmt: skip
from pipeline.errors import Code

_SIDECARS = {".cls", ".json", ".txt"}  # files of one sample share the name up to the first dot
_SIDECAR_LIMIT_BYTES = 64 * 1024
_SAMPLE_FILES = 16  # names that share much before a dot must not keep a whole archive waiting
# What was found, with its bytes, with why they cannot be had, or with neither where it is only listed.
Held = tuple[Found, bytes | Exception | None]


class Samples:
    """Members wait here until the last file of their WebDataset sample is seen, so that sidecars reach all of them.

    Files of one sample share folder and name up to the first dot, and follow one another.
    """

    def __init__(self) -> None:
        self._waiting: list[Held] = []
        self._key = ""
        self._meta: dict[str, str] = {}

    def begin(self, name: str) -> list[Held]:
        """Say which member comes next; gives those of the sample before, when it is another."""
        folder, base = posixpath.split(name)
        key = f"{folder}/{base.split('.', 1)[0]}"
        if key == self._key:
            return self._release() if len(self._waiting) >= _SAMPLE_FILES else []
        complete = self.end()
        self._key = key
        return complete

    def end(self) -> list[Held]:
        complete = self._release()
        self._meta = {}
        return complete

    def _release(self) -> list[Held]:
        meta, held = self._meta, self._waiting
        self._waiting = []
        if not meta:
            return held
        return [(replace(item, meta=meta) if isinstance(item, Entry) else item, data) for item, data in held]

    def add(self, item: Found, data: bytes | Exception | None = None) -> None:
        self._waiting.append((item, data))

    def add_sidecar(self, member: tarfile.TarInfo, handle: IO[bytes] | None) -> None:
        if suffix(member.name) in _SIDECARS and member.size <= _SIDECAR_LIMIT_BYTES:
            self._meta.update(_sidecar(member.name, handle.read() if handle else b""))


def list_tar(file: IO[bytes], size: int, place: Place, open_nested: OpenNested) -> Iterator[Found]:
    samples = Samples()
    with tarfile.open(fileobj=file, mode="r:") as archive:
        try:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if not member.isreg():
                    yield from not_a_file(member, place)
                    continue
                yield from (item for item, _ in samples.begin(member.name))
                if suffix(member.name) in _SIDECARS:
                    samples.add_sidecar(member, archive.extractfile(member))
                for item in _tar_member(file, size, place, member, open_nested):
                    samples.add(item)
        except DAMAGE:
            yield from (item for item, _ in samples.end())
            raise
        yield from (item for item, _ in samples.end())
        yield from _tar_end(file, size, archive.offset, place)


def not_a_file(member: tarfile.TarInfo, place: Place) -> Iterator[Ignored]:
    """Links and devices named like images are counted; a link's image is listed under the name that has the bytes."""
    if is_image(member.name) and not member.isdir():
        yield Ignored(f"{place.info.uri}{NESTED}{readable(place.prefix + member.name)}", "link inside an archive")


def _tar_member(
    file: IO[bytes], size: int, place: Place, member: tarfile.TarInfo, open_nested: OpenNested
) -> Iterator[Found]:
    whole = member.offset_data + member.size <= size
    if is_archive(member.name) and not place.prefix and not is_junk(member.name):
        if whole:
            inner = window(file, member.offset_data, member.size)
            base = (place.base or 0) + member.offset_data
            yield from open_nested(member.name, inner, member.size, place, base)
        else:
            yield place.problem(member.name, Code.TRUNCATED, "the archive ends inside this member", member.size)
        return
    refused = classify(member.name, place, member.size)
    if refused is not None:
        yield refused
    elif member.issparse():
        yield place.problem(member.name, Code.UNSUPPORTED_FORMAT, "a sparse tar member; pack it plainly", member.size)
    elif not whole:
        yield place.problem(member.name, Code.TRUNCATED, "the archive ends inside this member", member.size)
    else:
        offset = (place.base or 0) + member.offset_data
        yield place.entry(member.name, member.size, access="range", offset=offset, stored_bytes=member.size)


def _tar_end(file: IO[bytes], size: int, offset: int, place: Place) -> Iterator[Found]:
    """tarfile takes a damaged header after the first for the end; only a zero block really is."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block or (len(block) < tarfile.BLOCKSIZE and offset + len(block) >= size):
        yield place.problem(
            None, Code.TRUNCATED, "no end-of-archive mark: the archive was cut; what was before is used"
        )
    elif block.strip(b"\0"):
        yield place.problem(None, Code.CORRUPT, f"damaged tar header at byte {offset}; the members before it are used")


def _sidecar(name: str, data: bytes) -> dict[str, str]:
    text = data.decode("utf-8", "replace").strip()
    ending = suffix(name)
    if ending != ".json":
        return {ending[1:]: text}
    try:
        loaded = json.loads(text)
    except ValueError:
        return {"json": text}
    if not isinstance(loaded, dict):
        return {"json": text}
    return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in loaded.items() if v is not None}
