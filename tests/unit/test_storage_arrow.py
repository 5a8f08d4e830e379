"""A store as the file system that Ray Train writes to: no folders are made, and no failure is passed over."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pyarrow.fs
import pytest

from pipeline.base.errors import Code
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.stores import Stores
from pipeline.storage.types import Bytes, ObjectInfo, Store, StoreError
from pipeline.training import checkpoint

RUN = "s3://lab/run"


class Memory:
    """Objects by URI; writing to what ends with a name in `refused` fails."""

    is_remote = is_conditional = True

    def __init__(self, refused: tuple[str, ...] = ()) -> None:
        self.objects: dict[str, bytes] = {}
        self.refused = refused

    def write(self, uri: str, data: bytes) -> None:
        if uri.endswith(self.refused):
            raise StoreError(Code.ACCESS_DENIED, f"{uri}: access denied")
        self.objects[uri] = data

    def read(self, uri: str) -> Bytes:
        return Bytes(self.objects[uri], "etag", 1)

    def head(self, uri: str) -> ObjectInfo | None:
        return ObjectInfo(uri, len(self.objects[uri]), "etag", 0.0) if uri in self.objects else None

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        for uri, data in self.objects.items():
            if uri.startswith(prefix.rstrip("/") + "/"):
                yield ObjectInfo(uri, len(data), "etag", 0.0)

    def is_folder(self, uri: str) -> bool:
        return any(self.walk(uri))

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)

    def delete_tree(self, prefix: str) -> None:
        for item in list(self.walk(prefix)):
            self.delete(item.uri)


def mounted(memory: Memory) -> Stores:
    return Stores(mounts=(("s3://", cast(Store, memory)),))


def names(filesystem: pyarrow.fs.FileSystem, folder: str, *, recursive: bool) -> dict[str, bool]:
    """Paths below a folder, and whether each is a file."""
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(folder, recursive=recursive))
    return {info.path: info.is_file for info in found}


def test_what_is_written_is_an_object_and_what_is_above_it_a_folder() -> None:
    memory = Memory()
    filesystem, path = arrow_filesystem(RUN, mounted(memory))
    filesystem.create_dir(f"{path}/a/b")
    assert memory.objects == {}, "a folder is no object"
    with filesystem.open_output_stream(f"{path}/a/b/1") as file:
        file.write(b"one")
        file.write(b" and more")
    memory.write(f"{RUN}/2", b"two")
    assert memory.objects == {f"{RUN}/a/b/1": b"one and more", f"{RUN}/2": b"two"}
    assert names(filesystem, path, recursive=False) == {f"{path}/a": False, f"{path}/2": True}
    assert names(filesystem, path, recursive=True) == {
        f"{path}/a": False, f"{path}/a/b": False, f"{path}/a/b/1": True, f"{path}/2": True,
    }  # fmt: skip
    kinds = [info.type for info in filesystem.get_file_info([f"{path}/a/b/1", f"{path}/a", f"{path}/none"])]
    assert kinds == [pyarrow.fs.FileType.File, pyarrow.fs.FileType.Directory, pyarrow.fs.FileType.NotFound]
    with filesystem.open_input_stream(f"{path}/a/b/1") as file:
        assert file.read() == b"one and more"
    filesystem.delete_dir(f"{path}/a")
    filesystem.delete_file(f"{path}/2")
    assert memory.objects == {}


def test_a_folder_is_copied_to_the_disk(tmp_path: Path) -> None:
    memory = Memory()
    memory.objects = {f"{RUN}/c/state.json": b"{}", f"{RUN}/c/deep/x": b"x"}
    filesystem, path = arrow_filesystem(f"{RUN}/c", mounted(memory))
    pyarrow.fs.copy_files(path, str(tmp_path), source_filesystem=filesystem)
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")} == {"state.json", "deep", "deep/x"}
    with pytest.raises(FileNotFoundError):
        filesystem.get_file_info(pyarrow.fs.FileSelector("lab/none"))


def test_a_write_that_fails_is_told() -> None:
    filesystem, path = arrow_filesystem(RUN, mounted(Memory(refused=("/marker",))))
    with pytest.raises(StoreError, match="access denied"), filesystem.open_output_stream(f"{path}/marker") as file:
        file.write(b"x")


def test_a_checkpoint_that_cannot_be_stored_is_an_error() -> None:
    files = {"best": b"best", "state.json": b"state.json"}
    memory = Memory()
    checkpoint.upload(files, f"{RUN}/checkpoint_1", mounted(memory))
    assert memory.objects == {f"{RUN}/checkpoint_1/best": b"best", f"{RUN}/checkpoint_1/state.json": b"state.json"}
    with pytest.raises(StoreError, match="access denied"):
        checkpoint.upload(files, f"{RUN}/checkpoint_2", mounted(Memory(refused=("state.json",))))


def test_it_is_the_same_in_another_process() -> None:
    filesystem, _ = arrow_filesystem(RUN, Stores())
    assert pickle.loads(pickle.dumps(filesystem)) == filesystem
    assert filesystem != arrow_filesystem(RUN, mounted(Memory()))[0]
