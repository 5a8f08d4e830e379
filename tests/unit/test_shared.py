"""All nodes must see the same files: a probe is read on each, and leaves nothing behind. Other nodes are pretended."""

import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.errors import PlatformError
from pipeline.base.likeness import version_here
from pipeline.storage import shared
from pipeline.storage.shared import refuse_unshared, spaced
from pipeline.storage.stores import Stores


class GoneError(Exception):
    """What Ray raises for a task on a node that died."""


class FailedError(Exception):
    """What Ray raises for a task that could not be done."""


class LateError(FailedError):
    """What Ray raises for an answer that did not come in time."""


def cluster(monkeypatch: pytest.MonkeyPatch, *others: str, look: Callable[[Any], Any] = lambda seen: seen) -> Any:
    """Ray with this node and others; `look` may change what is seen there, or raise."""
    monkeypatch.setattr("pipeline.base.nodes.on_node", lambda node_id: node_id)
    names = ["own", *others]
    nodes = [{"NodeID": n, "Alive": True, "NodeManagerHostname": n, "NodeManagerAddress": "10.0.0.9"} for n in names]
    return SimpleNamespace(
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "own"),
        nodes=lambda: nodes,
        remote=lambda **_: lambda function: SimpleNamespace(remote=lambda marks: lambda: look(function(marks))),
        get=lambda answer, timeout: answer(),
        exceptions=SimpleNamespace(
            NodeDiedError=GoneError, TaskUnschedulableError=GoneError, GetTimeoutError=LateError, RayError=FailedError
        ),
    )


def test_one_node_is_asked_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read() -> Any:
        raise AssertionError("looked at")
        yield

    refuse_unshared(cluster(monkeypatch), Stores(), read(), str(tmp_path))


def test_a_probe_is_there_while_nodes_look_and_what_a_killed_process_left_goes_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / f"_probe-{uuid.uuid4().hex}").write_bytes(b"")  # of a killed process
    for theirs in ("part.parquet", "_probe-design.csv", "_probe-sets/images.csv"):
        (tmp_path / theirs).parent.mkdir(exist_ok=True)
        (tmp_path / theirs).write_bytes(b"")
    seen: list[list[str]] = []

    def look(unseen: list[str]) -> list[str]:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        return unseen

    refuse_unshared(cluster(monkeypatch, "b", "c", look=look), Stores(), [], str(tmp_path))
    theirs = ["_probe-design.csv", "_probe-sets", "part.parquet"]
    assert len(seen) == 2 and all(len(names) == 4 for names in seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == theirs
    assert (tmp_path / "_probe-sets" / "images.csv").exists()


def test_a_node_that_does_not_see_the_output_is_named_with_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def look(_: list[str]) -> list[str]:
        return [str(path) for path in tmp_path.iterdir()]

    with pytest.raises(PlatformError, match=rf"node b \(10.0.0.9\), and 1 more, does not see {tmp_path} as"):
        refuse_unshared(cluster(monkeypatch, "b", "c", look=look), Stores(), [], str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_another_on_a_node_is_not_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = tmp_path / "cell.jpg"
    image.write_bytes(b"one")
    ray = cluster(monkeypatch, "b")
    refuse_unshared(ray, Stores(), [str(image), str(tmp_path)])
    real = shared._unseen

    def elsewhere(marks: dict[str, str]) -> list[str]:
        image.write_bytes(b"two")
        return real(marks)

    monkeypatch.setattr(shared, "_unseen", elsewhere)
    with pytest.raises(PlatformError, match=r"node b .* does not see .*/cell\.jpg"):
        refuse_unshared(ray, Stores(), [str(image), str(tmp_path)])


def test_s3_a_file_that_is_gone_and_a_node_that_died_are_nobody_s_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def look(_: list[str]) -> list[str]:
        raise GoneError

    refuse_unshared(cluster(monkeypatch, "b", look=look), Stores(), [str(tmp_path)], str(tmp_path))
    refuse_unshared(cluster(monkeypatch, "b"), Stores(), ["s3://lab/a.jpg", str(tmp_path / "gone")], "s3://lab/out")


@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 1_000_003])
def test_some_of_many_are_tried_from_the_first_on(count: int) -> None:
    found = list(spaced(count))
    assert len(found) <= 20 and found[:1] == [0][:count] and all(number < count for number in found)
    assert count <= 20 or found[-1] >= 0.9 * count


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LateError(), r"node b \(10\.0\.0\.9\) did not look at 1 paths within 180 s"),
        (FailedError("Traceback\n  File x\nModuleNotFoundError: No module named 'pipeline'"),
         r"node b .* cannot run this package \(ModuleNotFoundError: No module named 'pipeline'\); install"),
    ],
)  # fmt: skip
def test_a_node_that_cannot_be_asked_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    def fail(unseen: list[str]) -> list[str]:
        raise error

    with pytest.raises(PlatformError, match=message):
        refuse_unshared(cluster(monkeypatch, "b", look=fail), Stores(), [], str(tmp_path))
    assert not list(tmp_path.iterdir()), "the probe is gone"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simplejpeg", "another simplejpeg than this one's .* pip install simplejpeg=="),
        ("leukoray", "other code of leukoray than this one's"),
        ("python", "another Python than this one's"),
    ],
)
def test_a_node_with_another_decoder_or_other_code_is_refused_though_all_lies_on_s3(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, real = cluster(monkeypatch, "b"), shared._unseen
    refuse_unshared(ray, Stores(), ["s3://lab/a.jpg"])

    def elsewhere(marks: dict[str, str]) -> list[str]:
        with monkeypatch.context() as there:
            there.setattr(shared, "version_here", lambda asked: "0" if asked == name else version_here(asked))
            return real(marks)

    monkeypatch.setattr(shared, "_unseen", elsewhere)
    with pytest.raises(PlatformError, match=rf"node b \(10\.0\.0\.9\) .*{message}"):
        refuse_unshared(ray, Stores(), ["s3://lab/a.jpg"])
