"""Counters of jobs: they add what is new, never fall, and need no Ray."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ingest import command as ingest
from pipeline.base import measures as measures_module
from pipeline.base.measures import Measure, Measures, quiet
from pipeline.ingest.measured import listed
from pipeline.samples import generate
from tests.servers import free_port

DONE = Measure("leukoray_example_done", "Counter", "Done", ("output", "code"))
LEFT = Measure("leukoray_example_left", "Gauge", "Left", ("output",))


class Told:
    """What Ray would be told."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.tag_keys, self.values = tag_keys, list[tuple[float, dict[str, str]]]()

    def inc(self, more: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tag_keys) and more > 0
        self.values.append((more, tags))

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tag_keys)
        self.values.append((value, tags))


def joined(monkeypatch: pytest.MonkeyPatch) -> Measures:
    import ray
    from ray.util import metrics

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(metrics, "Counter", Told)
    monkeypatch.setattr(metrics, "Gauge", Told)
    return Measures((DONE, LEFT), output="s3://x")


@given(st.lists(st.integers(0, 50)))
def test_a_counter_reaches_the_highest_total_and_never_falls(totals: list[int]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        measures = joined(monkeypatch)
    for total in totals:
        measures.count(DONE, total, code="empty")
        measures.count(DONE, 2 * total, code="corrupt")
    told: Any = measures._made[DONE.name]
    for code, times in (("empty", 1), ("corrupt", 2)):
        assert sum(more for more, tags in told.values if tags["code"] == code) == times * max(totals, default=0)


def test_a_gauge_tells_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    measures = joined(monkeypatch)
    measures.show(LEFT, None)
    measures.show(LEFT, 0)
    told: Any = measures._made[LEFT.name]
    assert told.values == [(0, {"output": "s3://x"})]


def test_what_a_stuck_job_last_showed_is_told_until_it_leaves_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures_module, "_AGAIN_S", 0.01)
    monkeypatch.setattr(measures_module, "_again", None)
    measures = joined(monkeypatch)
    measures.show(LEFT, 7)
    told: Any = measures._made[LEFT.name]
    deadline = time.monotonic() + 60
    while len(told.values) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    quiet()
    count = len(told.values)
    time.sleep(0.1)
    assert told.values == [(7, {"output": "s3://x"})] * count


def told_by(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """Will hold what is told, by name and values of labels without the output's."""
    found: dict[tuple[str, ...], float] = {}

    def note(self: Measures, measure: Measure, value: float, **labels: str) -> None:
        found[measure.name.removeprefix("leukoray_"), *labels.values()] = value

    monkeypatch.setattr(Measures, "count", note)
    monkeypatch.setattr(Measures, "show", note)
    return found


def test_an_ingest_tells_what_it_listed_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    generate(cells, images=6, subjects=3, width=64, height=64)
    (cells / "healthy" / "empty.jpg").write_bytes(b"")
    (cells / "healthy" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    told = told_by(monkeypatch)
    assert ingest([str(cells), "--out", str(tmp_path / "m"), "--layout", "class-folders", "--use", "test"]) == 0
    assert {key: told[key] for key in told if not key[0].endswith("_seconds")} == {
        ("ingest_images",): 7,
        ("ingest_problems", "not_found"): 1,
        ("ingest_read",): 6,
        ("ingest_unread", "empty"): 1,
        ("ingest_left",): 0,
        ("ingest_split_images", "test"): 7,
    }
    assert told["ingest_begun_seconds",] < told["ingest_finished_seconds",]
    told.clear()
    listed(3, {})
    assert not told, "no ingest goes on"


def test_an_ingest_goes_on_where_the_cluster_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(tmp_path / "cells", images=4, subjects=2, width=64, height=64)
    address = f"127.0.0.1:{free_port()}"
    assert ingest([str(tmp_path / "cells"), "--out", str(tmp_path / "m"), "--address", address]) == 0
    assert f"the cluster is not told how far this is: Ray at {address}" in capsys.readouterr().out


def test_without_ray_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    measures = Measures((DONE, LEFT), output="s3://x")
    measures.count(DONE, 1, code="empty")
    measures.show(LEFT, 1)
    assert not measures._made
