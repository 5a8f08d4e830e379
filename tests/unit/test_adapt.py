"""A model for another laboratory by few of its images: what held-out likelihood takes, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import calibrate
from pipeline.base.errors import InputError
from pipeline.evaluation.adapt import Asked, Change, Local, adapt, as_it_was, carried, folds
from pipeline.evaluation.adapt_curve import learning_curve, measured, refuse_too_few
from pipeline.evaluation.report import local as lines
from pipeline.model.bundle import BundleInfo
from pipeline.model.prediction import probabilities
from pipeline.training.adapted import local_of
from tests.bundles import make_bundle
from tests.training_data import cell_images, manifest_of

CLASSES = ("negative", "positive")


def drawn(count: int = 200, *, scale: float = 1.0, shift: float = 0.0, seed: int = 0, subjects: int = 40) -> Local:
    """Two sides, whose true logits the network gives `scale` times too large, and `shift` too high."""
    rng = np.random.default_rng(seed)
    groups = np.arange(count) % subjects
    true = rng.normal(0, 2, count)
    targets = (rng.random(count) < 1 / (1 + np.exp(-true))).astype(np.int64)
    return Local((true * scale + shift)[:, None], targets, groups, (1,), 1.0, 0.5)


def test_a_model_that_fits_stays_as_it_was() -> None:
    taken = [adapt(drawn(seed=seed)).change.kind for seed in range(10)]
    assert taken.count("as it was") >= 7  # a gain of more than its standard error comes by luck in about one of six


def test_a_model_that_claims_too_much_gets_the_temperature_it_should_have() -> None:
    found = adapt(drawn(1000, scale=4.0, subjects=200), Asked(shifts=False))
    assert found.change.kind == "temperature"
    assert found.change.temperature == pytest.approx(4.0, rel=0.2)


def test_a_shifted_model_is_shifted_back() -> None:
    there = drawn(1000, scale=2.0, shift=-3.0, subjects=200)
    found = adapt(there)
    assert found.change.kind == "shifts"
    assert found.change.temperature == pytest.approx(2.0, rel=0.2) and found.change.shift[0] == pytest.approx(
        1.5, abs=0.3
    )
    before, now = measured(there, as_it_was(there), 0.5), measured(there, found.change, found.threshold)
    assert now["log_loss"] < before["log_loss"] - 0.1 and now["balanced_accuracy"] > before["balanced_accuracy"] + 0.05


def with_features(there: Local, seed: int, width: int = 60) -> Local:
    """Features of which the first knows what the logits do not."""
    rng = np.random.default_rng(seed)
    known = np.where(there.targets == 1, 1.5, -1.5) + rng.normal(0, 1, len(there))
    return replace(there, features=np.column_stack([known, rng.normal(size=(len(there), width))]).astype(np.float32))


def test_a_head_learns_what_the_old_one_does_not_know() -> None:
    there = with_features(drawn(seed=1), seed=2)
    other = with_features(drawn(seed=3), seed=4)
    found = adapt(there, Asked(adapts_head=True))
    assert found.change.kind == "head" and found.change.weight is not None
    before, now = measured(other, as_it_was(there), 0.5), measured(other, found.change, found.threshold)
    assert now["log_loss"] < before["log_loss"] - 0.05 and now["balanced_accuracy"] > before["balanced_accuracy"]


def test_few_images_with_features_of_noise_do_not_ruin_the_head() -> None:
    worst = 0.0
    for seed in range(6):
        there, other = (
            replace(one, features=np.random.default_rng(seed).normal(size=(len(one), 300)).astype(np.float32))
            for one in (drawn(24, seed=seed, subjects=12), drawn(400, seed=99))
        )
        found = adapt(there, Asked(adapts_head=True))
        gone = measured(other, found.change, 0.5)["log_loss"] - measured(other, as_it_was(other), 0.5)["log_loss"]
        worst = max(worst, gone)
    assert worst < 0.2


def test_many_classes_get_shifts_of_their_own() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (900, 3))
    targets = np.array([rng.choice(3, p=row) for row in probabilities(logits)])
    there = Local(logits + np.array([2.0, 0.0, -1.0]), targets, np.arange(900) // 9, (), 1.0, 0.5)
    found = adapt(there)
    assert found.change.kind == "shifts" and not found.has_new_threshold
    assert (found.change.shift - found.change.shift[1])[[0, 2]] == pytest.approx([-2.0, 1.0], abs=0.4)


def test_a_sensitivity_that_is_asked_for_is_chosen_in_any_case() -> None:
    there = drawn()
    found = adapt(there, Asked(target_sensitivity=0.95))
    assert found.has_new_threshold
    truth = there.diseased
    assert truth is not None and (found.values >= found.threshold)[truth == 1].mean() >= 0.95


def test_a_threshold_that_is_kept_decides_every_image_as_before() -> None:
    """Its number means something else among the probabilities of another temperature."""
    kept = 0
    for seed in range(12, 40):
        there = replace(drawn(30, scale=3.0, seed=seed, subjects=10), threshold=0.983)
        found, new = adapt(there), drawn(500, scale=3.0, seed=seed + 1000)
        if found.has_new_threshold or found.change.kind == "as it was":
            continue
        kept += 1
        before = as_it_was(there).values(new) >= 0.983
        assert np.array_equal(found.change.values(new) >= found.threshold, before)
        assert found.decides_alike and found.threshold < 0.983
        (said,) = lines.threshold(found, info_of(0.983))
        assert said.startswith(f"threshold {found.threshold:.3f}, which decides as 0.983 did: another one does no bet")
    assert kept >= 2


@pytest.mark.parametrize(("positive", "side"), [((), ()), (("c", "a"), (2, 0)), (("a", "b", "c"), ())])
def test_where_all_classes_mean_disease_there_are_no_sides_as_where_none_does(
    positive: tuple[str, ...], side: tuple[int, ...]
) -> None:
    three = {"task": "multiclass", "classes": ("a", "b", "c"), "positive_classes": positive}
    info = info_of(0.5).model_copy(update=three)
    assert info.diseased_side == side
    assert local_of(info, [0, 1], np.zeros((2, 3)), None, ["p", "q"]).positive == side


def info_of(threshold: float) -> BundleInfo:
    return BundleInfo(
        name="m", version="v", architecture="resnet18", task="binary", classes=CLASSES, positive_classes=CLASSES[1:],
        input_size=32, preprocessing_digest="", weights_sha256="", graph_sha256="", threshold=threshold,
    )  # fmt: skip


def test_a_kept_threshold_of_many_classes_calls_as_many_positive_as_before() -> None:
    """Temperature and shifts may change the order of sums of classes, so that no cut decides alike."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (120, 3))
    there = Local(logits, rng.integers(0, 3, 120), np.arange(120) // 4, (1, 2), 1.0, 0.9)
    change = Change("shifts", 2.5, np.array([0.4, -0.3, 0.1]))
    values = change.values(there)
    cut = carried(0.9, there, change, values)
    assert (values >= cut).sum() == (as_it_was(there).values(there) >= 0.9).sum() > 0
    assert carried(0.0, there, change, values) == 0 and carried(1.0, there, change, values) == 1
    none, every = (replace(there, logits=logits + np.array([by, 0, 0])) for by in (90.0, -90.0))
    assert carried(0.9, none, change, change.values(none)) > change.values(none).max()
    assert carried(0.9, every, change, change.values(every)) <= change.values(every).min()
    assert carried(0.9, there, as_it_was(there), values) == 0.9


def test_folds_divide_no_subject_and_hold_every_image_out_once() -> None:
    there = drawn(60, subjects=9)
    parts = folds(there, 0)
    assert (np.sum(parts, axis=0) == 1).all()
    assert all(not set(there.groups[out]) & set(there.groups[~out]) for out in parts)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (drawn(8, subjects=8), "8 labelled images: 10 are the fewest"),
        (
            replace(drawn(40), targets=np.zeros(40, np.int64)),
            "0 diseased images of 0 subjects: at least 5 of each side are needed, of 3 subjects",
        ),
        (drawn(40, subjects=4), "images of 4 subjects: 6 are the fewest"),
        (replace(drawn(40), logits=10.0 * (drawn(40).targets[:, None] - 0.5)), "separated without error"),
    ],
)
def test_too_few_images_are_refused_with_what_is_needed(there: Local, said: str) -> None:
    with pytest.raises(InputError, match=said):
        refuse_too_few(there, CLASSES, "subjects")


def test_labels_that_are_too_few_are_refused_before_any_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve images of one side: the labels alone say so, and no worker starts."""
    rows = [row | {"class_name": "positive", "label": 1} for row in cell_images(tmp_path / "images", 12)]
    there = manifest_of([row | {"subject_id": f"s{k // 2}"} for k, row in enumerate(rows)], tmp_path / "manifest")
    make_bundle(tmp_path / "m", 16)
    monkeypatch.setattr(calibrate, "connected", lambda *_, **__: pytest.fail("images were about to be read"))
    assert calibrate.command([there.uri, "--model", str(tmp_path / "m"), "--out", str(tmp_path / "out")]) == 3
    assert "0 healthy images of 0 subjects: at least 5 of each side" in capsys.readouterr().err


def test_classes_of_too_few_images_get_no_shift_and_it_is_said() -> None:
    rng = np.random.default_rng(0)
    there = Local(rng.normal(size=(60, 3)), np.arange(60) % 2, np.arange(60) // 3, (), 1.0, 0.5)
    (note,) = refuse_too_few(there, ("a", "b", "c"), "subjects")
    assert note.startswith("Fewer than 5 images of c: only temperature and threshold")


def test_a_class_that_is_lost_is_named() -> None:
    there = drawn(40)
    found = replace(adapt(there), logits=np.full((40, 1), -1.0))  # nothing is called positive any more
    (said,) = lines.forgotten(found, there, CLASSES)
    assert f"of {int(there.targets.sum())} held-out images of positive 0 are found" in said
    assert lines.forgotten(replace(found, logits=there.logits), there, CLASSES) == []


def test_the_learning_curve_gains_on_subjects_that_were_not_used() -> None:
    there = drawn(400, scale=4.0, shift=-6.0, subjects=80)
    asked = Asked()
    points = learning_curve(there, asked, sizes=(10, 100, 390), draws=10)
    assert [point.images for point in points] == [10, 100]  # of 400, 390 leave nobody to judge by
    few, many = (point.metrics["gain"] for point in points)
    assert many["log_loss"]["value"] < -0.5 and many["balanced_accuracy"]["value"] > 0.02  # type: ignore[operator]
    assert many["log_loss"]["value"] <= few["log_loss"]["value"]  # type: ignore[operator]
    assert points == learning_curve(there, asked, sizes=(10, 100, 390), draws=10)
    said = "\n".join(lines.curve(points, "subjects"))
    assert "n = 100, 10 draws, judged on" in said and "n = 25, 50: too few subjects" in said


def test_a_subject_with_most_of_the_images_is_never_learnt_from_alone() -> None:
    """Folds divide no subject: the images of one alone would leave nothing to fit to."""
    for others, learnt in ((7, []), (40, [10, 50])):
        sizes = [100] + [5] * others
        groups = np.repeat(np.arange(len(sizes)), sizes)
        there = with_features(replace(drawn(len(groups), seed=5), groups=groups), seed=6, width=5)
        assert refuse_too_few(there, CLASSES, "subjects") == []
        points = learning_curve(there, Asked(adapts_head=True), sizes=(10, 50), draws=25 if not learnt else 4)
        assert [point.images for point in points] == learnt
        assert all(np.isfinite(point.metrics["adapted"]["log_loss"]["value"] or np.nan) for point in points)
