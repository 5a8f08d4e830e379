"""A graph into which weights are filled is the graph of the network that they are of."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline.base.errors import PlatformError
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.cell_classifier import CellClassifier, WithFeatures
from pipeline.model.choices import Norm
from pipeline.model.export import check_parity
from pipeline.model.graph_template import drawn_template, filled
from pipeline.training.cache import PixelCache
from pipeline.training.graphs import GraphMaker
from tests.training_settings import training_settings

SIZE = 56
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def trained_looking(name: str, norm: Norm = "batch", seed: int = 0, outputs: int = 2) -> CellClassifier:
    torch.manual_seed(seed)
    model = build(name, outputs, norm, 48 if name == "cnn-se" else None).train()
    with torch.no_grad():
        model(torch.from_numpy(IMAGES))
    return model.eval()


def template_of(name: str, norm: Norm = "batch") -> bytes:
    template = drawn_template(name, 2, norm, 48 if name == "cnn-se" else None, SIZE)
    assert template is not None
    return template


def answers(graph: bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": IMAGES})[0])


@pytest.fixture(scope="module")
def template() -> bytes:
    return template_of("cnn-se")


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("cnn-se", "batch"),  # sees the middle; a classifier of two layers
        pytest.param("mobilenet_v3_small", "batch", marks=pytest.mark.slow),
        pytest.param("resnet18", "group", marks=pytest.mark.slow),
        pytest.param("efficientnet-lite0", "frozen", marks=pytest.mark.slow),
        pytest.param("dinobloom-s", "batch", marks=pytest.mark.slow),  # numbers of its code: positions' interpolation
    ],
)
def test_the_filled_graph_answers_as_the_network_does(name: str, norm: Norm) -> None:
    template = template_of(name, norm)
    for seed in (1, 2):
        model = trained_looking(name, norm, seed)
        with torch.inference_mode():
            expected = model(torch.from_numpy(IMAGES)).numpy()
        graph = filled(template, model, SIZE)
        np.testing.assert_allclose(answers(graph), expected, rtol=1e-4, atol=1e-5)
        check_parity(WithFeatures(model).eval(), graph, SIZE)  # which has both
        assert graph == filled(template, model, SIZE) and b"leukoray.sources" not in graph


def test_a_template_of_another_network_is_refused(template: bytes) -> None:
    with pytest.raises(PlatformError):
        filled(template, trained_looking("cnn"), SIZE)
    with pytest.raises(PlatformError):
        filled(template, trained_looking("cnn-se", outputs=4), SIZE)


SETTINGS = training_settings(
    architecture="cnn-se", task="multiclass", classes=("a", "b"), input_size=SIZE, center=48 / SIZE
)


def test_a_kept_template_is_used_and_one_that_does_not_fit_is_thrown_away(template: bytes, tmp_path: Path) -> None:
    cache = PixelCache(str(tmp_path), Preprocessing(SIZE), None)
    model = trained_looking("cnn-se")
    maker = GraphMaker(SETTINGS, cache)
    maker.kept.write(template)
    assert maker(model, SIZE) == filled(template, model, SIZE)
    maker.kept.write(template_of("cnn"))  # whole, and of another network
    again = GraphMaker(dataclasses.replace(SETTINGS, seed=3), cache)  # which no template depends on
    np.testing.assert_allclose(answers(again(model, SIZE)), answers(filled(template, model, SIZE)), atol=1e-5)
    assert maker.kept.read() is None


@pytest.mark.parametrize("way", ["no folder can be made", "no room is left"])
def test_a_template_that_cannot_be_kept_is_used_all_the_same(
    way: str, template: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    root, most = (tmp_path / "file", None) if way == "no folder can be made" else (tmp_path / "cache", 0)
    maker = GraphMaker(SETTINGS, PixelCache(str(root / "pixels"), Preprocessing(SIZE), most))
    monkeypatch.setattr(
        "pipeline.training.graphs.ray.remote", lambda **_: lambda _: SimpleNamespace(remote=lambda _: 1)
    )
    monkeypatch.setattr("pipeline.training.graphs.ray.get", lambda _, timeout: template)
    model = trained_looking("cnn-se")
    assert maker(model, SIZE) == filled(template, model, SIZE)
    assert maker.kept.read() is None
