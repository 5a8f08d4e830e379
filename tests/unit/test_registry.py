"""The registry: which version is the best of its name, and that what is read is what was published."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs import promote
from pipeline.base.errors import Code, InputError, PlatformError
from pipeline.model.bundle import GRAPH, WEIGHTS, Bundle
from pipeline.model.chance import AgainstChance
from pipeline.model.registry import ModelFolder, Verdict, resolve
from pipeline.storage.local import LocalStore
from pipeline.storage.stores import Stores
from pipeline.storage.types import Bytes, StoreError
from tests.bundles import make_bundle


def version(folder: Path, number: int, auc: float | None = 0.9, **info: Any) -> Bundle:
    metrics = {"validation": {"roc_auc": auc}}
    return make_bundle(folder / f"v{number}", size=8, seed=number, version=f"v{number}", metrics=metrics, **info)


def judged(folder: Path, bundle: Bundle) -> Verdict:
    return ModelFolder(str(folder)).point_if_better(bundle)


def best(folder: Path) -> str:
    pointer = ModelFolder(str(folder)).pointer()
    assert pointer is not None
    return pointer.version


def test_the_better_version_becomes_the_best_and_the_reason_names_both(tmp_path: Path) -> None:
    first = judged(tmp_path, version(tmp_path, 1, 0.8))
    worse = judged(tmp_path, version(tmp_path, 2, 0.7))
    assert first.is_best and not worse.is_best and best(tmp_path) == "v1"
    assert "stays at v1" in worse.reason and "0.8000" in worse.reason
    better = judged(tmp_path, version(tmp_path, 3, 0.9))
    assert better.is_best and best(tmp_path) == "v3" and "another manifest" not in better.reason


def test_of_two_that_end_together_the_better_one_becomes_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worse one finds no pointer, and is slow to write its own."""
    worse, better = version(tmp_path, 1, 0.8), version(tmp_path, 2, 0.95)
    has_judged, is_done = threading.Event(), threading.Event()
    judge = ModelFolder._judge

    def slowly(folder: ModelFolder, bundle: Bundle) -> Verdict:
        verdict = judge(folder, bundle)
        if bundle is worse:
            has_judged.set()
            is_done.wait(1.0)
        return verdict

    monkeypatch.setattr(ModelFolder, "_judge", slowly)
    slow = threading.Thread(target=judged, args=(tmp_path, worse))
    slow.start()
    assert has_judged.wait(10)
    judged(tmp_path, better)
    is_done.set()
    slow.join()
    assert best(tmp_path) == better.info.version


def test_another_manifest_makes_the_comparison_a_rough_one(tmp_path: Path) -> None:
    judged(tmp_path, version(tmp_path, 1, 0.8, manifest_digest="a"))
    assert "another manifest" in judged(tmp_path, version(tmp_path, 2, 0.9, manifest_digest="b")).reason


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_real_images_win_over_synthetic_ones_whatever_the_metric(tmp_path: Path, value: float) -> None:
    judged(tmp_path, version(tmp_path, 1, 0.9, synthetic=True))
    assert judged(tmp_path, version(tmp_path, 2, value)).is_best
    verdict = judged(tmp_path, version(tmp_path, 3, 1.0, synthetic=True))
    assert not verdict.is_best and best(tmp_path) == "v2" and "real images" in verdict.reason


def against(low: float | None) -> AgainstChance:
    high = None if low is None else 0.95
    return AgainstChance(
        metric="roc_auc", value=0.9, chance=0.5, low=low, high=high, confidence=0.95, unit="subject", units=12
    )


SHOWN, GUESSES, UNTOLD = against(0.7), against(0.4), against(None)


def test_a_model_that_may_guess_takes_nobodys_place_whatever_its_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(tmp_path, version(tmp_path, 1, 0.6, against_chance=SHOWN)).is_best
    verdict = judged(tmp_path, version(tmp_path, 2, 0.99, against_chance=GUESSES))
    assert verdict.guesses and not verdict.is_best and best(tmp_path) == "v1"
    assert "not shown to be better than chance (0.5)" in verdict.reason
    assert promote.command([str(tmp_path), "--version", "v2", "--list"]) == 0
    said = capsys.readouterr().out
    assert "warning: this version is not shown to be better than chance" in said
    versions = [line for line in said.splitlines() if "roc_auc" in line and " px " in line]
    assert [line.endswith("not shown to be better than chance") for line in versions] == [False, True]


@pytest.mark.parametrize("against_chance", [GUESSES, UNTOLD])
def test_a_model_of_real_images_takes_the_place_of_samples_even_where_it_may_guess(
    tmp_path: Path, against_chance: AgainstChance
) -> None:
    """After `make demo`, or every score and answer would be of a model of drawn cells."""
    judged(tmp_path, version(tmp_path, 1, 0.99, synthetic=True, against_chance=SHOWN))
    verdict = judged(tmp_path, version(tmp_path, 2, 0.6, against_chance=against_chance))
    assert verdict.is_best and not verdict.guesses and best(tmp_path) == "v2"
    assert "synthetic images only; this one is not shown to be better than chance" in verdict.reason
    verdict = judged(tmp_path, version(tmp_path, 3, 0.99, synthetic=True, against_chance=SHOWN))
    assert not verdict.is_best and best(tmp_path) == "v2"


def test_one_that_was_shown_to_be_better_takes_the_place_of_one_that_was_not(tmp_path: Path) -> None:
    assert judged(tmp_path, version(tmp_path, 1, 0.9, against_chance=GUESSES)).is_best  # the first, and said so
    assert judged(tmp_path, version(tmp_path, 2, 0.95, against_chance=UNTOLD)).is_best
    assert judged(tmp_path, version(tmp_path, 3, 0.7, against_chance=SHOWN)).is_best
    verdict = judged(tmp_path, version(tmp_path, 4, 1.0, against_chance=UNTOLD))
    assert not verdict.is_best and not verdict.guesses and best(tmp_path) == "v3"


def test_an_undefined_metric_never_wins(tmp_path: Path) -> None:
    judged(tmp_path, version(tmp_path, 1, 0.9))
    assert not judged(tmp_path, version(tmp_path, 2, None)).is_best
    assert best(tmp_path) == "v1"


def test_a_pointer_to_something_unusable_gives_way(tmp_path: Path) -> None:
    judged(tmp_path, version(tmp_path, 1, 0.9))
    (tmp_path / "v1" / "bundle.json").unlink()
    assert judged(tmp_path, version(tmp_path, 2, 0.5)).is_best


def test_another_question_needs_another_name(tmp_path: Path) -> None:
    bundle = version(tmp_path, 1)
    ModelFolder(str(tmp_path)).refuse_other_task("binary", bundle.info.classes, bundle.info.positive_classes)
    judged(tmp_path, bundle)
    ModelFolder(str(tmp_path)).refuse_other_task("binary", bundle.info.classes, bundle.info.positive_classes)
    with pytest.raises(InputError, match="--name"):
        ModelFolder(str(tmp_path)).refuse_other_task("multiclass", ("Benign", "Pre"), ("Pre",))


def test_a_bundle_that_is_not_what_the_pointer_was_written_for_is_refused(tmp_path: Path) -> None:
    bundle = version(tmp_path, 1)
    judged(tmp_path, bundle)
    assert resolve(str(tmp_path)).info.version == "v1"
    record = json.loads((tmp_path / "v1" / "bundle.json").read_text())
    (tmp_path / "v1" / "bundle.json").write_text(json.dumps({**record, "threshold": 0.9}))
    with pytest.raises(InputError, match="promote"):
        resolve(str(tmp_path))
    assert promote.command([str(tmp_path), "--version", "v1"]) == 0
    assert resolve(str(tmp_path)).info.threshold == 0.9


@pytest.mark.parametrize("name", [WEIGHTS, GRAPH])
def test_an_altered_file_is_found_before_anything_starts(tmp_path: Path, name: str) -> None:
    bundle = version(tmp_path, 1).verify()
    path = tmp_path / "v1" / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=name):
        bundle.verify()


class SilentStore(LocalStore):
    """Answers nothing."""

    def read(self, uri: str) -> Bytes:
        raise StoreError(Code.TIMEOUT, f"{uri}: no answer")


def test_a_store_that_is_out_is_never_taken_for_an_empty_registry() -> None:
    with pytest.raises(PlatformError, match="does not answer"):
        ModelFolder("s3://lab/models", Stores(mounts=(("s3://lab/", SilentStore()),))).pointer()


def test_promote_lists_all_models_of_a_registry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("blasts", "stages"):
        folder = tmp_path / name
        judged(folder, version(folder, 1, 0.9))
    assert promote.command([str(tmp_path), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["*", "blasts/v1"], ["*", "stages/v1"]]


@pytest.mark.parametrize("name", ["../other", "a/b", ".."])
def test_promote_takes_no_paths_for_versions(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert promote.command([str(tmp_path), "--version", name]) == 2
    assert "without slashes" in capsys.readouterr().err


def test_a_review_band_keeps_its_margin_when_the_threshold_moves(tmp_path: Path) -> None:
    bundle = version(tmp_path, 1, threshold=0.05, review_band=(0.0, 0.15))
    assert bundle.with_threshold(0.5).info.review_band == pytest.approx((0.4, 0.6))


def test_a_pointer_of_the_first_release_is_followed(tmp_path: Path) -> None:
    bundle = version(tmp_path, 1)
    written = {"version": "v1", "metric": "validation roc_auc", "value": 0.8, "model_sha256": bundle.info.identity()}
    (tmp_path / "best.json").write_text(json.dumps({**written, "updated_at": "2026-11-20T10:00:00+00:00"}))
    assert resolve(str(tmp_path)).uri == bundle.uri
    assert "no longer to v1, whose validation roc_auc is 0.8000" in judged(tmp_path, version(tmp_path, 2, 0.9)).reason


@pytest.mark.parametrize(
    ("text", "why"),
    [("{}", "version: Field required"), ('{"version": "v1"', "Invalid JSON"), ("[1]", "object")],
)
def test_a_pointer_that_cannot_be_read_says_why_and_what_to_do(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(InputError, match=rf"best\.json: cannot be read.*{why}.*leukoray promote"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"version": "v1"', "best.json: cannot be read"),
        (b"", "best.json: cannot be read"),
        (b"\xff\x00", "best.json: cannot be read"),
        (b'{"version": "v9", "metric": "roc_auc", "value": 1.0}', "best.json: names v9, which is not here"),
        (b'{"version": "../v1", "metric": "roc_auc", "value": 1.0}', "best.json: names ../v1, which is not here"),
    ],
)
def test_versions_are_listed_beside_a_pointer_that_tells_none_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, why: str
) -> None:
    version(tmp_path, 1)
    (tmp_path / "best.json").write_bytes(text)
    assert promote.command([str(tmp_path), "--list"]) == 0
    told = capsys.readouterr().out
    assert "  v1  " in told and "* v1" not in told
    assert "unusable: " in told and why in told and "leukoray promote" in told


def test_a_version_that_is_asked_for_alone_says_nothing_of_the_best_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = version(tmp_path, 1)
    version(tmp_path, 2)
    (tmp_path / "best.json").write_text('{"version": "v2", "metric": "roc_auc", "value": 1.0}')
    assert promote.command([first.uri, "--list"]) == 0
    told = capsys.readouterr().out
    assert "v1  linear" in told and "unusable" not in told


def test_a_pointer_of_a_newer_release_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text('{"version": "v1", "pointer_version": 2}')
    with pytest.raises(InputError, match=r"best\.json: pointer version 2, made by a newer leukoray"):
        resolve(str(tmp_path))
