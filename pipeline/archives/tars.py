"""Plain tars: the byte range of every member, and WebDataset sidecars beside it."""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

from pipeline.archives.members import (
    DAMAGE,
    Entry,
    Found,
    OpenNested,
    Place,
    classify,
    is_archive,
    is_junk,
    suffix,
    window,
)  # fmt: skip
from pipeline.errors import Code

_SIDECARS = {".cls", ".json", ".txt"}  # files of one sample share the name up to the first dot
_SIDECAR_LIMIT_BYTES = 64 * 1024


def list_tar(file: IO[bytes], size: int, place: Place, open_nested: OpenNested) -> Iterator[Found]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        group: list[Found] = []  # waits for sidecars that may follow
        key, meta = "", dict[str, str]()
        try:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if not member.isreg():
                    continue
                this_key = _sample_key(member.name)
                if this_key != key:
                    yield from _with_meta(group, meta)
                    group, key, meta = [], this_key, {}
                if suffix(member.name) in _SIDECARS and member.size <= _SIDECAR_LIMIT_BYTES:
                    handle = archive.extractfile(member)
                    meta.update(_sidecar(member.name, handle.read() if handle else b""))
                group.extend(_tar_member(file, size, place, member, open_nested))
        except DAMAGE:
            yield from _with_meta(group, meta)
            raise
        yield from _with_meta(group, meta)
        yield from _tar_end(file, size, archive.offset, place)


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


def _sample_key(name: str) -> str:
    folder, base = posixpath.split(name)
    return f"{folder}/{base.split('.', 1)[0]}"


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


def _with_meta(group: list[Found], meta: dict[str, str]) -> list[Found]:
    if not meta:
        return group
    return [replace(item, meta=meta) if isinstance(item, Entry) else item for item in group]
