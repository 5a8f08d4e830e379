"""Which images of earlier runs may be called gone: only those that the present listing would have met."""

from datetime import UTC, datetime

import pytest

from pipeline.scoring.history.deleted import Reach
from pipeline.sources.filters import Filters

NIGHT = ("/data/night",)


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


@pytest.mark.parametrize("place", ["/data/night/b.tar", "/data/night", "s3://lab/a/"])
def test_what_could_not_be_listed_is_not_gone(place: str) -> None:
    reach = Reach((*NIGHT, "s3://lab"), Filters(), {place})
    assert not reach.covers(f"{place.rstrip('/')}/x.jpg", None)
    assert not reach.covers("/data/night/b.tar", "x.jpg") or place.startswith("s3:")
    assert reach.covers("s3://lab/b/x.jpg", None)
