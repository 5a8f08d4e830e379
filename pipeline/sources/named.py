"""Images that somebody has named: rows of a manifest, rows of a table of URIs, objects to be tried again."""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from pipeline.base.errors import Code, InputError, UsageError
from pipeline.base.text import as_word
from pipeline.sources.archives import Entry, Found, Ignored, Problem
from pipeline.sources.folders import walk
from pipeline.sources.manifest import Manifest, ManifestRow, read_manifest
from pipeline.sources.objects import ListingOptions, Root, Stream, Subtree, bind, one_object
from pipeline.sources.rows import read_rows
from pipeline.sources.tables import read_table
from pipeline.storage.types import ObjectInfo, StoreError
from pipeline.storage.uris import absolute, readable_path, resolve

_URI_COLUMNS = ("uri", "path", "file", "filename")
_ROWS_A_STREAM = 64  # each row may cost a request on S3, so many are asked at the same time


def from_manifest(uri: str, options: ListingOptions) -> Iterator[Subtree]:
    """The images of a manifest as they are now: those replaced since would otherwise pass for the old ones."""
    manifest = read_manifest(uri, options.stores)
    table, said = manifest.table, _said_columns(manifest)
    for start in range(0, table.num_rows, _ROWS_A_STREAM):
        yield Subtree(bind(_recorded, table.slice(start, _ROWS_A_STREAM), said, options))


def _said_columns(manifest: Manifest) -> list[str]:
    """What of a manifest describes the image; blocks of file numbers are no subjects, and made for splits alone."""
    return [*(["subject_id"] if manifest.info.units == "subjects" else []), "site", *manifest.further]


def _recorded(table: pa.Table, said: Sequence[str], options: ListingOptions) -> Iterator[Found]:
    known: dict[str, ObjectInfo | Problem] = {}
    for row, words in zip(read_rows(table, ManifestRow), table.select(said).to_pylist(), strict=True):
        uri, member = row.uri, row.member
        if uri not in known:
            known[uri] = _present(uri, options)
        info = known[uri]
        if isinstance(info, Problem):
            yield replace(info, member=member)
            continue
        refused = options.filters.refuse([readable_path(uri), *([member] if member is not None else [])], info.mtime)
        if refused:
            yield Ignored(uri, refused)
        elif member is not None and info.etag != row.etag:
            message = "the archive was replaced since the manifest was made; run leukoray ingest again"
            yield Problem(uri, member, Code.CHANGED, message, row.size_bytes, info.etag)
        else:
            size = row.size_bytes if member is not None else info.size
            yield Entry(
                uri, size, info.etag, info.mtime, member, row.access, row.offset, row.stored_bytes,
                meta={name: as_word(word) for name, word in words.items() if word is not None}, image_id=row.image_id,
            )  # fmt: skip


def _present(uri: str, options: ListingOptions) -> ObjectInfo | Problem:
    """The object as it is, or why it cannot be had."""
    try:
        info = options.stores.of(absolute(uri)).head(uri)
    except (StoreError, UsageError, ValueError) as error:  # ValueError: a name with a zero byte
        return Problem(uri, None, error.code if isinstance(error, StoreError) else Code.NOT_FOUND, str(error))
    return info if info is not None else Problem(uri, None, Code.NOT_FOUND, "does not exist; restore it or list anew")


def from_table(info: ObjectInfo, options: ListingOptions) -> Iterator[Found | Subtree]:
    """A table of URIs in a column `uri`, `path` or `file`; relative ones lie beside the table."""
    table = read_table(info.uri, options.stores)
    by_name = {name.strip().casefold(): name for name in reversed(table.column_names)}
    column = next((by_name[name] for name in _URI_COLUMNS if name in by_name), None)
    if column is None:
        raise InputError(f"{info.uri}: no column uri, path or file; found {', '.join(table.column_names)}")
    folder = posixpath.dirname(info.uri)
    seen: set[str] = set()
    for start in range(0, table.num_rows, _ROWS_A_STREAM):
        uris: list[str] = []
        for value in table[column].slice(start, _ROWS_A_STREAM).to_pylist():
            uri = _full_uri(str(value), folder) if value not in (None, "") else ""
            if not uri:
                yield Ignored(info.uri, "row of the table without a URI")
            elif uri in seen:
                yield Ignored(uri, "named twice in the table")
            else:
                seen.add(uri)
                uris.append(uri)
        yield Subtree(bind(_named, uris, folder, options))


def _full_uri(text: str, folder: str) -> str:
    if "://" not in text and not text.startswith("/"):
        text = resolve(folder, text)
    try:
        return absolute(text)
    except UsageError:  # a kind of store that is not read; said when its turn comes
        return text


def _named(
    uris: Sequence[str], base: str, options: ListingOptions, enters_folders: bool = False
) -> Iterator[Found | Subtree]:
    for uri in uris:
        found = _present(uri, options)
        if isinstance(found, ObjectInfo):
            yield from one_object(found, Root(uri, base).path(uri), options, options.stores.of(uri))
            continue
        if found.code is Code.NOT_FOUND and _is_folder(uri, options):
            if enters_folders:
                yield from walk(Root(uri, base), options)
                continue
            message = "is a folder; name its files, or give the folder as a source"
            found = replace(found, uri=uri.rstrip("/") + "/", message=message)
        yield replace(found, message=f"{uri}: {found.message}") if uri not in found.message else found


def _is_folder(uri: str, options: ListingOptions) -> bool:
    try:
        return options.stores.of(absolute(uri)).is_folder(uri)
    except (StoreError, UsageError, ValueError):
        return False


def named_streams(uris: Sequence[str], base: str, options: ListingOptions) -> list[Stream]:
    """Files, archives and folders by their URIs; one that is missing is a Problem, not the end."""
    parts = [uris[start : start + _ROWS_A_STREAM] for start in range(0, len(uris), _ROWS_A_STREAM)]
    return [bind(_named, part, base, options, True) for part in parts]
