"""Counters of jobs: they add what is new, never fall, and need no Ray."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.measures import Measure, Measures

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


def test_without_ray_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    measures = Measures((DONE, LEFT), output="s3://x")
    measures.count(DONE, 1, code="empty")
    measures.show(LEFT, 1)
    assert not measures._made
