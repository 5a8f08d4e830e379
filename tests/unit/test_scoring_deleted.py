"""Which images of earlier runs may be called gone: only those that the present listing would have met."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.model.bundle import Bundle
from pipeline.scoring.history.deleted import Reach
from pipeline.sources.filters import Filters
from tests.bundles import make_bundle
from tests.scoring_sources import picture, rows, score_here, write_files

NIGHT = ("/data/night",)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


@pytest.mark.parametrize(
    ("sources", "uri", "member", "is_covered"),
    [
        (NIGHT, "/data/night/a/x.jpg", None, True),
        (NIGHT, "/data/night/b.tar", "x.jpg", True),
        (NIGHT, "/data/night2/x.jpg", None, False),
        (NIGHT, "/data/x.jpg", None, False),
        (("/data/x.jpg",), "/data/x.jpg", None, True),
        (("/data/*.jpg",), "/data/x.jpg", None, True),
        (("/data/*.jpg",), "/data/x.png", None, False),
        (("s3://lab/2026-*",), "s3://lab/2026-11/x.jpg", None, True),
        (("s3://lab/2026-*",), "s3://lab/2025-11/x.jpg", None, False),
        (("/data/list.csv",), "/data/x.jpg", None, False),
        (("/data/day", "/data/night"), "/data/night/x.jpg", None, True),
    ],
)
def test_only_what_lies_in_the_sources_is_covered(
    sources: tuple[str, ...], uri: str, member: str | None, is_covered: bool
) -> None:
    assert Reach(sources, Filters(), set()).covers(uri, member) is is_covered


def test_filters_that_would_have_left_it_out_do_not_make_it_gone() -> None:
    only_tars = Reach(NIGHT, Filters(include=("*.tar!/*", "*.png")), set())
    assert only_tars.covers("/data/night/b.tar", "x.jpg") and only_tars.covers("/data/night/x.png", None)
    assert not only_tars.covers("/data/night/x.jpg", None)
    assert not Reach(NIGHT, Filters(exclude=("old/*",)), set()).covers("/data/night/old/x.jpg", None)
    assert not Reach(NIGHT, Filters(since=datetime(2026, 1, 1, tzinfo=UTC)), set()).covers("/data/night/x.jpg", None)


def test_names_that_are_no_utf_8_are_seen_by_filters_and_folders_alike() -> None:
    uri = "file:///data/night/old/caf%E9.jpg"
    assert Reach(NIGHT, Filters(), set()).covers(uri, None)
    assert Reach(NIGHT, Filters(include=("old/*",)), set()).covers(uri, None)
    assert not Reach(NIGHT, Filters(exclude=("old/*",)), set()).covers(uri, None)
    assert not Reach(NIGHT, Filters(), {"/data/night/old/"}).covers(uri, None)
    assert not Reach(NIGHT, Filters(), {"file:///data/night/old/caf%E9.jpg"}).covers(uri, None)


def test_nothing_is_gone_from_where_nothing_was_met(bundle: Bundle, tmp_path: Path) -> None:
    """Disks that are not mounted tonight: empty, or with a note in the folder; one is what a pattern matches."""
    for name in ("nas", "local", "mnt/1", "mnt/2"):
        write_files(tmp_path / name, {f"{name.replace('/', '-')}-{n}.jpg": picture(len(name) + n) for n in (1, 2)})
    sources = [tmp_path / "nas", tmp_path / "local", f"{tmp_path}/mnt/*"]
    score_here(sources, bundle, tmp_path / "out", "run-1")
    for pattern in ("nas/*", "mnt/2/*", "local/local-1.jpg"):
        for path in tmp_path.glob(pattern):
            path.unlink()
    (tmp_path / "nas" / "readme.txt").write_text("mount the disk here")
    _, record = score_here(sources, bundle, tmp_path / "out", "run-2")
    assert record["counts"]["deleted_at_source"] == 1
    [gone] = rows(tmp_path / "out" / "run-2", "deleted").to_pylist()
    assert gone["uri"] == str(tmp_path / "local" / "local-1.jpg")
    write_files(tmp_path / "nas", {"nas-2.jpg": picture(5)})
    _, record = score_here(sources, bundle, tmp_path / "out", "run-3")
    assert record["counts"]["deleted_at_source"] == 1, "nas-1.jpg: its disk is there again, and it is not"


@pytest.mark.parametrize("place", ["/data/night/b.tar", "/data/night", "s3://lab/a/"])
def test_what_could_not_be_listed_is_not_gone(place: str) -> None:
    reach = Reach((*NIGHT, "s3://lab"), Filters(), {place})
    assert not reach.covers(f"{place.rstrip('/')}/x.jpg", None)
    assert not reach.covers("/data/night/b.tar", "x.jpg") or place.startswith("s3:")
    assert reach.covers("s3://lab/b/x.jpg", None)
