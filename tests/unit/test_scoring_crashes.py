"""Tasks and workers whose processes end: who is blamed, how often it is tried, and what is said where nobody is."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from pipeline.base.errors import PlatformError
from pipeline.model.bundle import Bundle
from pipeline.scoring.commit import commit
from pipeline.scoring.work.crashes import Crashes, Suspects
from pipeline.scoring.work.tasks import results
from tests.bundles import make_bundle
from tests.scoring_sources import Here, contents, write_files


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


class RayHere:
    """Tasks in this process, by the calls that scoring makes of Ray. `ends`: what a task's process ends with, if so."""

    exceptions = exceptions

    def __init__(self, ends: Callable[..., Exception | None]) -> None:
        self._ends = ends
        self.begun: list[str] = []

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        assert options["max_retries"] == 0, "Ray would try again for ever where memory is short"
        return lambda method: SimpleNamespace(remote=lambda *arguments: self._begin(method, arguments))

    def _begin(self, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self.begun.append(method.__name__)
        return lambda: self._run(method, arguments)

    def _run(self, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        error = self._ends(method.__name__, *arguments)
        if error is not None:
            raise error
        return method(*arguments)

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: Any) -> Any:
        return reference()


def crashes(ray: RayHere, bundle: Bundle, tmp_path: Path) -> tuple[Crashes, list[int]]:
    source = write_files(tmp_path / "in", contents(9, bad=False))
    task = Here.plan([source], bundle, tmp_path / "out").task
    return Crashes(ray, task, lambda: None), task.folder.table("_work/shards/shard-000000.parquet")[
        "image_id"
    ].to_pylist()


def die(found: Crashes, times: int) -> None:
    for _ in range(times):
        found.note_death([0], exceptions.WorkerCrashedError())
        found.search(0)
        found.note_progress()  # of other shards, which go on


@pytest.mark.parametrize("lost", [exceptions.OutOfMemoryError("short"), exceptions.WorkerCrashedError()])
@pytest.mark.parametrize(("stage", "deaths"), [("decode", 2), ("predict", 4)])
def test_an_image_that_ends_the_process_is_found_whatever_ends_it(
    lost: Exception, stage: str, deaths: int, bundle: Bundle, tmp_path: Path
) -> None:
    culprit: list[int] = []

    def ends(method: str, suspects: Suspects, number: int, ids: frozenset[int] = frozenset()) -> Exception | None:
        return lost if method == stage and culprit[0] in ids else None

    found, ids = crashes(RayHere(ends), bundle, tmp_path)
    culprit.append(ids[4])
    die(found, deaths - 1)
    assert found.images_of(0) == frozenset()
    die(found, 1)
    assert found.images_of(0) == {ids[4]}


def test_a_shard_that_ends_workers_by_none_of_its_images_ends_the_run_and_is_named(
    bundle: Bundle, tmp_path: Path
) -> None:
    ray = RayHere(lambda *arguments: None)
    found, _ = crashes(ray, bundle, tmp_path)
    die(found, 7)
    assert ray.begun == ["ids", "decode", "ids", "predict"], "each search is made once"
    with pytest.raises(
        PlatformError, match=rf"shard 0, of {tmp_path}/in/.*\.jpg, .*, \.\.\., ended 8 workers \(.*died"
    ):
        die(found, 1)


def test_no_image_is_blamed_where_memory_is_short_for_each(bundle: Bundle, tmp_path: Path) -> None:
    def ends(method: str, *arguments: Any) -> Exception | None:
        return exceptions.OutOfMemoryError("short") if method == "decode" else None

    found, _ = crashes(RayHere(ends), bundle, tmp_path)
    with pytest.raises(PlatformError, match=r"ended each process that tried one of its images .*leukoray doctor"):
        die(found, 2)
    assert found.images_of(0) == frozenset()


def test_a_shard_that_cannot_be_listed_for_lack_of_memory_is_named_after_four_tries(
    bundle: Bundle, tmp_path: Path
) -> None:
    ray = RayHere(lambda *arguments: exceptions.OutOfMemoryError("short"))
    found, _ = crashes(ray, bundle, tmp_path)
    with pytest.raises(PlatformError, match=r"shard 0, of .*\.jpg.* cannot even be listed"):
        die(found, 2)
    assert ray.begun == ["ids"] * 4


def test_a_commit_whose_tasks_die_tries_each_four_times_and_says_so(bundle: Bundle, tmp_path: Path) -> None:
    here = Here.plan([write_files(tmp_path / "in", contents(3, bad=False))], bundle, tmp_path / "out")
    here.work()
    left = [3]

    def ends(*arguments: Any) -> Exception | None:
        left[0] -= 1
        return exceptions.OutOfMemoryError("short") if left[0] >= 0 else None

    always = RayHere(lambda *arguments: exceptions.OutOfMemoryError("short"))
    with pytest.raises(PlatformError, match=r"run-1: a task that writes output files died 4 times"):
        here.finish(ray=always, sizes=commit.Sizes(in_driver=0))
    assert always.begun == ["write"] * 4
    assert here.finish(ray=RayHere(ends), sizes=commit.Sizes(in_driver=0))["counts"]["scored"] == 3


def test_whoever_waits_for_tasks_notices_a_lost_lock() -> None:
    """The task never ends."""

    def check() -> None:
        raise PlatformError("the lock of this output was lost")

    ray = RayHere(lambda *arguments: None)
    ray.wait = lambda references, num_returns, timeout: ([], references)  # type: ignore[method-assign]
    with pytest.raises(PlatformError, match="the lock"):
        results(ray, [object], check)


def test_whoever_waits_for_tasks_notices_a_dead_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.scoring.work.tasks._NODE_CHECK_S", 0.0)
    ray = RayHere(lambda *arguments: None)
    ray.wait = lambda references, num_returns, timeout: ([], references)  # type: ignore[method-assign]
    ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "mine")  # type: ignore[attr-defined]
    ray.nodes = lambda: [{"NodeID": "mine", "Alive": False}]  # type: ignore[attr-defined]
    with pytest.raises(PlatformError, match="node under this process died"):
        results(ray, [object], lambda: None)
