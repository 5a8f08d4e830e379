"""Files of other versions are read or refused in one line, and rows of other pixel rules are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import migrate as migrate_job
from jobs import score as score_job
from jobs import summary as summary_job
from pipeline.base.errors import InputError
from pipeline.images.load import Preprocessing
from pipeline.model.bundle import read_bundle
from pipeline.scoring.plan.plan import find_or_start
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import Output
from pipeline.sources.manifest import read_manifest
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.scoring_sources import contents, picture, rows, write_files
from tests.scoring_sources import score_here as score
from tests.training_data import cell_images, manifest_of
from tests.training_settings import training_settings


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("version", "words"), [(99, "made by a newer leukoray"), ("x", "reads 1 to [12];")])
def test_bundles_manifests_and_runs_of_no_known_version_are_refused(tmp_path: Path, version: Any, words: str) -> None:
    bundle = make_bundle(tmp_path / "model", size=16)
    manifest = manifest_of(cell_images(tmp_path / "cells", 2), tmp_path / "manifest")
    source, out = write_files(tmp_path / "in", contents(2, bad=False)), tmp_path / "out"
    folder, _ = score([source], bundle, out)
    rewrite(tmp_path / "model" / "bundle.json", bundle_version=version)
    with pytest.raises(InputError, match=words):
        read_bundle(bundle.uri)
    rewrite(tmp_path / "manifest" / "manifest.json", version=version)
    with pytest.raises(InputError, match=words):
        read_manifest(manifest.uri)
    rewrite(Path(folder.uri) / "run.json", schema_version=version)
    with pytest.raises(InputError, match=words):
        score([source], make_bundle(tmp_path / "other", size=16), out, "run-2")


def test_an_unfinished_run_of_a_newer_version_is_left_to_it(tmp_path: Path) -> None:
    output, request = Output.at(str(tmp_path), Stores()), Request(("/in",), "/model", "sha")
    folder, _ = find_or_start(output, request, None)
    assert find_or_start(output, request, None) == (folder, True)
    rewrite(Path(folder.uri) / "_work" / "request.json", schema_version=2)
    with pytest.raises(InputError, match=r"unfinished run version 2, made by a newer leukoray"):
        find_or_start(output, request, None)


def test_another_night_under_other_pixel_rules_scores_anew_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_files(tmp_path / "in", contents(6, bad=False)), tmp_path / "out"
    old = make_bundle(tmp_path / "models" / "v1", size=16)
    _, first = score([source], old, out, "night-1")
    assert first["pixel_rules"] == {old.info.preprocessing_digest: 6}
    monkeypatch.setattr(Preprocessing, "digest", lambda self: "f" * 64)
    new = make_bundle(tmp_path / "models" / "v2", size=16)
    assert new.info.graph_sha256 == old.info.graph_sha256
    folder, second = score([source], new, out, "night-2")
    assert (second["counts"]["scored"], second["counts"]["skipped"]) == (6, 0)
    assert second["pixel_rules"] == {old.info.preprocessing_digest: 6, "f" * 64: 6}
    assert set(rows(Path(folder.uri))["preprocessing_digest"].to_pylist()) == {"f" * 64}
    folder, third = score([source], new, out, "night-3")
    assert third["counts"]["skipped"] == 6 and third["pixel_rules"] == second["pixel_rules"]
    assert summary_job.command([folder.uri]) == 0
    assert "rows of the model under 2 pixel rules" in capsys.readouterr().out
    assert "Several pixel rules" in (Path(folder.uri) / "summary.html").read_text()


def test_another_model_beside_it_is_not_the_same_model_under_other_rules(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", contents(2, bad=False)), tmp_path / "out"
    score([source], make_bundle(tmp_path / "a" / "v1", size=16), out, "night-1")
    _, second = score([source], make_bundle(tmp_path / "b" / "v1", size=24), out, "night-2")
    assert list(second["pixel_rules"].values()) == [2]


def test_a_model_of_other_pixel_rules_is_refused_with_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "model", size=16)
    monkeypatch.setattr(Preprocessing, "digest", lambda self: "f" * 64)
    assert score_job.command([str(tmp_path), "--model", bundle.uri, "--out", str(tmp_path / "out")]) == 3
    [line] = capsys.readouterr().err.strip().splitlines()
    assert f"`leukoray migrate {bundle.uri} --scores" in line


def test_a_training_is_not_continued_under_other_pixel_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = training_settings()
    before, defaults = settings.digest("manifest"), Preprocessing.__init__.__defaults__
    assert defaults is not None
    monkeypatch.setattr(Preprocessing.__init__, "__defaults__", (defaults[0] + 1, *defaults[1:]))
    assert settings.digest("manifest") != before


def test_migrate_wants_rows_of_this_very_model_that_are_still_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_files(tmp_path / "in", contents(3, bad=False)), tmp_path / "out"
    bundle = make_bundle(tmp_path / "m" / "v1", size=16, version="v1")
    score([source], bundle.with_threshold(0.9), out)
    other = make_bundle(tmp_path / "other", size=16, seed=5)
    monkeypatch.setattr(Preprocessing, "digest", lambda self: "f" * 64)

    def refused(*arguments: object) -> str:
        assert migrate_job.command([*map(str, arguments)]) in (2, 3)
        [line] = capsys.readouterr().err.strip().splitlines()
        return line

    assert "--scores is missing" in refused(bundle.uri)
    assert "holds no run of" in refused(other.uri, "--scores", out)
    changed, *_ = sorted(source.iterdir())
    changed.write_bytes(picture(99))
    assert migrate_job.command([bundle.uri, "--scores", str(out), "--dry-run"]) == 0
    assert "on 2 images scored before, probabilities move by 0.0000" in capsys.readouterr().out
    for path in source.iterdir():
        path.unlink()
    assert "can be read as they were" in refused(bundle.uri, "--scores", out)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["v1"]
