"""What the library asks of a store, asked of the disk and of S3 alike."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.base.errors import Code
from pipeline.storage.local import LocalStore
from pipeline.storage.types import ObjectInfo, Store, StoreError
from tests.servers import Faults, S3Server, faulty_proxy

QUICK = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
THREADS = 8

names = st.text(st.sampled_from("ab1-.% ü"), min_size=1, max_size=6).filter(lambda name: name.strip(". ") != "")
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


def is_a_tree(found: set[str]) -> bool:
    """No path is a folder and a file at once, which S3 allows and a disk does not."""
    return not any(other.startswith(path + "/") for path in found for other in found)


trees = st.dictionaries(paths, st.binary(max_size=40), max_size=8).filter(lambda tree: is_a_tree(set(tree)))


Place = tuple[Store, Callable[[], str]]


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A store, and what gives an empty place in it each time it is called."""
    with place_on(request, tmp_path) as found:
        yield found


@pytest.fixture(params=["disk", "s3", "ceph", "rclone"])
def any_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """As `place`, on real stores too, which are too slow to be searched by hypothesis."""
    with place_on(request, tmp_path) as found:
        yield found


@contextlib.contextmanager
def place_on(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "disk":
        yield LocalStore(), lambda: f"{tmp_path}/{uuid.uuid4().hex}"
        return
    server: S3Server = request.getfixturevalue(request.param)
    is_mock = request.param == "s3"  # its PUTs go one by one through the proxy, as they do in a store
    with faulty_proxy(server.endpoint, Faults()) if is_mock else nullcontext(server.endpoint) as endpoint:
        yield server.at(endpoint).stores.of("s3://"), lambda: f"s3://{server.bucket}/contract/{uuid.uuid4().hex}"


@pytest.fixture(params=["disk", "s3", "ceph"])
def conditional(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """As `any_place`, where conditions are heeded."""
    with place_on(request, tmp_path) as found:
        yield found


def filled(place: Place, tree: dict[str, bytes]) -> tuple[Store, str]:
    store, new = place
    root = new()
    for path, data in tree.items():
        store.write(f"{root}/{path}", data)
    return store, root


def found_below(root: str, infos: Iterator[ObjectInfo]) -> dict[str, int]:
    found = [(info.uri.removeprefix(root + "/"), info.size) for info in infos]
    assert len(dict(found)) == len(found), "an object is given twice"
    return dict(found)


def assert_is_read_walked_and_described(place: Place, tree: dict[str, bytes]) -> None:
    store, root = filled(place, tree)
    assert found_below(root, store.walk(root)) == {path: len(data) for path, data in tree.items()}
    assert store.is_folder(root) == bool(tree)
    for info in store.walk(root):
        data = tree[info.uri.removeprefix(root + "/")]
        assert store.head(info.uri) == info
        got = store.read(info.uri)
        assert (got.data, got.etag) == (data, info.etag)
        with store.open(info.uri) as file:
            assert file.read() == data


@given(tree=trees)
@QUICK
def test_what_was_written_is_read_walked_and_described(place: Place, tree: dict[str, bytes]) -> None:
    assert_is_read_walked_and_described(place, tree)


def assert_levels_divide(place: Place, tree: dict[str, bytes]) -> None:
    store, root = filled(place, tree)

    def below(prefix: str) -> Iterator[ObjectInfo]:
        pages = list(store.levels(prefix))
        assert all(page.is_truncated for page in pages[:-1]) and not any(page.is_truncated for page in pages[-1:])
        for page in pages:
            assert all(folder.endswith("/") for folder in page.folders)
            yield from page.objects
            for folder in page.folders:
                yield from below(folder.removesuffix("/"))

    assert found_below(root, below(root)) == {path: len(data) for path, data in tree.items()}
    first = [info.uri for page in store.levels(root) for info in page.objects]
    assert sorted(first) == sorted(f"{root}/{path}" for path in tree if "/" not in path)


@given(tree=trees)
@QUICK
def test_levels_divide_a_folder_into_its_own_files_and_the_folders_in_it(place: Place, tree: dict[str, bytes]) -> None:
    assert_levels_divide(place, tree)


@given(tree=trees, begin=st.text(st.sampled_from("ab1-./ü"), max_size=4))
@QUICK
def test_objects_are_found_by_how_their_uri_begins(place: Place, tree: dict[str, bytes], begin: str) -> None:
    begin = begin.lstrip("/").replace("//", "/").replace("./", "/").lstrip("/").replace("//", "/")
    store, root = filled(place, tree)
    found = found_below(root, store.beginning_with(f"{root}/{begin}"))
    assert set(found) == {path for path in tree if path.startswith(begin)}


def assert_a_range_is_of_its_version(place: Place, data: bytes, offset: int, size: int) -> None:
    store, root = filled(place, {"x": data})
    uri = f"{root}/x"
    info = store.head(uri)
    assert info is not None
    if offset < len(data):
        assert store.read_range(uri, offset, size, info.etag).data == data[offset : offset + size]
    assert store.read_range(uri, offset, 0, info.etag).data == b""
    store.write(uri, data + b"another")
    with pytest.raises(StoreError) as changed:
        store.read_range(uri, 0, size, info.etag)
    assert changed.value.code is Code.CHANGED


@given(data=st.binary(max_size=60), offset=st.integers(0, 70), size=st.integers(1, 70))
@QUICK
def test_a_range_holds_what_lies_there_of_the_version_asked_for(
    place: Place, data: bytes, offset: int, size: int
) -> None:
    assert_a_range_is_of_its_version(place, data, offset, size)


def test_a_real_store_keeps_objects_as_the_mock_does(any_place: Place) -> None:
    tree = {"a/b/1": b"one", "a/2": b"", "ab 1": b"plus", "ü%/.x-": b"name", "3": b"3" * 100_000}
    assert_is_read_walked_and_described(any_place, tree)
    assert_levels_divide(any_place, tree)
    assert_a_range_is_of_its_version(any_place, b"0123456789", 3, 4)
    assert_a_range_is_of_its_version(any_place, b"0123456789", 7, 70)


def test_what_is_not_there_is_said(any_place: Place) -> None:
    store, new = any_place
    root = new()
    assert store.head(f"{root}/none") is None
    assert not store.is_folder(root)
    assert list(store.walk(root)) == [] and list(store.beginning_with(f"{root}/x")) == []
    assert [page.objects + page.folders for page in store.levels(root)] in ([], [[]])
    for read in (store.read, store.open, lambda uri: store.read_range(uri, 0, 1)):
        with pytest.raises(StoreError) as missing:
            read(f"{root}/none")
        assert missing.value.code is Code.NOT_FOUND
    store.delete(f"{root}/none")
    store.delete_tree(root)


def test_a_tree_is_deleted_and_its_neighbours_are_not(any_place: Place) -> None:
    store, root = filled(any_place, {"a/1": b"1", "a/b/2": b"2", "ab": b"3", "c": b"4"})
    store.delete_tree(f"{root}/a")
    store.delete(f"{root}/c")
    assert set(found_below(root, store.walk(root))) == {"ab"}


def test_create_writes_only_where_nothing_is(conditional: Place) -> None:
    store, new = conditional
    uri = f"{new()}/x"
    etag = store.create(uri, b"first")
    info = store.head(uri)
    assert info is not None and etag == info.etag
    assert store.create(uri, b"second") is None
    assert store.read(uri).data == b"first"


def test_replace_writes_only_over_the_version_named(conditional: Place) -> None:
    store, new = conditional
    uri = f"{new()}/x"
    assert store.replace(uri, b"none", "0-0") is None
    assert store.head(uri) is None
    first = store.create(uri, b"first")
    assert first is not None
    second = store.replace(uri, b"second", first)
    info = store.head(uri)
    assert info is not None and second == info.etag != first
    assert store.replace(uri, b"third", first) is None
    assert store.read(uri).data == b"second"


def winners(act: Callable[[int], str | None]) -> list[int]:
    """Which of eight threads that act at once were given an etag."""
    start = Barrier(THREADS)

    def run(number: int) -> str | None:
        start.wait()
        return act(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [number for number, etag in enumerate(pool.map(run, range(THREADS))) if etag is not None]


def test_of_many_who_create_at_once_one_wins_and_its_bytes_stay(conditional: Place) -> None:
    store, new = conditional
    for _ in range(10):
        uri = f"{new()}/lock"
        won = winners(lambda number, uri=uri: store.create(uri, b"%d" % number))  # type: ignore[misc]
        assert len(won) == 1
        assert store.read(uri).data == b"%d" % won[0]


def test_of_many_who_replace_one_version_at_once_one_wins(conditional: Place) -> None:
    store, new = conditional
    for _ in range(10):
        uri = f"{new()}/lock"
        etag = store.create(uri, b"free")
        won = winners(lambda number, uri=uri, etag=etag: store.replace(uri, b"by %d" % number, str(etag)))  # type: ignore[misc]
        assert len(won) == 1
        assert store.read(uri).data == b"by %d" % won[0]
