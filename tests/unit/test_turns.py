"""Test-time turns: the same mean in every engine and in validation, the same answer to an image and to its turns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.bundle import CARD, GRAPH, WEIGHTS, Bundle, BundleInfo, read_bundle, write_bundle
from pipeline.model.export import to_onnx, to_safetensors
from pipeline.model.prediction import Prediction, predictions
from pipeline.model.predictor import Predictor
from pipeline.model.turns import Turns, over_turns, turned
from pipeline.training.shard import Batch
from pipeline.training.validation import validate
from tests.bundles import make_bundle
from tests.training_settings import training_settings

SIZE = 16


def pictures(count: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def probability(predictor: Predictor, image: NDArray[np.uint8]) -> float:
    [said] = predictor.predict_each([image])
    assert isinstance(said, Prediction)
    return said.probability


@pytest.mark.parametrize("turns", [1, 2, 4, 8])
def test_an_image_and_its_turns_get_one_answer(tmp_path: Path, turns: Turns) -> None:
    predictor = Predictor(make_bundle(tmp_path / "model", size=SIZE, turns=turns))
    sides = list(turned(pictures(1), 8))
    found = [probability(predictor, side[0]) for side in sides]
    assert len({side.tobytes() for side in sides}) == 8
    assert np.ptp(found[:turns]) < 1e-6
    assert turns == 8 or abs(found[turns] - found[0]) > 1e-4  # the model does tell other turns apart


def test_one_turn_is_the_network_alone() -> None:
    seen = []
    images = pictures()
    over_turns(lambda some: (seen.append(some), np.zeros((len(some), 1), np.float32))[1], images, 1)
    assert len(seen) == 1 and seen[0] is images


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A plain CNN as training publishes it, four turns."""
    torch.manual_seed(0)
    model = build("cnn", 1).eval()
    names: dict[str, Any] = {"name": "turning", "version": "v1", "architecture": "cnn", "task": "binary"}
    info = BundleInfo(
        **names, classes=("negative", "positive"), positive_classes=("positive",), input_size=SIZE, turns=4,
        preprocessing_digest=Preprocessing(SIZE).digest(), weights_sha256="", graph_sha256="",
    )  # fmt: skip
    files = {WEIGHTS: to_safetensors(model), GRAPH: to_onnx(model, SIZE), CARD: b"# turning\n"}
    return write_bundle(str(tmp_path_factory.mktemp("model") / "v1"), info, files)


class OneShard:
    """All images as one rank's validation."""

    def once(self, batch_size: int) -> Any:
        images = pictures()
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            ids = np.arange(start, start + len(part))
            yield Batch(torch.from_numpy(part.copy()), torch.zeros(len(part), dtype=torch.int64), ids)


def test_both_engines_and_the_scores_of_validation_agree(trained: Bundle) -> None:
    images = list(pictures())
    onnx, torch_engine = (Predictor(trained, engine=engine).predict_each(images) for engine in ("onnx", "torch"))
    settings = training_settings(input_size=SIZE, batch_size=2)
    torch.manual_seed(0)
    scores = validate(build("cnn", 1), OneShard(), settings, torch.device("cpu"), 4)  # type: ignore[arg-type]
    validated = predictions(trained.info, scores.logits)
    single = Predictor(replace(trained, info=trained.info.model_copy(update={"turns": 1}))).predict_each(images)
    for number, said in enumerate(onnx):
        assert isinstance(said, Prediction) and isinstance(one := single[number], Prediction)
        for other in (torch_engine[number], validated[number]):
            assert isinstance(other, Prediction) and other.probability == pytest.approx(said.probability, abs=1e-5)
        assert abs(one.probability - said.probability) > 1e-5


def test_turns_are_part_of_the_identity_and_bundles_without_them_keep_theirs(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "model", size=SIZE)
    eight = bundle.info.model_copy(update={"turns": 8})
    assert eight.identity() != bundle.info.identity()
    path = tmp_path / "model" / "bundle.json"
    record = json.loads(path.read_text())
    del record["turns"]  # as bundles were written before
    path.write_text(json.dumps(record))
    old = read_bundle(bundle.uri)
    assert old.info.turns == 1 and old.info.identity() == bundle.info.identity()
