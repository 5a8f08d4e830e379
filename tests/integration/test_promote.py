"""Models compared, and promoted by a protocol, through the commands and on Ray."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from jobs import evaluate, promote, promote_judged
from pipeline.model.promotions import promotions
from pipeline.model.registry import ModelFolder
from pipeline.sources.manifest import Manifest
from tests.bundles import make_bundle
from tests.servers import S3Server
from tests.training_data import cell_images, manifest_of


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("cells")
    rows = [row | {"split": "test", "subject_id": f"s{k}"} for k, row in enumerate(cell_images(folder / "images", 60))]
    return manifest_of(rows, folder / "manifest")


@pytest.fixture
def models(tmp_path: Path, manifest: Manifest) -> Path:
    """v1 calls everything positive and is the best; v2 nearly the same; v3 is silent."""
    folder = tmp_path / "models"
    for number, bias in ((1, 20.0), (2, 20.1), (3, -20.0)):
        own = {"version": f"v{number}", "manifest_digest": manifest.info.digest}
        bundle = make_bundle(folder / f"v{number}", 16, seed=1, bias=bias, **own)
        if number == 1:
            ModelFolder(str(folder)).point_to(bundle)
    return folder


def named(folder: Path) -> str:
    pointer = ModelFolder(str(folder)).pointer()
    assert pointer is not None
    return pointer.version


def protocol(folder: Path, manifest: Manifest, **more: Any) -> str:
    path = folder / "promotion.yaml"
    asked = {"manifest": manifest.uri, "test_digest": manifest.split_digest("test"), "bootstrap": 200}
    path.write_text(yaml.safe_dump({**asked, "metrics": [{"metric": "sensitivity", "margin": 0.2}], **more}))
    return str(path)


def test_two_models_are_compared_on_one_page(
    ray_cluster: Any, manifest: Manifest, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [str(models / "v1"), str(models / "v3")]
    out = tmp_path / "compared"
    code = evaluate.command(
        [manifest.uri, "--model", *both, "--out", str(out), "--bootstrap", "200", "--mistakes", "4"]
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "A is better than B: Sensitivity (recall) 1.000 against 0.000" in said.out
    record = json.loads((out / "comparison.json").read_text())
    assert record["pairs"][0]["differences"]["sensitivity"]["is_real"]
    assert len(record["pairs"][0]["only_first_right"]) == 30 and record["left_out"] == 0
    assert pq.read_table(out / "comparison.parquet")["is_right_A"].to_pylist().count(True) == 30
    page = (out / "comparison.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 4 and "Synthetic." in page
    assert evaluate.command([manifest.uri, "--model", both[0], both[0], "--out", str(out)]) == 2
    assert "the same model" in capsys.readouterr().err


def test_a_version_that_meets_its_protocol_becomes_the_best_and_goes_back(
    ray_cluster: Any, manifest: Manifest, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--protocol", protocol(tmp_path, manifest), "--by", "ada", "--out", str(tmp_path / "out")]
    assert promote.command([str(models), "--version", "v2", *asked]) == 0
    assert named(models) == "v2" and "met" in capsys.readouterr().out
    [one] = promotions(ModelFolder(str(models)))
    assert one.protocol is not None and one.protocol["text"] == Path(asked[1]).read_text()
    assert (one.action, one.before, one.test_digest) == ("promoted", "v1", manifest.split_digest("test"))
    assert one.figures["pairs"][0]["differences"]["sensitivity"]["value"] == 0.0
    assert promote.command([str(models), "--rollback", "--by", "ada"]) == 0
    assert named(models) == "v1"


def test_a_version_that_does_not_is_refused_unless_forced_and_both_are_archived(
    ray_cluster: Any, manifest: Manifest, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--protocol", protocol(tmp_path, manifest, latency_p95_ms=10000), "--out", str(tmp_path / "out")]
    command = [str(models), "--version", "v3", *asked]
    assert promote.command(command) == 7
    said = capsys.readouterr()
    assert named(models) == "v1" and "1 of 5 criteria are not met" in said.err and "not met" in said.out
    assert promote.command([*command, "--force", "--why", "a drill"]) == 0
    assert named(models) == "v3" and "FORCED" in capsys.readouterr().out
    found = promotions(ModelFolder(str(models)))
    assert [(one.action, one.moved, one.why) for one in found] == [("refused", False, ""), ("forced", True, "a drill")]


def test_a_best_that_is_moved_meanwhile_is_not_overwritten(
    ray_cluster: Any, manifest: Manifest, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = promote_judged.judge

    def meanwhile(*given: Any, **more: Any) -> Any:
        found = real(*given, **more)
        assert promote.command([str(models), "--version", "v3"]) == 0
        return found

    monkeypatch.setattr(promote_judged, "judge", meanwhile)
    asked = ["--protocol", protocol(tmp_path, manifest), "--out", str(tmp_path / "out")]
    assert promote.command([str(models), "--version", "v2", *asked]) == 5
    assert named(models) == "v3"


def test_a_registry_on_s3_is_moved_archived_and_rolled_back(
    ray_cluster: Any, s3: S3Server, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {str(path.relative_to(models)): path.read_bytes() for path in models.glob("v*/**/*") if path.is_file()}
    uri = s3.upload("promoted/leukoray", files)
    for version in ("v1", "v2"):
        assert promote.command([uri, "--version", version, "--by", "ada", *s3.flags]) == 0
    assert promote.command([uri, "--rollback", "--by", "ada", "--list", *s3.flags]) == 0
    folder = ModelFolder(uri, s3.stores)
    pointer = folder.pointer()
    assert pointer is not None and (pointer.version, pointer.earlier) == ("v1", ())
    assert [(one.action, one.version, one.before) for one in promotions(folder)] == [
        ("pointed", "v1", None), ("pointed", "v2", "v1"), ("rolled back", "v1", "v2")
    ]  # fmt: skip
    assert "rolled back  v1 (before: v2) by ada" in capsys.readouterr().out
