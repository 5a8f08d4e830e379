"""Out of distribution: the distance against its plain definition, its limit; what a bundle carries and predicts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import Code, ImageRejected, InputError
from pipeline.evaluation.ood import FALSE_FLAG_RATE, FEWEST_TRAINING, Seen, fit, fit_reference, limit
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.bundle import CARD, GRAPH, INFO, WEIGHTS, Bundle, BundleInfo, read_bundle, write_bundle
from pipeline.model.export import to_onnx, to_safetensors
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.model.reference import COLOURS, REFERENCE, OodRule, Reference, colours_seen, described, told
from pipeline.training.features import session_of
from tests.bundles import make_bundle, make_familiar_bundle
from tests.images import encoded
from tests.unit.test_near_copies import smear

SIZE = 32


def seen(count: int, seed: int = 0, width: int = 12, shift: float = 0.0) -> Seen:
    rng = np.random.default_rng(seed)
    features = rng.gamma(2.0, 1.0, (count, width)) @ rng.random((width, width)) + shift * np.arange(width)
    return Seen(features.astype(np.float32), rng.uniform(0.2, 0.8, (count, COLOURS)).astype(np.float32))


def plain_distances(training: Seen, others: Seen) -> np.ndarray:
    """The definition, step by step: all components are kept where images are many and features few."""

    def unit(features: np.ndarray) -> np.ndarray:
        wide = features.astype(np.float64)
        return wide / np.sqrt((wide**2).sum(axis=1, keepdims=True))

    mean = unit(training.features).mean(axis=0)
    centred = unit(training.features) - mean
    values, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    order = np.argsort(-values)
    values, directions = values[order], directions[:, order]
    kept = values > 1e-12  # lengths of 1 take no direction away, but images may be fewer than features
    spread, colour_mean = training.colours.std(axis=0), training.colours.mean(axis=0)

    def joint(images: Seen) -> np.ndarray:
        components = (unit(images.features) - mean) @ directions[:, kept] / np.sqrt(values[kept])
        return np.hstack([components, (images.colours - colour_mean) / spread])

    own = joint(training)
    covariance = 0.98 * own.T @ own / len(own) + 0.02 * np.eye(own.shape[1])
    rows = joint(others)
    return np.sqrt(np.array([row @ np.linalg.inv(covariance) @ row / len(row) for row in rows]))


def test_scores_are_mahalanobis_distances() -> None:
    training, others = seen(400), seen(50, seed=1, shift=0.3)
    reference = fit_reference(training)
    assert reference is not None
    found = reference.scores(others.features, others.colours)
    np.testing.assert_allclose(found, plain_distances(training, others), rtol=1e-3)
    own = reference.scores(training.features, training.colours)
    assert np.sqrt(np.mean(own**2)) == pytest.approx(1.0, abs=0.03)  # the unit is what training images have


def test_few_images_keep_few_components_and_fewer_give_none() -> None:
    training = seen(FEWEST_TRAINING, width=200)
    reference = fit_reference(training)
    assert reference is not None and reference.offset.shape == (FEWEST_TRAINING // 10 + COLOURS,)
    large = fit_reference(seen(1000, width=200))
    assert large is not None and large.offset.shape == (64 + COLOURS,)
    assert fit_reference(seen(FEWEST_TRAINING - 1)) is None


def test_farther_is_higher_and_length_of_features_does_not_matter() -> None:
    training = seen(400)
    reference = fit_reference(training)
    assert reference is not None
    middle = training.features.mean(axis=0, keepdims=True)
    away = np.zeros_like(middle)
    away[0, 0] = np.linalg.norm(middle)
    colours = training.colours.mean(axis=0, keepdims=True)
    steps = [float(reference.scores(middle + step * away, colours)[0]) for step in (0.0, 0.2, 0.5, 1.0)]
    assert steps == sorted(steps) and steps[0] < 0.5 < steps[-1]
    tiny = reference.scores(1e-6 * training.features, training.colours)
    np.testing.assert_allclose(tiny, reference.scores(training.features, training.colours), rtol=1e-3)
    assert np.isfinite(reference.scores(np.zeros_like(middle), colours)).all()  # a blank field may have none at all
    turned = reference.scores(middle, colours + 1)
    assert turned[0] > steps[0] + 1  # colour counts beside features


def test_a_score_does_not_depend_on_its_batch() -> None:
    training, others = seen(400), seen(64, seed=2)
    reference = fit_reference(training)
    assert reference is not None
    order = np.random.default_rng(3).permutation(64)
    together = reference.scores(others.features, others.colours)
    np.testing.assert_allclose(reference.scores(others.features[order], others.colours[order]), together[order], 1e-4)
    alone = [reference.scores(others.features[k : k + 1], others.colours[k : k + 1])[0] for k in range(64)]
    np.testing.assert_allclose(alone, together, rtol=1e-4)


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=400))
def test_no_more_than_the_stated_share_of_validation_lies_above_the_limit(scores: list[float]) -> None:
    values = np.array(scores, np.float32)
    threshold, rate, note = limit(values)
    if threshold is None or rate is None:
        assert len(values) < 19 and "too few" in note
        return
    assert rate >= FALSE_FLAG_RATE and bool(note) == (len(values) < 99)
    assert (values > threshold).sum() <= rate * (len(values) + 1) + 1e-9
    assert np.float32(threshold) in values


@pytest.mark.parametrize(
    ("count", "place", "rate"), [(99, 99, 0.01), (199, 198, 0.01), (299, 297, 0.01), (49, 49, 0.02)]
)
def test_the_limit_is_the_order_statistic_of_conformal_prediction(count: int, place: int, rate: float) -> None:
    threshold, found, _ = limit(np.random.default_rng(0).permutation(np.arange(1, count + 1)).astype(np.float32))
    assert threshold == place and found == pytest.approx(rate)


def test_the_image_that_the_limit_is_of_is_not_flagged_by_a_last_digit() -> None:
    """Its distance is found anew in another batch, by another engine."""
    training, validation = seen(400), seen(60, seed=1)
    fitted, reference = fit(training, validation, [None] * 60, "images"), fit_reference(training)
    assert fitted is not None and reference is not None and fitted.rule.threshold is not None
    farthest = float(reference.scores(validation.features, validation.colours).max())
    assert farthest * (1 + 5e-5) < fitted.rule.threshold < farthest * (1 + 1e-3)


def test_other_images_of_the_same_kind_are_flagged_at_the_stated_rate() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        threshold, _, _ = limit(rng.gamma(3.0, 1.0, 150).astype(np.float32))
        assert threshold is not None
        shares.append((rng.gamma(3.0, 1.0, 200) > threshold).mean())
    assert np.mean(shares) <= FALSE_FLAG_RATE + 0.002


def test_colours_are_of_what_the_network_sees() -> None:
    images = np.zeros((2, 40, 40, 3), np.uint8)
    images[0, 10:30, 10:30] = (255, 51, 0)
    images[1, ::2] = (100, 100, 100)
    found = colours_seen(images, 20)
    np.testing.assert_allclose(found[0], [1, 0.2, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[1, :3], 50 / 255, atol=1e-6)
    np.testing.assert_allclose(found[1, 3:], 50 / 255, atol=1e-6)


# A bundle


def pictures(count: int, seed: int, base: tuple[int, int, int] = (200, 150, 190)) -> np.ndarray:
    """Smooth blobs in one colour, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    centre = rng.normal(0, 3, (count, 2, 1, 1))
    blob = np.exp(-((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2) / rng.uniform(20, 60, (count, 1, 1)))
    levels = np.array(base) * (1 - 0.5 * blob[..., None]) + rng.normal(0, 4, (count, SIZE, SIZE, 3))
    return levels.clip(0, 255).astype(np.uint8)


def published(folder: Path, turns: int = 1, images: int = 120) -> Bundle:
    model = build("cnn", 1).eval()
    weights, graph = to_safetensors(model), to_onnx(model, SIZE)
    info = BundleInfo(
        name="m", version="1", architecture="cnn", task="binary", classes=("negative", "positive"),
        positive_classes=("positive",), input_size=SIZE, turns=turns,  # type: ignore[arg-type]
        preprocessing_digest=Preprocessing(SIZE).digest(), weights_sha256="", graph_sha256="",
    )  # fmt: skip
    session = session_of(graph)
    own, validation = (
        Seen(session.run(["features"], {"images": some})[0], colours_seen(some, SIZE))
        for some in (pictures(images, 1), pictures(images, 2))
    )
    fitted = fit(own, validation, [f"s{k // 4}" for k in range(images)], "subjects")
    assert fitted is not None
    files = {WEIGHTS: weights, GRAPH: graph, REFERENCE: fitted.reference}
    return write_bundle(str(folder), info.model_copy(update={"ood": fitted.rule}), files)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return published(tmp_path_factory.mktemp("ood") / "m")


def said(predictor: Predictor, images: np.ndarray) -> list[Prediction]:
    found = predictor.predict_each(list(images))
    assert all(isinstance(item, Prediction) for item in found)
    return [item for item in found if isinstance(item, Prediction)]


def test_images_of_another_kind_are_flagged_and_own_ones_are_not(bundle: Bundle) -> None:
    predictor = Predictor(read_bundle(bundle.uri))
    own = said(predictor, pictures(100, 5))
    assert sum(bool(item.is_ood) for item in own) <= 6
    flat = np.stack([np.full((SIZE, SIZE, 3), level, np.uint8) for level in (0, 255, 128)])
    noise = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    foreign = said(predictor, np.concatenate([flat, noise, pictures(3, 6, base=(120, 190, 90)), 255 - pictures(3, 7)]))
    assert all(item.is_ood for item in foreign)
    assert min(item.ood_score or 0.0 for item in foreign) > np.median([item.ood_score or 0.0 for item in own])
    assert bundle.info.ood is not None and bundle.info.ood.units == 30 and bundle.info.ood.called == "subjects"


def test_flags_change_neither_probability_nor_decision(bundle: Bundle, tmp_path: Path) -> None:
    files = {name: bundle.file(name) for name in (WEIGHTS, GRAPH)}
    old = write_bundle(str(tmp_path / "old"), bundle.info.model_copy(update={"ood": None}), files)
    images = np.concatenate([pictures(3, 8), 255 - pictures(3, 9)])
    for before, now in zip(said(Predictor(old), images), said(Predictor(bundle), images), strict=True):
        assert (before.classes, before.probability, before.decision) == (now.classes, now.probability, now.decision)
        assert before.ood_score is None and before.is_ood is None and now.ood_score is not None
    assert old.info.identity() != bundle.info.identity()


def test_both_engines_give_the_same_scores(bundle: Bundle) -> None:
    images = np.concatenate([pictures(4, 10), 255 - pictures(4, 11)])
    onnx, torch = (said(Predictor(bundle, engine=engine), images) for engine in ("onnx", "torch"))
    for one, other in zip(onnx, torch, strict=True):
        assert one.ood_score == pytest.approx(other.ood_score, rel=1e-3)
        assert one.is_ood == other.is_ood


def test_turns_leave_the_score_to_the_image_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    files = {name: bundle.file(name) for name in (WEIGHTS, GRAPH, REFERENCE)}
    turned = write_bundle(str(tmp_path / "turned"), bundle.info.model_copy(update={"turns": 4}), files)
    images = pictures(5, 12)
    once, often = (said(Predictor(one), images) for one in (bundle, turned))
    assert [item.ood_score for item in once] == pytest.approx([item.ood_score for item in often], rel=1e-5)


def test_the_score_of_an_image_does_not_depend_on_its_neighbours(bundle: Bundle) -> None:
    images = np.concatenate([pictures(6, 13), 255 - pictures(2, 14)])
    predictor = Predictor(bundle)
    together = [item.ood_score for item in said(predictor, images)]
    assert [item.ood_score for item in said(predictor, images[::-1])][::-1] == pytest.approx(together, rel=1e-4)
    assert [said(predictor, images[k : k + 1])[0].ood_score for k in range(8)] == pytest.approx(together, rel=1e-4)


def test_without_a_limit_there_is_a_score_and_no_flag(tmp_path: Path) -> None:
    made = published(tmp_path / "few", images=100)
    assert made.info.ood is not None
    rule = made.info.ood.model_copy(update={"threshold": None, "false_flag_rate": None, "note": "too few"})
    (found,) = said(Predictor(made.update(ood=rule)), pictures(1, 3))
    assert found.ood_score is not None and found.is_ood is None
    assert described(rule) == "too few"


def test_a_graph_of_an_older_version_gives_no_score(tmp_path: Path) -> None:
    own = [encoded(smear(number), "PNG") for number in range(80)]
    new, old = make_familiar_bundle(tmp_path / "new", own), make_bundle(tmp_path / "old", SIZE)
    images = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    (found,) = said(Predictor(new), images)
    assert found.ood_score is not None and found.is_ood
    files = {name: new.file(name) for name in (WEIGHTS, CARD, REFERENCE)}
    (found,) = said(
        Predictor(write_bundle(str(tmp_path / "mixed"), new.info, files | {GRAPH: old.file(GRAPH)})), images
    )
    assert found.ood_score is None and found.is_ood is None


def test_a_batch_without_one_finite_logit_is_rejected_image_by_image(tmp_path: Path) -> None:
    own = [encoded(smear(number), "PNG") for number in range(80)]
    broken = Predictor(make_familiar_bundle(tmp_path / "broken", own, bias=float("nan")))
    for count in (1, 3):
        found = broken.predict_each(list(np.zeros((count, SIZE, SIZE, 3), np.uint8)))
        assert [item.code for item in found if isinstance(item, ImageRejected)] == [Code.PREDICT_FAILED] * count


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no tensors"),
        (b"\x80\x04pickle", "no tensors"),
        (Reference(np.ones((3, 2), np.float32), np.ones((5, 2), np.float32), np.ones(2, np.float32)).packed(), "fit"),
        (Reference(np.ones((3, 2), np.float32), np.full((6, 2), np.nan, np.float32), np.ones(2, np.float32)).packed(),
         "finite"),
        (Reference(np.ones((3, 2), np.float32), np.ones((6, 2), np.float32), np.ones(2, np.float32)).packed(),
         "features, reference.safetensors is of 3"),
    ],
)  # fmt: skip
def test_a_reference_that_is_none_is_refused(bundle: Bundle, tmp_path: Path, data: bytes, message: str) -> None:
    assert bundle.info.ood is not None
    rule = bundle.info.ood.model_copy(update={"reference_sha256": hashlib.sha256(data).hexdigest()})
    files = {WEIGHTS: bundle.file(WEIGHTS), GRAPH: bundle.file(GRAPH), REFERENCE: data}
    wrong = write_bundle(str(tmp_path / "wrong"), bundle.info.model_copy(update={"ood": rule}), files)
    with pytest.raises(InputError, match=message):
        Predictor(wrong).predict_each(list(pictures(1, 0)))


def test_a_reference_that_was_altered_or_lost_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    files = {name: bundle.file(name) for name in (WEIGHTS, GRAPH, REFERENCE)}
    copy = write_bundle(str(tmp_path / "copy"), bundle.info, files)
    path = tmp_path / "copy" / REFERENCE
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"reference\.safetensors is not the file that was published"):
        read_bundle(copy.uri).verify()
    path.unlink()
    with pytest.raises(InputError, match=r"reference\.safetensors is missing"):
        read_bundle(copy.uri)


def test_bundle_json_says_what_the_flag_rests_on(bundle: Bundle) -> None:
    record: dict[str, Any] = json.loads((Path(bundle.uri) / INFO).read_bytes())["ood"]
    assert set(record) == set(OodRule.model_fields)
    assert (record["method"], record["training_images"], record["images"], record["units"]) == (
        "mahalanobis",
        120,
        120,
        30,
    )
    assert record["false_flag_rate"] == FALSE_FLAG_RATE and record["threshold"] > 0 and record["note"] == ""
    assert described(bundle.info.ood).endswith("1 % of images like the 120 of validation of 30 subjects are")


def test_many_flags_are_told_as_a_warning() -> None:
    assert told(0, 0, 0.01) == ""
    assert told(12, 1000, 0.01) == (
        "12 of 1,000 images (1.2 %) look unlike those the model learnt from; "
        "of images like its own 1 % are expected to."
    )
    assert "Do not trust" in told(300, 1000, 0.01)
    assert "Do not trust" not in told(3, 4, 0.01)  # a few images say little
    assert "expected" not in told(5, 10, None)
