"""`--unfreeze head`: a head fitted to features that are computed once, and published as an ordinary network."""

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load

from jobs import evaluate, train
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.bundle import GRAPH, WEIGHTS, Bundle
from pipeline.model.export import to_safetensors
from pipeline.model.feature_graph import features_digest
from pipeline.model.registry import resolve
from pipeline.model.starting_weights import start_from
from pipeline.model.trainable import features, head_of
from pipeline.model.turns import turned
from pipeline.sources.manifest import read_manifest
from pipeline.storage.local import local_etag
from pipeline.training.cache import OWN
from pipeline.training.decoded import decode
from pipeline.training.linear import fit_head, weigh
from pipeline.training.rows import labelled_rows
from tests.training_data import cell_images, manifest_of
from tests.training_settings import training_settings

SIZE = 32
FLAGS = ["--unfreeze", "head", "--architecture", "efficientnet-lite0", "--input-size", str(SIZE)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve subjects; one image is damaged."""
    folder = tmp_path_factory.mktemp("cells")
    rows = cell_images(folder / "images", 96)
    path = Path(rows[0]["uri"])
    path.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    rows[0] |= {"size_bytes": path.stat().st_size, "etag": local_etag(path.stat())}
    for number, row in enumerate(rows):
        row["subject_id"] = f"s{number % 12}"
        row["split"] = "validation" if number % 12 in (4, 5, 10, 11) else "train"
    return manifest_of(rows, folder / "manifest", split_rule="subjects").uri


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


def probed(manifest: str, place: Path, *more: str, name: str = "leukoray") -> Bundle:
    out, cache = str(place / "models"), str(place / "cache")
    assert train.command([manifest, "--out", out, "--name", name, "--cache", cache, *FLAGS, *more]) == 0
    return resolve(str(place / "models" / name))


@pytest.fixture(scope="module")
def first(ray_cluster: Any, manifest: str, place: Path) -> Bundle:
    return probed(manifest, place)


def feature_files(place: Path) -> list[Path]:
    return sorted((place / "cache").glob("*/*/*.features"))


def without_ray(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("Ray was asked for")


def test_the_bundle_is_the_optimum_on_what_the_network_makes_of_turned_images(first: Bundle, manifest: str) -> None:
    rows = labelled_rows(read_manifest(manifest)).train.sort_by("image_id")
    decoded = decode(rows, Preprocessing(SIZE))
    usable = decoded.notes["code"].is_null().to_numpy()
    images, targets = decoded.images[usable], rows["target"].to_numpy()[usable]
    network = build("efficientnet-lite0", 1, "frozen")
    start_from(network, "efficientnet-lite0", "imagenet")
    turns = np.stack([features(network, torch.from_numpy(some)).numpy() for some in turned(images, 4)], axis=1)
    settings, row = training_settings(), first.info.training["history"][0]
    expected = fit_head(turns, targets, weigh(settings, targets), row["strength"], settings)(turns[:, :1])[:, 0]
    network.load_state_dict(load(first.file(WEIGHTS)))
    with torch.inference_mode():
        by_torch = network.eval()(torch.from_numpy(images)).numpy()[:, 0]
    session = onnxruntime.InferenceSession(first.file(GRAPH), providers=["CPUExecutionProvider"])
    by_onnx = session.run(None, {"images": images})[0][:, 0]
    assert np.abs(by_torch - expected).max() < 2e-3 * np.abs(expected).max()  # of two engines' features
    assert np.abs(by_torch - by_onnx).max() < 1e-4 * max(1.0, np.abs(by_torch).max())
    assert first.info.training["rejected"] and len(targets) == 63


def test_a_second_run_needs_no_ray_and_gives_the_same_weights(
    first: Bundle, manifest: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "connected", without_ray)
    again = probed(manifest, place, name="again")
    assert again.file(WEIGHTS) == first.file(WEIGHTS)
    costly = probed(manifest, place, "--costs", "FN=5", "--seed", "7", name="costly")
    assert costly.file(WEIGHTS) != first.file(WEIGHTS)
    folds = probed(manifest, place, "--folds", "3", "--tta", "4", name="folds")
    assert folds.info.calibrated_on == "out-of-fold"
    assert folds.info.reference_scores["count"] == 95
    assert folds.info.turns == 4


def test_the_report_has_the_folds_and_what_a_random_split_would_promise(
    first: Bundle, manifest: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = probed(manifest, place, "--folds", "3", name="judged")
    asked = [manifest, "--split", "validation", "--colour-images", "0", "--out", str(tmp_path), "--model"]
    assert evaluate.command([*asked, folds.uri, "--compare-splits"]) == 0
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["value"] for row in record["cross_validation"]["folds"]] == ["1", "2", "3"]
    assert record["cross_validation"]["images"] == 95 and record["cross_validation"]["subjects"] == 12
    assert sum(row["images"] for row in record["cross_validation"]["folds"]) == 95
    splits = record["splits"]
    assert splits["images"] == 95 and splits["subjects"] == 12
    assert {way: found["groups"] for way, found in splits["ways"].items()} == {"images": 95, "subjects": 12}
    assert splits["optimism"]["roc_auc"]["low"] is None  # of 12 subjects
    said = capsys.readouterr().out
    assert "a random split promises" in said and "No interval: 12 subjects" in said
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Cross-validation</h2>" in page and "<h2>What a random split would promise</h2>" in page
    assert evaluate.command([*asked, first.uri]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["cross_validation"] is None


def test_damaged_features_and_graphs_are_computed_again(
    first: Bundle, manifest: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = feature_files(place)
    before = [path.read_bytes() for path in files]
    spoilt = bytearray(before[0])
    spoilt[-5] ^= 1
    files[0].write_bytes(spoilt)
    files[1].write_bytes(before[1][:-100])
    [graph] = (place / "cache" / OWN / "networks").glob("*.onnx")
    graph.write_bytes(graph.read_bytes()[:-1])
    again = probed(manifest, place, name="mended")
    assert again.file(WEIGHTS) == first.file(WEIGHTS)
    assert "features: 96 of 96" not in capsys.readouterr().out
    assert {path.read_bytes() for path in feature_files(place)} >= set(before)


def test_mirrored_turns_are_added_to_those_that_are_there(
    first: Bundle, ray_cluster: Any, manifest: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = set(feature_files(place))
    eight = probed(manifest, place, "--tta", "8", name="eight")
    added = set(feature_files(place)) - files
    assert len({path.parent for path in added}) == 1
    assert eight.info.turns == 8
    assert eight.file(WEIGHTS) == first.file(WEIGHTS)  # four turns are learnt from


def test_other_weights_have_other_features(first: Bundle, manifest: str, place: Path, tmp_path: Path) -> None:
    network = build("efficientnet-lite0", 1)
    start_from(network, "efficientnet-lite0", "imagenet")
    own = features_digest(network)
    with torch.no_grad():
        head_of(network).weight.add_(1.0)
        assert features_digest(network) == own
        next(network.parameters()).mul_(0.9)
    assert features_digest(network) != own
    (tmp_path / "other.safetensors").write_bytes(to_safetensors(network))
    folders = {path.parent for path in feature_files(place)}
    other = probed(manifest, place, "--weights", str(tmp_path / "other.safetensors"), name="other")
    assert {path.parent for path in feature_files(place)} - folders
    assert other.file(WEIGHTS) != first.file(WEIGHTS)


def test_without_a_cache_nothing_is_kept(ray_cluster: Any, first: Bundle, manifest: str, tmp_path: Path) -> None:
    command = [manifest, "--out", str(tmp_path), "--cache", "none", *FLAGS]
    assert train.command(command) == 0
    assert resolve(str(tmp_path / "leukoray")).file(WEIGHTS) == first.file(WEIGHTS)
