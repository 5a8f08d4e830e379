"""Groups among many: a worse one is found, luck and hard classes are not called worse."""

import numpy as np
import pytest

from pipeline.evaluation.multiplicity import groups_against_others, told
from pipeline.evaluation.slices import groups_of, thirds, worth_a_table


def answers(seed: int, subjects: int = 40, images: int = 15) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """A generator, subjects and a class each."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(subjects), images)
    return rng, codes, codes % 2


def test_a_group_of_subjects_that_is_answered_worse_is_named_and_the_number_looked_at() -> None:
    rng, codes, truth = answers(0)
    site = np.array(["a", "b", "c", "d"])[codes // 2 % 4]
    right = (rng.random(len(codes)) < np.where(site == "c", 0.6, 0.95)).astype(int)
    noise = [str(k) for k in rng.integers(0, 3, len(codes))]
    found = groups_against_others(right, truth, codes, {"site": list(site), "noise": noise}, 0)
    assert found is not None and found["groups"] == 7 and found["by_luck"] == pytest.approx(0.35)
    worse = [(row["column"], row["value"]) for row in found["rows"] if row["is_worse"]]
    assert worse == [("site", "c")]
    row = next(row for row in found["rows"] if row["value"] == "c")
    assert row["difference"] == pytest.approx(-0.35, abs=0.06) and row["p"] <= row["p_holm"] <= 0.05
    assert "permutation of subjects," in row["method"]
    assert "images within subjects" in next(r for r in found["rows"] if r["column"] == "noise")["method"]
    (said,) = told(found)
    assert said.startswith("7 groups were looked at") and "site c (150 images, by" in said


def test_blurred_images_within_subjects_are_named() -> None:
    rng, codes, truth = answers(1)
    sharp = rng.random(len(codes))
    right = (rng.random(len(codes)) < np.where(sharp < 1 / 3, 0.7, 0.95)).astype(int)
    bands = thirds(sharp.tolist())
    assert bands is not None
    found = groups_against_others(right, truth, codes, {"sharpness": bands}, 0)
    assert found is not None
    assert [row["value"].split(",")[0] for row in found["rows"] if row["is_worse"]] == ["lowest third"]


def test_luck_is_seldom_called_worse_though_subjects_differ_and_a_class_is_harder() -> None:
    """Of 60 sets without a difference in groups, at most a few; a subject's images succeed or fail together."""
    called = 0
    for seed in range(60):
        rng, codes, truth = answers(seed, 20, 6)
        skill = rng.normal(0, 1, 20)[codes] + np.where(truth, 2.5, 0.5)
        right = (rng.normal(0, 1, len(codes)) < skill).astype(int)
        sex = np.where((codes // 2) % 2, "f", "m").tolist()
        focus = thirds(rng.random(len(codes)).tolist())
        assert focus is not None
        found = groups_against_others(right, truth, codes, {"sex": sex, "focus": focus}, seed)
        assert found is not None
        called += any(row["is_worse"] for row in found["rows"])
    assert called <= 7, "5 % of 60 are 3; more than 7 come by luck once in fifty"


def test_a_column_of_one_group_is_not_compared() -> None:
    _, codes, truth = answers(0)
    column = ["x"] * (len(codes) - 1) + [None]
    assert groups_against_others(truth, truth, codes, {"site": column}, 0) is None and told(None) == []


def test_a_few_numbers_are_groups_and_ages_of_a_dozen_patients_are_thirds() -> None:
    stages, ages = [1, 2, 3, 4, 5] * 12, [20.0 + k % 12 for k in range(60)]
    wards = [f"w{k % 12}" for k in range(60)]
    found = worth_a_table({"stage": stages, "age": ages, "ward": wards})
    assert {name: len(set(values)) for name, values in found.items()} == {"stage": 5, "age": 3, "ward": 12}
    assert groups_of(ages) == found["age"] and groups_of(stages) == found["stage"]


def test_numbers_are_divided_into_thirds_and_what_cannot_be_is_left() -> None:
    ages = [str(20 + k) for k in range(60)]
    found = worth_a_table({"age": [*ages, None], "id": [f"p{k}" for k in range(61)]})
    assert list(found) == ["age"] and found["age"][-1] is None
    assert found["age"][0] == "lowest third, up to 39.67" and found["age"][59] == "top third, above 59.33"
    assert [sum(value == name for value in found["age"]) for name in sorted({v for v in found["age"] if v})] == [20] * 3
    assert thirds([1.0] * 50) is None and thirds([1.0, None]) is None and thirds([float("nan")] * 9) is None


def test_among_very_many_groups_one_that_is_always_wrong_is_still_named() -> None:
    rng, codes, truth = answers(3, subjects=240, images=6)
    site = [f"s{number:03d}" for number in codes // 2]
    right = np.where(np.array(site) == "s007", 0, (rng.random(len(codes)) < 0.95).astype(int))
    found = groups_against_others(right, truth, codes, {"site": site}, 0, "blocks")
    assert found is not None and found["groups"] == 120
    assert [row["value"] for row in found["rows"] if row["is_worse"]] == ["s007"]
    assert "permutation of blocks," in found["rows"][0]["method"]
