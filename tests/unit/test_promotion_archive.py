"""What moves best.json, under which lock, what the archive keeps of it, and the way back."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import promote
from pipeline.base.errors import InputError, NotPromotedError, PlatformError
from pipeline.model.migration import move_pointer
from pipeline.model.promotions import UNFINISHED, Promotion, archive, move_by_hand, promotions, record
from pipeline.model.registry import ModelFolder
from tests.bundles import make_bundle


def version(folder: Path, number: int, **info: Any) -> Any:
    return make_bundle(folder / f"v{number}", 16, seed=number, version=f"v{number}", **info)


def named(folder: Path) -> str:
    pointer = ModelFolder(str(folder)).pointer()
    assert pointer is not None
    return pointer.version


def kept(folder: Path) -> list[tuple[str, str, bool]]:
    return [(one.action, one.version, one.moved) for one in promotions(ModelFolder(str(folder)))]


def test_every_move_is_archived_with_who_when_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version(tmp_path, 1), version(tmp_path, 2)
    assert promote.command([str(tmp_path), "--version", "v1", "--by", "ada"]) == 0
    assert promote.command([str(tmp_path), "--version", "v2", "--by", "ada", "--why", "new camera", "--list"]) == 0
    first, second = promotions(ModelFolder(str(tmp_path)))
    assert (first.before, second.before, second.by, second.why) == (None, "v1", "ada", "new camera")
    assert first.at < second.at and second.action == "pointed" and second.protocol is None
    assert sorted(path.name.partition("-v")[2] for path in (tmp_path / "promotions").iterdir()) == ["1.json", "2.json"]
    assert "pointed      v2 (before: v1) by ada: new camera" in capsys.readouterr().out


def test_rollback_goes_back_step_by_step_and_never_round_in_circles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        version(tmp_path, number)
        assert promote.command([str(tmp_path), "--version", f"v{number}"]) == 0
    for expected in ("v2", "v1"):
        assert promote.command([str(tmp_path), "--rollback", "--why", "false alarms"]) == 0
        assert named(tmp_path) == expected
    assert promote.command([str(tmp_path), "--rollback"]) == 3
    assert "nothing is known of one before" in capsys.readouterr().err
    assert kept(tmp_path)[3:] == [("rolled back", "v2", True), ("rolled back", "v1", True)]


def test_rollback_goes_behind_a_training_that_moved_the_pointer(tmp_path: Path) -> None:
    for number in (1, 2):
        bundle = version(tmp_path, number, metrics={"validation": {"roc_auc": 0.8 + 0.05 * number}})
        assert ModelFolder(str(tmp_path)).point_if_better(bundle).is_best
    assert promote.command([str(tmp_path), "--rollback"]) == 0 and named(tmp_path) == "v1"


def test_rollback_to_a_version_that_is_gone_says_so_and_moves_nothing(tmp_path: Path) -> None:
    for number in (1, 2):
        version(tmp_path, number)
        promote.command([str(tmp_path), "--version", f"v{number}"])
    (tmp_path / "v1" / "bundle.json").unlink()
    assert promote.command([str(tmp_path), "--rollback"]) == 3
    assert named(tmp_path) == "v2" and len(kept(tmp_path)) == 2


def test_a_pointer_that_cannot_be_written_is_archived_as_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(tmp_path, 1)
    monkeypatch.setattr(ModelFolder, "point_to", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
    assert promote.command([str(tmp_path), "--version", "v1"]) == 5
    assert kept(tmp_path) == [("pointed", "v1", False)]
    assert "no space left" in promotions(ModelFolder(str(tmp_path)))[0].why


@pytest.mark.parametrize("text", ['{"promotion_version": 1}', '{"promotion_version": 9}', "[]", "", "\udcff"])
def test_an_altered_record_is_named_and_the_others_are_listed(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    version(tmp_path, 1)
    for why in ("one", "two"):
        promote.command([str(tmp_path), "--version", "v1", "--why", why])
    path, _ = sorted((tmp_path / "promotions").iterdir())
    path.write_bytes(text.encode(errors="surrogateescape"))
    capsys.readouterr()
    assert promote.command([str(tmp_path), "--list"]) == 0
    told = capsys.readouterr().out
    assert "unusable" in told and path.name in told and ": two" in told and ": one" not in told


def test_a_refused_version_is_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise NotPromotedError("v1 is not promoted")

    version(tmp_path, 1)
    monkeypatch.setattr("jobs.promote_judged.by_protocol", refused)
    assert promote.command([str(tmp_path), "--version", "v1", "--protocol", "p.yaml", "--list"]) == 7
    said = capsys.readouterr()
    assert "v1  linear 16 px" in said.out and "v1 is not promoted" in said.err


def test_a_run_that_is_killed_leaves_a_record_of_one_that_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there at the moment when the pointer is written."""
    seen: list[Promotion] = []
    real = ModelFolder.point_to

    def looking(*given: Any) -> Any:
        seen.extend(promotions(given[0]))
        return real(*given)

    monkeypatch.setattr(ModelFolder, "point_to", looking)
    version(tmp_path, 1)
    assert promote.command([str(tmp_path), "--version", "v1", "--why", "new stain"]) == 0
    assert [(one.moved, one.why) for one in seen] == [(False, f"new stain {UNFINISHED}")]
    assert [(one.moved, one.why) for one in promotions(ModelFolder(str(tmp_path)))] == [(True, "new stain")]


def test_a_write_that_landed_though_its_answer_never_came_is_archived_as_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ModelFolder.point_to

    def lost(*given: Any) -> None:
        real(*given)
        raise PlatformError("no answer in 30 s")

    version(tmp_path, 1)
    monkeypatch.setattr(ModelFolder, "point_to", lost)
    assert promote.command([str(tmp_path), "--version", "v1"]) == 5
    assert "no answer in 30 s" in capsys.readouterr().err
    assert named(tmp_path) == "v1" and kept(tmp_path) == [("pointed", "v1", True)]


def test_a_store_that_fails_twice_shows_its_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        monkeypatch.setattr("pipeline.model.promotions.archive", lambda *_: (_ for _ in ()).throw(OSError("second")))
        raise OSError(28, "no space left")

    version(tmp_path, 1)
    monkeypatch.setattr(ModelFolder, "point_to", full)
    assert promote.command([str(tmp_path), "--version", "v1"]) == 5
    said = capsys.readouterr().err
    assert "no space left" in said and "second" not in said
    [one] = promotions(ModelFolder(str(tmp_path)))
    assert not one.moved and UNFINISHED in one.why


def test_a_folder_that_is_not_called_by_its_version_is_never_pointed_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """best.json would name a folder that is not there, or one outside."""
    version(tmp_path, 1)
    promote.command([str(tmp_path), "--version", "v1"])
    make_bundle(tmp_path / "copy", 16, seed=2, version="v2")
    outside = make_bundle(tmp_path / "odd", 16, seed=3, version="../x")
    for folder in ("copy", "odd"):
        assert promote.command([str(tmp_path), "--version", folder]) == 3
        assert "as best.json would" in capsys.readouterr().err
    assert named(tmp_path) == "v1" and len(kept(tmp_path)) == 1
    with pytest.raises(InputError, match="no name of a folder"):
        archive(ModelFolder(str(tmp_path)), record("pointed", outside, None, "ada"))
    assert not list(tmp_path.glob("*x.json"))


def test_whoever_moves_by_hand_waits_for_the_lock_and_archives_what_is_replaced_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, other = version(tmp_path, 1), version(tmp_path, 2), version(tmp_path, 3)
    folder = ModelFolder(str(tmp_path))
    folder.point_to(old)
    monkeypatch.setattr("pipeline.model.registry._POINTING_S", 0.2)
    with folder.moving():
        assert promote.command([str(tmp_path), "--version", "v2"]) == 5
        for move in (lambda: move_by_hand(folder, new, "ada", ""), lambda: move_pointer(old, new)):
            with pytest.raises(PlatformError, match="another run is writing here"):
                move()
    assert named(tmp_path) == "v1" and kept(tmp_path) == []
    real = ModelFolder.moving

    def moved_between(given: ModelFolder) -> Any:
        monkeypatch.setattr(ModelFolder, "moving", real)
        move_by_hand(given, other, "eve", "meanwhile")
        return real(given)

    monkeypatch.setattr(ModelFolder, "moving", moved_between)
    assert not move_pointer(old, new) and named(tmp_path) == "v3"
    folder.point_to(old)
    monkeypatch.setattr(ModelFolder, "moving", moved_between)
    move_by_hand(folder, new, "ada", "")
    assert [one.before for one in promotions(folder)] == ["v1", "v1", "v3"] and named(tmp_path) == "v2"
    assert move_pointer(new, other) and promotions(folder)[-1].why == "leukoray migrate"


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--rollback", "--version", "v1"], "--rollback"),
        (["--protocol", "p.yaml"], "--version"),
        (["--version", "v1", "--force", "--why", "x"], "--protocol"),
        (["--version", "v1", "--protocol", "p.yaml", "--force"], "--why"),
        ([], "--list"),
        (["--version", "v1", "--out", "x", "--workers", "2"], "--out, --workers: only with --protocol"),
        (["--rollback", "--mistakes", "2"], "--mistakes: only with --protocol"),
        (["--version", "v1", "--gpus-per-worker", "1"], "--gpus-per-worker: only with --protocol"),
        (["--list", "--why", "x"], "--why: only with --version or --rollback"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    tmp_path: Path, flags: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote.command([str(tmp_path), *flags]) == 2
    assert why in capsys.readouterr().err


def test_records_are_json_that_others_read(tmp_path: Path) -> None:
    version(tmp_path, 1)
    promote.command([str(tmp_path), "--version", "v1"])
    [path] = (tmp_path / "promotions").iterdir()
    assert json.loads(path.read_text())["model_sha256"] == ModelFolder(str(tmp_path)).pointer().model_sha256  # type: ignore[union-attr]


def test_nobody_goes_back_while_another_promotion_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        version(tmp_path, number)
        promote.command([str(tmp_path), "--version", f"v{number}"])
    monkeypatch.setattr("pipeline.model.registry._POINTING_S", 0.2)
    with ModelFolder(str(tmp_path)).moving():
        assert promote.command([str(tmp_path), "--rollback"]) == 5
    assert named(tmp_path) == "v2" and len(kept(tmp_path)) == 2
    assert "another run is writing here" in capsys.readouterr().err
    assert promote.command([str(tmp_path), "--rollback"]) == 0


def test_a_renamed_folder_is_refused_for_best_json_would_name_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ModelFolder(str(tmp_path)).point_to(version(tmp_path, 1))
    version(tmp_path, 2)
    (tmp_path / "v2").rename(tmp_path / "newest")
    assert promote.command([str(tmp_path), "--version", "newest", "--why", "x"]) == 3
    assert "its bundle.json says version v2" in capsys.readouterr().err
    assert named(tmp_path) == "v1" and not promotions(ModelFolder(str(tmp_path)))
