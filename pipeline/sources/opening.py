"""Which kind of source a URI is, and which of several sources lie inside another."""

import glob
import os
from collections.abc import Iterator, Sequence

from pipeline.base.errors import InputError
from pipeline.sources import manifest
from pipeline.sources.archives import Found, Problem, is_archive, is_image
from pipeline.sources.filters import UriPattern
from pipeline.sources.folders import walk
from pipeline.sources.named import from_manifest, from_table, named_streams
from pipeline.sources.objects import ListingOptions, Root, Source, objects, one_object
from pipeline.sources.tables import is_table
from pipeline.storage.stores import Stores
from pipeline.storage.types import ObjectInfo, Store, StoreError
from pipeline.storage.uris import absolute, local_path


def expand(sources: Sequence[str], stores: Stores = Stores()) -> list[Root]:
    """Local patterns replaced by their matches, and no root that lies inside another, also by way of links.

    Tables and manifests stay wherever they lie: they name images elsewhere. Raises InputError for a pattern without a
    match.
    """
    roots: dict[str, Root] = {}
    for source in map(absolute, sources):
        if stores.of(source).is_remote or not glob.has_magic(source) or os.path.lexists(source):
            key = _place(source, stores)
            if key not in roots or source == key.rstrip("/"):
                roots[key] = Root(source, source)
            continue
        found = glob.glob(source, recursive=True)
        if not found:
            raise InputError(f"{source}: the pattern matches nothing; quote it, and check it with ls")
        for match in map(os.path.normpath, found):
            roots.setdefault(_place(match, stores), Root(match, UriPattern(source).folder))
    kept: list[Root] = []
    outer: str | None = None
    for key in sorted(roots):  # what lies in a folder follows it at once
        if outer is None or not key.startswith(outer):
            outer = key
            kept.append(roots[key])
        elif _names_others(roots[key].uri, stores):
            kept.append(roots[key])
    return kept


def local_folders(sources: Sequence[str], stores: Stores = Stores()) -> list[str]:
    """Those of the sources, and of what their patterns match, that are folders of this machine."""
    named = [*sources, *(root.uri for root in expand(sources, stores))]
    return [uri for uri in dict.fromkeys(named) if not stores.of(uri).is_remote and os.path.isdir(local_path(uri))]


def beginnings(sources: Sequence[str], stores: Stores = Stores()) -> tuple[str, ...] | None:
    """With what the URI of everything begins that lies in the sources; None where a table or a manifest names any."""
    found: list[str] = []
    for source in map(absolute, sources):
        if _names_others(source, stores):
            return None
        literal = source if os.path.lexists(source) else UriPattern(source).literal
        found.append(literal.rstrip("/"))
        if not stores.of(source).is_remote:
            found.append("file://")  # names that are no UTF-8
    return tuple(dict.fromkeys(found))


def _place(uri: str, stores: Stores) -> str:
    """By which sources are known as the same, or as one inside another."""
    path = uri if stores.of(uri).is_remote else os.path.realpath(local_path(uri))
    return path.rstrip("/") + "/"


def _names_others(uri: str, stores: Stores) -> bool:
    return is_table(uri) or (not (is_image(uri) or is_archive(uri)) and manifest.is_manifest(uri, stores))


def open_source(root: Root, options: ListingOptions) -> Source:
    """Check that a source is there; what it holds is read when its streams run. Raises InputError."""
    store = options.stores.of(root.uri)
    try:
        info = store.head(root.uri)
        if info is not None:
            return _open_file(info, root, options, store)
        if store.is_folder(root.uri):
            if root.uri == root.base and not store.is_remote:
                _refuse_empty(root.uri)
            return _open_folder(root, options)
    except StoreError as error:
        raise error.refusal() from error
    if store.is_remote and glob.has_magic(root.uri):
        return _open_pattern(UriPattern(root.uri), options, store)
    raise InputError(f"{root.uri}: does not exist or is empty; give a folder, an archive, or an s3:// prefix")


def _refuse_empty(uri: str) -> None:
    """As on S3, where an empty prefix is none. What a pattern matches may be empty."""
    try:
        with os.scandir(local_path(uri)) as entries:
            is_empty = next(entries, None) is None
    except OSError:
        return  # a problem of the listing
    if is_empty:
        raise InputError(f"{uri}: is an empty folder; if a disk belongs there, mount it, else leave the source out")


def _open_file(info: ObjectInfo, root: Root, options: ListingOptions, store: Store) -> Source:
    if is_table(info.uri):
        return Source([lambda: from_table(info, options)], names_images=True)
    return Source([lambda: one_object(info, root.path(info.uri), options, store)])


def _open_folder(root: Root, options: ListingOptions) -> Source:
    if manifest.is_manifest(root.uri, options.stores):
        return Source([lambda: from_manifest(root.uri, options)], names_images=True)
    return Source([lambda: walk(root, options)])


def open_named(uris: Sequence[str], base: str, options: ListingOptions) -> Source:
    """Files, archives and folders by their URIs; one that is missing is a Problem, not the end."""
    return Source(named_streams(uris, base, options))


def _open_pattern(pattern: UriPattern, options: ListingOptions, store: Store) -> Source:
    """The objects of a store that fit a pattern. Raises InputError where none does."""
    fits = pattern.compiled()
    found = (info for info in store.beginning_with(pattern.literal) if fits.match(info.uri))
    try:
        first = next(found, None)
    except StoreError as error:
        raise error.refusal() from error
    if first is None:
        raise InputError(f"{pattern.uri}: the pattern matches nothing; check it with aws s3 ls {pattern.literal}")

    def stream() -> Iterator[Found]:
        root = Root(pattern.uri, pattern.folder)
        yield from objects(root, [first], options, store)
        try:
            yield from objects(root, found, options, store)
        except StoreError as error:
            message = f"{pattern.uri} cannot be listed further: {error}"
            yield Problem(pattern.folder + "/", None, error.code, message)

    return Source([stream], names_images=True)
