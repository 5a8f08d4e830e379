"""Storage, listing and ingest on S3 as spoken over HTTP by moto's server."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs import ingest as job
from pipeline.base.errors import Code, InputError, PlatformError
from pipeline.images.load import Limits
from pipeline.samples import generate
from pipeline.sources.archives import Entry
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.listing import Tally, entry_row, list_sources
from pipeline.sources.manifest import read_manifest
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import ListingRow
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.s3 import S3Store
from pipeline.storage.stores import Stores
from pipeline.storage.types import S3Settings, StoreError
from tests.servers import Faults, S3Server, faulty_proxy
from tests.unit.test_archives import tar_bytes, zip_bytes


@pytest.fixture(scope="module")
def endpoint(s3: S3Server) -> str:
    for bucket in ("lab", "many", "open"):
        s3.client().create_bucket(Bucket=bucket)
    return s3.endpoint


@pytest.fixture
def stores(endpoint: str) -> Stores:
    return Stores(S3Settings(endpoint, "us-east-1", max_attempts=3))


@pytest.fixture
def store(stores: Stores) -> S3Store:
    return S3Store(stores.s3)


def ingest(endpoint: str, *argv: str) -> int:
    return job.command([*argv, "--s3-endpoint", endpoint])


# ---- storage -----------------------------------------------------------------------------------------------


def test_a_range_is_read_of_the_version_that_was_listed(store: S3Store) -> None:
    store.write("s3://lab/range", b"0123456789")
    info = store.head("s3://lab/range")
    assert info is not None
    assert store.read_range(info.uri, 3, 4, info.etag).data == b"3456"
    assert store.read_range(info.uri, 8, 99).data == b"89"
    assert store.read_range(info.uri, 3, 0).data == b""
    with store.open(info.uri) as file:
        file.seek(-2, 2)
        assert file.read() == b"89"
    store.write(info.uri, b"something else")
    with pytest.raises(StoreError) as failure:
        store.read_range(info.uri, 0, 1, info.etag)
    assert failure.value.code == Code.CHANGED


def test_failures_carry_a_code_and_say_what_to_do(store: S3Store, endpoint: str) -> None:
    with pytest.raises(StoreError, match="bucket does not exist") as failure:
        store.is_folder("s3://no-such-bucket/x")
    assert failure.value.code == Code.NOT_FOUND
    assert store.head("s3://lab/none") is None
    with faulty_proxy(endpoint, Faults(denied=frozenset({"secret.jpg"}))) as proxy:
        denied = S3Store(S3Settings(proxy, "us-east-1", max_attempts=2))
        with pytest.raises(StoreError, match="check credentials") as failure:
            denied.read("s3://lab/secret.jpg")
    assert failure.value.code == Code.ACCESS_DENIED


def test_pyarrow_reaches_the_same_endpoint_with_the_same_settings(store: S3Store, stores: Stores) -> None:
    store.write("s3://lab/arrow", b"data")
    filesystem, path = arrow_filesystem("s3://lab/arrow", stores)
    with filesystem.open_input_file(path) as file:
        assert file.read() == b"data"


# ---- listing -----------------------------------------------------------------------------------------------


def test_two_slashes_in_a_key_are_a_folder_without_a_name(store: S3Store, stores: Stores) -> None:
    keys = ["d/x.jpg", "d//y.jpg", "d//e/z.jpg", "d/e/z.jpg", "d/../w.jpg"]
    for key in keys:
        store.write(f"s3://lab/{key}", key.encode())
    for source in ("s3://lab/d", "s3://lab/d/", "s3://lab/d/**"):
        entries = [item for item in list_sources([source], Tally(), stores=stores) if isinstance(item, Entry)]
        assert sorted(entry.uri for entry in entries) == sorted(f"s3://lab/{key}" for key in keys)
        rows = [entry_row(entry) for entry in entries]
        got = {item.row.uri: item.data for item in fetch_rows(rows, stores)}
        assert got == {f"s3://lab/{key}": key.encode() for key in keys}


def test_a_pattern_on_s3_is_every_object_that_fits(store: S3Store, stores: Stores) -> None:
    for day in ("2026-11-21", "2026-11-22", "2026-12-01"):
        store.write(f"s3://lab/nights/{day}/a.tar", tar_bytes([(f"{day}.jpg", b"1")]))
        store.write(f"s3://lab/nights/{day}/b.jpg", b"2")
    entries = list(list_sources(["s3://lab/nights/2026-11-*/*.tar"], Tally(), stores=stores))
    assert sorted(str(item.member) for item in entries) == ["2026-11-21.jpg", "2026-11-22.jpg"]
    assert len(list(list_sources(["s3://lab/nights/2026-11-*"], Tally(), stores=stores))) == 4
    with pytest.raises(InputError, match="matches nothing"):
        list(list_sources(["s3://lab/nights/2027-*"], Tally(), stores=stores))


def test_a_table_of_many_uris_is_looked_up_side_by_side(store: S3Store, endpoint: str) -> None:
    names = [f"t/{number:03d}.jpg" for number in range(300)]
    for name in names[:-1]:
        store.write(f"s3://lab/{name}", b"x")
    store.write("s3://lab/t.csv", ("uri\n" + "\n".join(names)).encode())
    tally = Tally()
    found = list(list_sources(["s3://lab/t.csv"], tally, stores=Stores(store.settings)))
    assert (tally.images, tally.problems, len(found)) == (299, 1, 300)


def test_more_keys_than_a_page_are_listed_side_by_side(store: S3Store, stores: Stores) -> None:
    keys = [f"p/{number % 3}/{number:05d}.jpg" for number in range(1_250)] + ["p/top.jpg", "p/odd ü %41 +.jpg"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(f"s3://many/{key}", b"x"), keys))
    tally = Tally()
    found = list(list_sources(["s3://many/p"], tally, stores=stores))
    assert sorted(item.uri for item in found) == sorted(f"s3://many/{key}" for key in keys)
    assert sum(1 for _ in store.walk("s3://many/p")) == len(keys)


def test_members_on_s3_are_read_by_range_like_on_disk(store: S3Store, stores: Stores) -> None:
    members = [("a/x.jpg", b"first" * 99), ("ü %.png", b"second")]
    for name, data in (
        ("a.tar", tar_bytes(members)),
        ("b.zip", zip_bytes(members)),
        ("c.tgz", tar_bytes(members, "w:gz")),
    ):
        store.write(f"s3://lab/packed/{name}", data)
    rows = [
        entry_row(item) for item in list_sources(["s3://lab/packed"], Tally(), stores=stores) if isinstance(item, Entry)
    ]
    rows.sort(key=lambda row: (row.uri, row.offset))
    got = sorted((str(item.row.member), item.data) for item in fetch_rows(rows, stores))
    assert got == sorted((name, data) for name, data in members for _ in range(3))


# ---- an outage or a bad object ------------------------------------------------------------------------------


def few_rows(store: S3Store, stores: Stores, name: str) -> list[ListingRow]:
    for number in range(6):
        store.write(f"s3://lab/{name}/{number}.jpg", b"%d" % number)
    found = list_sources([f"s3://lab/{name}"], Tally(), stores=stores)
    return [entry_row(item) for item in found if isinstance(item, Entry)]


@pytest.mark.parametrize("from_get", [1, 6])
def test_an_outage_is_never_blamed_on_the_last_images(
    store: S3Store, stores: Stores, endpoint: str, from_get: int
) -> None:
    rows = few_rows(store, stores, f"out-{from_get}")
    faults = Faults()

    def break_down(_: str, gets: int) -> None:
        faults.is_down = gets >= from_get
        faults.broken = frozenset({".jpg"}) if faults.is_down else frozenset()

    faults.before_get = break_down
    with (
        faulty_proxy(endpoint, faults) as proxy,
        pytest.raises(PlatformError, match="does not answer"),
    ):
        list(fetch_while_up(rows, Stores(S3Settings(proxy, "us-east-1", max_attempts=2)), Limits()))


def test_images_of_a_short_outage_are_had_in_the_end(store: S3Store, stores: Stores, endpoint: str) -> None:
    rows = few_rows(store, stores, "short")
    faults = Faults(broken=frozenset({".jpg"}))

    def recover(_: str, gets: int) -> None:
        if gets > 2 * len(rows):
            faults.broken = frozenset()

    faults.before_get = recover
    with faulty_proxy(endpoint, faults) as proxy:
        got = list(fetch_while_up(rows, Stores(S3Settings(proxy, "us-east-1", max_attempts=2)), Limits()))
    assert sorted(item.data or b"" for item in got) == [b"%d" % number for number in range(6)]
    assert {item.attempts for item in got} == {3}


def test_an_object_that_always_fails_costs_itself_only(store: S3Store, stores: Stores, endpoint: str) -> None:
    rows = few_rows(store, stores, "broken")
    with faulty_proxy(endpoint, Faults(broken=frozenset({"3.jpg"}))) as proxy:
        got = list(fetch_while_up(rows, Stores(S3Settings(proxy, "us-east-1", max_attempts=2)), Limits()))
    [bad] = [item for item in got if item.rejected is not None]
    assert (bad.row.uri, bad.rejected and bad.rejected.code, bad.attempts) == (
        "s3://lab/broken/3.jpg", Code.IO_ERROR, 4,
    )  # fmt: skip
    assert sum(item.data is not None for item in got) == 5


# ---- the command -------------------------------------------------------------------------------------------


def test_source_and_manifest_on_s3_split_as_on_disk(
    store: S3Store, stores: Stores, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = generate(tmp_path / "samples", images=24, subjects=8, width=64, height=64)
    for path in made.root.rglob("*.*"):
        store.write(f"s3://open/samples/{path.relative_to(made.root)}", path.read_bytes())
    assert ingest(endpoint, "s3://open/samples", "--out", "s3://open/manifest") == 0
    assert "SYNTHETIC" in capsys.readouterr().out
    assert ingest(endpoint, str(made.root), "--out", str(tmp_path / "manifest")) == 0
    remote, local = read_manifest("s3://open/manifest", stores), read_manifest(str(tmp_path / "manifest"))
    assert remote.info.synthetic
    assert _told(remote.table.to_pylist()) == _told(local.table.to_pylist())
    assert json.loads(store.read("s3://open/manifest/problems.json").data) == []


def _told(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted(
        (
            row["uri"].rsplit("/", 1)[-1],
            row["class_name"],
            row["label"],
            row["subject_id"],
            row["split"],
            row["size_bytes"],
        )
        for row in rows
    )


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["s3://no-such-bucket/x"], 3, "bucket does not exist"),
        (["s3://lab/nothing-here"], 3, "does not exist or is empty"),
        ([], 2, "SOURCE is missing"),
        (["s3://lab/packed", "--positive", "dragon"], 2, "--positive names no class"),
        (["s3://lab/packed", "--fractions", "1", "1", "1"], 2, "sum to 1"),
        (["s3://lab/packed", "--since", "soon"], 2, "--since"),
    ],
)
def test_what_cannot_be_ingested_is_one_clear_line(
    endpoint: str, tmp_path: Path, argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str],
    store: S3Store,
) -> None:  # fmt: skip
    store.write("s3://lab/packed/a.tar", tar_bytes([("a/x.jpg", b"1")]))
    assert ingest(endpoint, *argv, "--out", str(tmp_path / "m")) == code
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_refused_access_ends_with_3_and_names_the_bucket(
    endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty_proxy(endpoint, Faults(denied=frozenset({"/closed.tar"}))) as proxy:
        S3Store(S3Settings(endpoint, "us-east-1")).write("s3://lab/shut/closed.tar", tar_bytes([("x.jpg", b"1")]))
        assert job.command(["s3://lab/shut", "--out", str(tmp_path / "m"), "--s3-endpoint", proxy]) == 3
    assert "access denied" in capsys.readouterr().err
