"""The one predictor: probabilities, the decision rule, and that one image never decides over another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from scipy.special import expit, softmax

from pipeline.base.errors import Code, ImageRejected, InputError
from pipeline.model.bundle import GRAPH, WEIGHTS, Bundle, write_bundle
from pipeline.model.prediction import Prediction, predictions, probabilities
from pipeline.model.predictor import Predictor
from tests.bundles import make_bundle

SIZE = 8


def images(*levels: int) -> list[np.ndarray]:
    """Flat gray images."""
    return [np.full((SIZE, SIZE, 3), level, np.uint8) for level in levels]


@pytest.fixture
def logarithmic(tmp_path: Path) -> Bundle:
    """logit = log(mean / 128): minus infinity for a black image, so a model that fails on it."""
    nodes = [
        helper.make_node("Cast", ["images"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["wide"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["mean"], keepdims=1),
        helper.make_node("Div", ["mean", "scale"], ["share"]),
        helper.make_node("Log", ["share"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("scale", TensorProto.FLOAT, [1], [128.0]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", SIZE, SIZE, 3])
    found = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1])
    graph = helper.make_graph(nodes, "logarithmic", [given], [found], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    info = make_bundle(tmp_path / "other", size=SIZE).info
    return write_bundle(str(tmp_path / "log"), info, {WEIGHTS: b"none", GRAPH: bytes(model.SerializeToString())})


def test_an_image_without_a_finite_answer_is_rejected_and_its_neighbours_keep_theirs(logarithmic: Bundle) -> None:
    predictor = Predictor(logarithmic)
    found = predictor.predict_each(images(128, 0, 255))
    assert [type(item) for item in found] == [Prediction, ImageRejected, Prediction]
    assert isinstance(found[1], ImageRejected) and found[1].code is Code.PREDICT_FAILED
    assert [found[0], found[2]] == predictor.predict_each(images(128, 255))
    assert isinstance(found[0], Prediction) and found[0].probability == pytest.approx(0.5)


def test_no_image_gets_no_answer(logarithmic: Bundle) -> None:
    assert Predictor(logarithmic).predict_each([]) == []


def test_a_model_that_fails_on_an_extreme_image_does_not_pass_the_probe(logarithmic: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fails the probe image: .* not finite"):
        Predictor(logarithmic).probe()
    Predictor(make_bundle(tmp_path / "good", size=SIZE)).probe()


def test_a_graph_for_other_classes_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "two", size=SIZE, task="multiclass", classes=("a", "b"))
    wrong = replace(bundle, info=bundle.info.model_copy(update={"classes": ("a", "b", "c")}))
    with pytest.raises(InputError, match="2 outputs for 3 classes"):
        Predictor(wrong).predict_each(images(1))


def test_a_graph_that_does_not_fit_its_bundle_does_not_pass_the_probe(tmp_path: Path) -> None:
    small, large = (make_bundle(tmp_path / str(size), size=size) for size in (SIZE, 2 * SIZE))
    mixed = write_bundle(str(tmp_path / "mixed"), small.info, {WEIGHTS: b"none", GRAPH: large.file(GRAPH)})
    with pytest.raises(InputError, match=r"mixed: fails the probe image: .*dimensions"):
        Predictor(mixed).probe()
    wrong = replace(small, info=small.info.model_copy(update={"task": "multiclass", "classes": ("a", "b", "c")}))
    with pytest.raises(InputError, match="1 outputs for 3 classes"):
        Predictor(wrong).probe()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_probabilities_are_sigmoid_and_softmax_of_the_scaled_logits(temperature: float) -> None:
    logits = np.array([[-900.0], [-3.0], [0.0], [2.5], [900.0]])
    two = probabilities(logits, temperature)
    assert two[:, 1] == pytest.approx(expit(logits[:, 0] / temperature))
    assert two.sum(axis=1) == pytest.approx(1)
    many = np.array([[800.0, -800.0, 0.0], [1.0, 2.0, 3.0]])
    assert probabilities(many, temperature) == pytest.approx(softmax(many / temperature, axis=1))


@pytest.mark.parametrize(
    ("probability", "decision"),
    [(0.1, "negative"), (0.39, "negative"), (0.41, "review"), (0.59, "review"), (0.61, "positive"), (0.99, "positive")],
)
def test_the_review_band_lies_around_the_threshold(probability: float, decision: str, tmp_path: Path) -> None:
    info = make_bundle(tmp_path / "m", size=SIZE, threshold=0.5, review_band=(0.4, 0.6)).info
    logit = np.log(probability / (1 - probability))
    (said,) = predictions(info, np.array([[logit]]))
    assert said.decision == decision
    assert said.probability == pytest.approx(probability)
    assert said.class_name == ("positive" if probability > 0.5 else "negative")


@pytest.mark.parametrize(
    ("band", "decision"),
    [(None, "positive"), ((0.5, 0.7), "review"), ((0.3, 0.5), "positive"), ((0.6, 0.7), "positive")],
)
def test_a_probability_on_the_line_belongs_above_it(
    band: tuple[float, float] | None, decision: str, tmp_path: Path
) -> None:
    info = make_bundle(tmp_path / "m", size=SIZE, threshold=0.5, review_band=band).info
    (said,) = predictions(info, np.array([[0.0]]))
    assert (said.probability, said.decision) == (0.5, decision)


def test_the_probability_of_disease_is_the_sum_of_the_classes_that_mean_it(tmp_path: Path) -> None:
    logits = np.log(np.array([[0.3, 0.25, 0.25, 0.2]]))
    sick = make_bundle(tmp_path / "sick", size=SIZE, task="multiclass").info  # all but Benign
    (said,) = predictions(sick, logits)
    assert (said.class_name, said.decision) == ("Benign", "positive")
    assert said.probability == pytest.approx(0.7)
    plain = make_bundle(tmp_path / "plain", size=SIZE, task="multiclass", positive_classes=()).info
    (said,) = predictions(plain, logits)
    assert (said.class_name, said.decision) == ("Benign", None)
    assert said.probability == pytest.approx(0.3)
