"""Models compared on the same images: paired differences, what they disagree on, and the page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from jobs import evaluate
from pipeline.base.errors import InputError, UsageError
from pipeline.evaluation.comparison import delong
from pipeline.evaluation.comparison import words as told
from pipeline.evaluation.comparison.page import render_comparison
from pipeline.evaluation.comparison.paired import Side, enough_samples, paired_differences
from pipeline.evaluation.comparison.predict import ComparisonWorker
from pipeline.evaluation.comparison.result import Comparison, comparison, judged_pairs, refuse_incomparable
from pipeline.evaluation.comparison.speed import Speed, speeds
from pipeline.evaluation.definitions import binary_metrics
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.limits import Answers
from pipeline.evaluation.multiplicity import holm
from pipeline.evaluation.predict import EvaluationWorker
from pipeline.evaluation.reach import threshold_of
from pipeline.images.load import load_image
from pipeline.model.bundle import Bundle
from pipeline.model.prediction import Prediction
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.paired_coverage import METRICS, Setting, drawn, rates
from tests.training_data import cell_images, manifest_of

FEW = Resampling(replicates=300)


def side(truth: Any, scores: Any, codes: Any = None) -> Side:
    truth, scores = np.asarray(truth), np.asarray(scores, float)
    codes = np.arange(len(truth)) if codes is None else np.asarray(codes)
    answers = Answers(truth, (scores >= 0.5).astype(np.int64), codes, "subject", None, scores, 0.5)
    return Side(answers, binary_metrics(truth, scores, 0.5))


# ---- the method ------------------------------------------------------------------------------------------------------


def test_placements_give_the_roc_auc_and_the_error_is_delongs() -> None:
    """Against the definition, written out over all pairs of images."""
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 2, 60).astype(bool)
    first, second = rng.normal(truth, 1.0).round(1), rng.normal(truth, 1.5).round(1)  # with ties
    fields = []
    for scores in (first, second):
        wins = (scores[truth][:, None] > scores[~truth]) + 0.5 * (scores[truth][:, None] == scores[~truth])
        above, below = delong.placements(truth, scores)
        assert above == pytest.approx(wins.mean(axis=1)) and below == pytest.approx(wins.mean(axis=0))
        assert above.mean() == pytest.approx(roc_auc_score(truth, scores))
        fields.append(wins)
    rows, columns = (np.cov([wins.mean(axis=axis) for wins in fields]) for axis in (1, 0))
    variance = sum(
        (of[0, 0] + of[1, 1] - 2 * of[0, 1]) / count for of, count in ((rows, truth.sum()), (columns, (~truth).sum()))
    )
    assert delong.standard_error(truth, first, second) == pytest.approx(np.sqrt(variance))


def test_one_model_beside_itself_differs_in_nothing_and_the_limits_leave_room() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 2
    one = side(truth, np.clip(rng.normal(0.2 + 0.6 * truth, 0.3), 0, 1))
    for found in paired_differences(METRICS, one, one, FEW).values():
        assert found.value == 0 and found.low < 0 < found.high and found.p == 1


def test_exchanged_models_give_the_negative_difference() -> None:
    rng = np.random.default_rng(1)
    truth, codes = np.arange(80) % 2, np.repeat(np.arange(20), 4)
    one, other = (side(truth, np.clip(rng.normal(0.3 + 0.4 * truth, 0.3), 0, 1), codes) for _ in range(2))
    there, back = paired_differences(METRICS, one, other, FEW), paired_differences(METRICS, other, one, FEW)
    for name in METRICS:
        assert there[name].value == -back[name].value and there[name].p == back[name].p
        assert (there[name].low, there[name].high) == pytest.approx((-back[name].high, -back[name].low))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=8, max_size=30), st.data())
def test_a_mistake_more_of_the_first_never_speaks_for_it(
    rows: list[tuple[bool, bool, int]], data: st.DataObject
) -> None:
    """Subjects of both classes; whichever answer of the first turns wrong, no limit of its differences rises."""
    truth = np.arange(len(rows)) % 2
    right = np.array([row[:2] for row in rows])
    codes = np.array([2 * row[2] + k % 2 for k, row in enumerate(rows)])
    _, codes = np.unique(codes, return_inverse=True)

    def scores(is_right: Any) -> Any:
        return np.where(np.asarray(is_right) == (truth == 1), 0.9, 0.1)

    other = side(truth, scores(right[:, 1]), codes)
    worse = right[:, 0].copy()
    if not worse.any():
        return
    worse[data.draw(st.sampled_from(np.flatnonzero(worse).tolist()))] = False
    names = ("sensitivity", "specificity", "accuracy", "balanced_accuracy", "roc_auc")
    before = paired_differences(names, side(truth, scores(right[:, 0]), codes), other, Resampling(100))
    after = paired_differences(names, side(truth, scores(worse), codes), other, Resampling(100))
    for name in names:
        if not np.isnan(before[name].low):
            assert after[name].low <= before[name].low + 1e-9 and after[name].high <= before[name].high + 1e-9


@pytest.mark.parametrize(
    "setting", [Setting(10, 8, 0.5, (0.9, 0.9), 0.2), Setting(40, 1, 0.5, (0.9, 0.9), 0.8)], ids=str
)
def test_models_that_are_alike_are_seldom_called_different(setting: Setting) -> None:
    """At 5 %: of 120 test sets 12 or more would be beyond one in a hundred."""
    found = rates(setting, 120)
    assert all(of.real <= 0.09 for of in found.values()), found


@pytest.mark.parametrize(
    "setting", [Setting(5, 8, 0.3, (0.95, 0.8), 0.8), Setting(40, 1, 0.5, (0.95, 0.8), 0.8)], ids=str
)
def test_limits_hold_a_true_difference(setting: Setting) -> None:
    found = rates(setting, 120)
    assert all(of.coverage >= 0.92 for of in found.values()), found
    if setting.subjects == 40:  # and it is found
        assert found["balanced_accuracy"].real > 0.5 and found["roc_auc"].real > 0.8


def test_failing_on_whole_subjects_is_not_overlooked_because_none_of_them_came_by() -> None:
    """Both models are right in 90 % of the images: one wrong on every tenth subject as a whole, one here and there.

    Of 10 subjects, 35 in 100 test sets hold none of the former: a test by what was seen would call the first better.
    """
    rng = np.random.default_rng(9)
    codes = np.repeat(np.arange(20), 30)
    truth, called_real = codes % 2, 0
    for _ in range(100):
        fails = rng.random(20) < 0.1
        by_subject = np.where(fails[codes], 1 - truth, truth)
        here_and_there = np.where(rng.random(len(codes)) < 0.1, 1 - truth, truth)
        pair = [side(truth, 0.1 + 0.8 * said, codes) for said in (by_subject, here_and_there)]
        found = paired_differences(("sensitivity", "balanced_accuracy"), *pair, FEW)
        called_real += any(of.p <= 0.05 for of in found.values())
    assert called_real <= 5


def test_delong_tests_the_roc_auc_only_where_each_subject_has_one_image() -> None:
    rng = np.random.default_rng(3)
    one, other = drawn(Setting(30, 1, 0.5, (0.95, 0.8), 0.8), rng)
    assert paired_differences(METRICS, one, other, FEW)["roc_auc"].test == delong.METHOD
    for setting in (Setting(30, 2, 0.5, (0.95, 0.8), 0.8), Setting(10, 1, 0.5, (0.95, 0.8), 0.8)):
        one, other = drawn(setting, rng)
        assert "adverse" in paired_differences(METRICS, one, other, FEW)["roc_auc"].test
    pair = drawn(Setting(30, 1, 0.5, (0.95, 0.8), 0.8), rng)
    unknown = [replace(of, answers=replace(of.answers, unit="image", subjects=[None] * 60)) for of in pair]
    one_unknown = [replace(of, answers=replace(of.answers, subjects=[None, *(["s"] * 59)])) for of in pair]
    for one, other in (unknown, one_unknown):
        assert "adverse" in paired_differences(METRICS, one, other, FEW)["roc_auc"].test, "they may be of one patient"
    assert "adverse" in paired_differences(METRICS, *pair, FEW, "blocks")["roc_auc"].test


def test_too_few_subjects_of_a_class_tell_nothing() -> None:
    codes = [0, 0, 1, 2]  # one subject has all positives
    first, second = (side([1, 1, 0, 0], scores, codes) for scores in ([0.9, 0.2, 0.1, 0.6], [0.9, 0.8, 0.1, 0.2]))
    found = paired_differences(METRICS, first, second, FEW)
    assert found["sensitivity"].value == -0.5 and np.isnan(found["sensitivity"].p)
    assert not np.isnan(found["specificity"].p) and np.isnan(found["balanced_accuracy"].low)


def test_holm_multiplies_the_smallest_by_their_number_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, float("nan"), 0.9])[0] == 1.0 and np.isnan(holm([0.6, float("nan"), 0.9])[1])


@pytest.mark.parametrize(
    ("samples", "confidence", "pairs"), [(100, 0.95, 3), (1000, 0.95, 28), (100, 0.99, 1), (100, 0.95, 325)]
)
def test_samples_suffice_for_a_difference_to_be_real_among_all_pairs(
    samples: int, confidence: float, pairs: int
) -> None:
    """The smallest p there is, times the number of pairs, lies below the level; so does that of luck in 3 samples."""
    drawn_ = enough_samples(Resampling(samples, confidence), pairs).replicates
    for beyond in (0, 3):
        assert 2 * (1 + beyond) / (1 + drawn_) * pairs <= 1 - confidence


def test_no_more_samples_are_drawn_than_asked_for_where_these_suffice() -> None:
    assert enough_samples(Resampling(1000), 3) == Resampling(1000)


# ---- on images -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cells")
    rows = cell_images(folder / "images", 48)
    return manifest_of([row | {"split": "test"} for row in rows], folder / "manifest")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    sizes = {"a": (16, 20.0), "b": (16, -20.0), "c": (24, 0.5)}  # all called positive, none, some
    return [
        make_bundle(folder / name, size, seed=k, bias=bias, name=name)
        for k, (name, (size, bias)) in enumerate(sizes.items())
    ]


def compared(bundles: list[Bundle], manifest: Any) -> Comparison:
    said = ComparisonWorker(bundles, Stores(), on_gpu=False).predict(manifest.split("test"))
    outcomes = [[of[k] for of in said] for k in range(len(bundles))]
    quick = [Speed(100.0, 1.0, 2.0, 10, 1000) for _ in bundles]
    return comparison(bundles, manifest, "test", outcomes, [threshold_of(b.info) for b in bundles], FEW, quick)


def test_each_model_answers_as_it_does_alone_and_an_image_is_decoded_once_a_size(
    bundles: list[Bundle], manifest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counting(data: bytes, size: int, *more: Any) -> Any:
        decoded.append(size)
        return load_image(data, size, *more)

    monkeypatch.setattr("pipeline.model.predictor.load_image", counting)
    rows = manifest.split("test")
    said = ComparisonWorker(bundles, Stores(), on_gpu=False).predict(rows)
    assert sorted(decoded) == [16] * len(rows) + [24] * len(rows)
    for k, bundle in enumerate(bundles):
        alone = {of.row.image_id: of.result for of in EvaluationWorker(bundle, Stores(), False).predict(rows)}
        for together in said:
            result = together[k].result
            assert isinstance(result, Prediction) and result == alone[together[k].row.image_id]


def test_the_comparison_counts_what_each_gets_right(bundles: list[Bundle], manifest: Any) -> None:
    found = compared(bundles, manifest)
    rows = found.table().to_pylist()
    assert len(rows) == len(manifest.split("test")) and [len(found.pairs), found.left_out] == [3, 0]
    record = json.loads(json.dumps(found.record({}), allow_nan=False))
    for pair in record["pairs"]:
        one, other = pair["first"], pair["second"]
        only = [row["image_id"] for row in rows if row[f"is_right_{one}"] and not row[f"is_right_{other}"]]
        assert sorted(pair["only_first_right"]) == sorted(only)
        sides = len(pair["only_first_right"]) + len(pair["only_second_right"])
        assert pair["both_right"] + pair["both_wrong"] + sides == len(rows)
        accuracy = [np.mean([row[f"is_right_{letter}"] for row in rows]) for letter in (one, other)]
        assert accuracy[0] - accuracy[1] == pytest.approx(
            (len(pair["only_first_right"]) - len(pair["only_second_right"])) / len(rows)
        )
    assert record["models"]["B"]["metrics"]["sensitivity"]["value"] == 0.0  # its bias silences it


def test_the_page_says_which_differences_are_real_and_fetches_nothing(bundles: list[Bundle], manifest: Any) -> None:
    found = compared(bundles[:2], manifest)
    page = render_comparison(found, 4, Stores())
    assert "http" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert "A is better than B: Sensitivity (recall) 1.000 against 0.000" in page
    assert "B is better than A: Specificity 1.000 against 0.000" in page
    assert page.count('<img src="data:image/jpeg') == 4
    assert "A right, B wrong: 24 images" in page and "B right, A wrong: 24 images" in page
    assert "Holm" not in told.several(found) and "Holm" in told.several(compared(bundles, manifest))


def test_what_few_images_without_subjects_cannot_tell_stands_beside_the_differences(
    bundles: list[Bundle], manifest: Any
) -> None:
    found = compared(bundles[:2], manifest)
    for sentence in ("No subject is known: intervals are over single images.", "Few images of class negative (24)"):
        assert len([note for note in found.warnings if note.startswith(sentence)]) == 1
        assert sentence in render_comparison(found, 0, Stores())


def test_differences_of_three_models_are_real_however_few_samples_are_asked_for(
    bundles: list[Bundle], manifest: Any
) -> None:
    """All called positive, none, and some: 24 images of a class between the first two."""
    evaluations = compared(bundles, manifest).evaluations
    first = judged_pairs(evaluations, Resampling(100))[0].differences["sensitivity"]
    assert first.difference.value == 1 and first.p_adjusted <= 0.05 and first.is_real


@pytest.mark.parametrize("units", ["subjects", "blocks"])
def test_blocks_are_not_called_subjects(bundles: list[Bundle], tmp_path: Path, units: str) -> None:
    """One of them a class: nothing can be told, and of what too few are there is said."""
    rows = [row | {"split": "test"} for row in cell_images(tmp_path / "images", 12)]
    rows = [row | {"subject_id": f"s{row['label']}"} for row in rows]
    made = manifest_of(rows, tmp_path / "manifest")
    found = compared(bundles[:2], Manifest(made.uri, made.table, made.info.model_copy(update={"units": units})))
    page = render_comparison(found, 0, Stores())
    other = {"subjects": "blocks", "blocks": "subjects"}[units]
    for text in (page, "\n".join(told.lines(found)), "\n".join(told.headline(found))):
        assert f"oo few {units}" in text and f"oo few {other}" not in text


def test_an_image_that_one_model_cannot_answer_leaves_the_figures_of_all(
    bundles: list[Bundle], manifest: Any, tmp_path: Path
) -> None:
    broken = make_bundle(tmp_path / "nan", 16, bias=float("nan"), name="nan")
    with pytest.raises(InputError, match="not one image"):
        compared([bundles[0], broken], manifest)


def test_other_questions_and_the_same_model_twice_are_refused(bundles: list[Bundle], tmp_path: Path) -> None:
    stages = make_bundle(tmp_path / "stages", 16, "multiclass")
    with pytest.raises(InputError, match=r"negative, positive.*which of Benign, Early.*different questions"):
        refuse_incomparable([bundles[0], stages])
    with pytest.raises(UsageError, match="are the same model"):
        refuse_incomparable([*bundles, bundles[1]])


def test_many_classes_are_compared_and_disease_with_them(tmp_path: Path, manifest: Any) -> None:
    names = tuple(sorted({str(row.class_name) for row in manifest.split("test")}))
    pair = [
        make_bundle(tmp_path / str(k), 16, "multiclass", classes=names, positive_classes=names[1:], seed=k)
        for k in range(2)
    ]
    found = compared(pair, manifest)
    assert set(found.pairs[0].differences) >= {"accuracy", "roc_auc_macro", "disease_sensitivity", "disease_roc_auc"}
    assert any("of disease" in line for line in told.lines(found))


def test_speed_is_of_each_model(bundles: list[Bundle]) -> None:
    found = speeds(bundles[:2], seconds=0.1)
    assert all(of.images_per_s > 0 and 0 < of.median_ms <= of.p95_ms and of.rounds >= 20 for of in found)
    assert all(
        of.graph_bytes == Path(b.uri, "model.onnx").stat().st_size for of, b in zip(found, bundles, strict=False)
    )


def test_one_model_is_kept_by_its_name_and_a_file_may_give_a_plain_one() -> None:
    config = evaluate.EvaluateConfig(manifest="m", model="one")  # type: ignore[arg-type]
    assert config.model == ["one"] and config.record()["model"] == "one"
    assert evaluate.EvaluateConfig(manifest="m", model=["one", "two"]).record()["model"] == ["one", "two"]
