"""A store as PyArrow's file system, for Ray Train: its notes and checkpoints go the way of all other bytes.

Write through it from Python alone: PyArrow's `copy_files` passes over what an upload raises when it is closed.

PyArrow has an S3 client of its own, which was left for three reasons. It uploads in chunks with checksums in trailers
(Ceph's gateway answers 411), it makes an object for every folder (rclone's server answers 500), and it knows nothing of
our retries and errors.
"""

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileSystemHandler, FileType, LocalFileSystem, PyFileSystem

from pipeline.storage.stores import Stores
from pipeline.storage.uris import is_s3

_SCHEME = "s3://"


def arrow_filesystem(uri: str, stores: Stores = Stores()) -> tuple[FileSystem, str]:
    """(file system, path in it) of a URI."""
    if not is_s3(uri):
        return LocalFileSystem(), uri
    return PyFileSystem(_StoreFiles(stores)), uri.removeprefix(_SCHEME)


class _Upload(io.BytesIO):
    """Becomes an object when it is closed. Raises StoreError then."""

    def __init__(self, stores: Stores, uri: str) -> None:
        super().__init__()
        self._stores, self._uri = stores, uri

    def close(self) -> None:
        if self.closed:
            return
        data = self.getvalue()
        super().close()
        self._stores.of(self._uri).write(self._uri, data)


class _StoreFiles(FileSystemHandler):
    """Objects as files; folders are what the names of objects say, and need not be made. Raises StoreError."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _StoreFiles) and self._stores == other._stores

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple[type, tuple[Stores]]:
        return _StoreFiles, (self._stores,)

    def get_type_name(self) -> str:
        return "store"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> FileInfo:
        uri = _SCHEME + path
        store = self._stores.of(uri)
        found = store.head(uri)
        if found is not None:
            modified = datetime.fromtimestamp(found.mtime, UTC)
            return FileInfo(path, FileType.File, size=found.size, mtime=modified)
        return FileInfo(path, FileType.Directory if store.is_folder(uri) else FileType.NotFound)

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        found = list(self._below(selector.base_dir, recursive=selector.recursive))
        if not found and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        return found

    def _below(self, folder: str, *, recursive: bool) -> Iterator[FileInfo]:
        store, told = self._stores.of(_SCHEME + folder), set()
        for item in store.walk(_SCHEME + folder):
            parts = item.uri.removeprefix(_SCHEME + folder.rstrip("/") + "/").split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                inner = "/".join([folder.rstrip("/"), *parts[:depth]])
                if inner not in told:
                    told.add(inner)
                    yield FileInfo(inner, FileType.Directory)
            if recursive or len(parts) == 1:
                yield FileInfo(item.uri.removeprefix(_SCHEME), FileType.File, size=item.size)

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        self._stores.of(_SCHEME + path).delete_tree(_SCHEME + path)

    def delete_file(self, path: str) -> None:
        self._stores.of(_SCHEME + path).delete(_SCHEME + path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(self._stores.of(_SCHEME + path).read(_SCHEME + path).data)

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: dict[str, Any]) -> pa.NativeFile:
        return pa.PythonFile(_Upload(self._stores, _SCHEME + path), mode="w")

    def _unneeded(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError("Ray Train asks for no such thing")

    delete_dir_contents = delete_root_dir_contents = move = copy_file = open_append_stream = _unneeded
