"""Splits: disjoint by subject, alike in classes, the same in any order of the rows."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest.splits import assign_splits, check_leaks
from pipeline.sources.manifest import SPLITS
from tests.searches import search

rows_strategy = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.one_of(st.none(), st.integers(0, 30).map(str)),
        st.one_of(st.none(), st.integers(0, 20)),
    ),
    min_size=12,
    max_size=120,
)


@search(150)
@given(rows=rows_strategy, seed=st.integers(0, 3), order=st.randoms(use_true_random=False))
def test_any_rows_are_split_disjointly_fully_and_in_any_order_alike(
    rows: list[tuple[str | None, str | None, int | None]], seed: int, order: random.Random
) -> None:
    keys = [f"k{i}" for i in range(len(rows))]

    def split(positions: list[int]) -> dict[str, str | None]:
        classes, subjects, groups = ([rows[i][column] for i in positions] for column in range(3))
        result = assign_splits(
            classes,
            subjects,
            keys=[keys[i] for i in positions],
            groups=groups,
            seed=seed,  # type: ignore[arg-type]
        )
        return dict(zip([keys[i] for i in positions], result.splits, strict=True))

    positions = list(range(len(rows)))
    try:
        splits = split(positions)
    except InputError:
        return  # too few units: refused, never half empty
    assert all((splits[key] is None) == (row[0] is None) for key, row in zip(keys, rows, strict=True))
    values = [splits[key] for key in keys]
    check_leaks([row[1] for row in rows], values)
    check_leaks([None if row[2] is None else str(row[2]) for row in rows], values)
    if any(row[0] is not None for row in rows):
        assert {value for value in values if value} == set(SPLITS)
    order.shuffle(positions)
    assert split(positions) == splits


@search(40)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=40, max_size=120),
    fractions=st.sampled_from([(0.7, 0.15, 0.15), (0.6, 0.2, 0.2), (0.8, 0.2, 0.0)]),
)
def test_fractions_are_kept_within_a_few_subjects(sizes: list[int], fractions: tuple[float, float, float]) -> None:
    subjects = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    classes = ["ab"[int(subject) % 2] for subject in subjects]
    result = assign_splits(classes, subjects, fractions=fractions)
    share = Counter(result.splits)
    for name, fraction in zip(SPLITS, fractions, strict=True):
        assert abs(share[name] / len(subjects) - fraction) <= 2 * max(sizes) / len(subjects)


def test_images_without_subjects_are_stratified_exactly() -> None:
    classes = ["a"] * 1000 + ["b"] * 100
    result = assign_splits(classes)
    assert result.rule == "images"
    assert "no subjects" in result.warnings[0]
    assert Counter(zip(classes, result.splits, strict=True)) == {
        **{("a", name): n for name, n in zip(SPLITS, (700, 150, 150), strict=True)},
        **{("b", name): n for name, n in zip(SPLITS, (70, 15, 15), strict=True)},
    }


def test_images_that_do_not_divide_go_where_most_is_missing() -> None:
    splits = assign_splits(["a"] * 11, fractions=(0.5, 0.25, 0.25)).splits  # 5.5, 2.75, 2.75
    assert Counter(splits) == {"train": 5, "validation": 3, "test": 3}


def test_rare_class_with_three_subjects_reaches_every_split() -> None:
    subjects = [f"big{i}" for i in range(30) for _ in range(50)] + ["r1"] * 90 + ["r2"] * 5 + ["r3"] * 4
    classes = ["common"] * 1500 + ["rare"] * 99
    result = assign_splits(classes, subjects)
    assert {split for name, split in zip(classes, result.splits, strict=True) if name == "rare"} == set(SPLITS)
    assert result.warnings == []


def test_class_with_too_few_subjects_is_in_train_first_and_said() -> None:
    subjects = [f"s{i % 12}" for i in range(120)] + ["one"] * 20
    result = assign_splits(["a"] * 120 + ["b"] * 20, subjects)
    assert set(result.splits[120:]) == {"train"}
    assert [w for w in result.warnings if "validation has no images of b (1 independent)" in w]


def test_every_class_is_dealt_by_its_share_to_within_a_subject() -> None:
    subjects = [f"s{number // 10:03d}" for number in range(2_000)]
    classes = ["a" if int(subject[1:]) % 10 < 7 else "b" for subject in subjects]
    counts = Counter(zip(classes, assign_splits(classes, subjects).splits, strict=True))
    for class_name, total in Counter(classes).items():
        for name, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
            assert abs(counts[class_name, name] - share * total) <= 10


@search(60)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 5, 300]), min_size=3, max_size=10),
    common=st.integers(20, 40),
    seed=st.integers(0, 3),
)
def test_a_rare_class_is_on_every_side_and_twice_in_test_where_its_subjects_suffice(
    sizes: list[int], common: int, seed: int
) -> None:
    """However unequal its subjects are: six are enough for two in test, eight for two in validation too."""
    subjects = [f"rare{number}" for number, size in enumerate(sizes) for _ in range(size)]
    classes = ["rare"] * len(subjects) + ["common"] * common * 10
    subjects += [f"common{number // 10}" for number in range(common * 10)]
    splits = assign_splits(classes, subjects, seed=seed).splits
    sides = Counter(split for _, split in {pair for pair in zip(subjects, splits, strict=True) if pair[0][0] == "r"})
    assert set(sides) == set(SPLITS)
    assert sides["test"] >= (2 if len(sizes) >= 6 else 1)
    assert sides["validation"] >= (2 if len(sizes) >= 8 else 1)


@pytest.mark.parametrize("rare", [0, 1])
def test_both_labels_are_on_every_side_whatever_the_classes(rare: int) -> None:
    subjects = [str(number // 5) for number in range(300)]
    labels = [rare if int(subject) % 20 == 0 else 1 - rare for subject in subjects]
    for seed in range(8):
        splits = assign_splits(["cell"] * 300, subjects, labels=labels, seed=seed).splits
        assert {split for split, label in zip(splits, labels, strict=True) if label == rare} == set(SPLITS)


def test_the_reason_says_what_was_done() -> None:
    classes, subjects = ["a", "b"] * 30, [str(number // 2) for number in range(60)]
    told = "60 images of 2 classes, {} subjects, seed 0"
    assert assign_splits(classes, subjects).reason == (
        "every subject is in one split only, classes are balanced over the splits: " + told.format(30)
    )
    assert assign_splits(classes).reason == "images are drawn at random within each class: " + told.format(0)
    given = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    kept = "given splits are kept{}: " + told.format(0)
    assert assign_splits(classes, given_splits=given).reason == kept.format("")
    torn = ["train"] * 50 + ["test"] * 10
    assert assign_splits(classes, given_splits=torn).reason == kept.format(", what is missing is taken from train")


def test_seed_changes_the_split() -> None:
    subjects = [str(i // 5) for i in range(500)]
    first, second = (assign_splits(["a"] * 500, subjects, seed=seed).splits for seed in (0, 1))
    assert first != second


class TestGivenSplits:
    def test_are_kept_and_validation_is_taken_from_train(self) -> None:
        given = ["train"] * 800 + ["test"] * 200
        result = assign_splits(["a", "b"] * 500, given_splits=given)
        assert result.rule == "given"
        assert set(result.splits[800:]) == {"test"}
        assert abs(result.splits.count("validation") - 800 * 0.15 / 0.85) <= 2
        assert [w for w in result.warnings if "validation" in w and "image by image" in w]

    def test_validation_is_taken_by_subject_where_known(self) -> None:
        subjects = [f"s{i // 20}" for i in range(1000)]
        given = ["train"] * 800 + ["test"] * 200
        result = assign_splits(["a", "b"] * 500, subjects, given)
        check_leaks(subjects, result.splits)
        assert abs(result.splits.count("validation") - 800 * 0.15 / 0.85) <= 20  # a subject

    def test_complete_given_splits_stay_and_the_rest_goes_to_train(self) -> None:
        given = [None, "train", "validation", "test"] * 5
        result = assign_splits(["a"] * 20, given_splits=given)
        assert result.splits == ["train", "train", "validation", "test"] * 5
        assert [w for w in result.warnings if "5 images have no given split" in w]

    def test_subject_on_two_given_sides_is_refused_by_name(self) -> None:
        with pytest.raises(InputError, match=r"'p' in train .*x.jpg.* and test .*y.jpg"):
            assign_splits(["a", "a"], ["p", "p"], ["train", "test"], keys=["x.jpg", "y.jpg"])

    def test_stay_though_the_smallest_subjects_of_a_class_that_validation_lacks_are_in_test(self) -> None:
        subjects = [f"common{number // 4}" for number in range(160)] + ["r1"] * 4 + ["r2"] * 4 + ["r3", "r4"]
        given = ["train"] * 120 + ["test"] * 40 + ["train"] * 8 + ["test"] * 2
        splits = assign_splits(["common"] * 160 + ["rare"] * 10, subjects, given).splits
        assert splits[120:160] + splits[168:] == ["test"] * 42
        assert set(splits[160:168]) == {"train", "validation"}

    def test_near_duplicates_across_given_splits_keep_the_given_split(self) -> None:
        given = (["train"] * 3 + ["test"]) * 5
        result = assign_splits(["a"] * 20, given_splits=given, groups=[i // 4 for i in range(20)])
        assert [split == "test" for split in result.splits] == [split == "test" for split in given]

    def test_can_be_overruled(self) -> None:
        given = ["train"] * 50 + ["test"] * 50
        result = assign_splits(["a"] * 100, [str(i // 2) for i in range(100)], given, rule="subjects")
        assert set(result.splits[:50]) > {"train"}


def test_too_few_subjects_are_left_without_split_and_said_so() -> None:
    result = assign_splits(["a"] * 10, ["p", "q"] * 5)
    assert (set(result.splits), result.rule) == ({None}, "none")
    assert "too few to fill" in result.warnings[-1]


def test_split_with_fraction_zero_may_stay_empty() -> None:
    assert set(assign_splits(["a"] * 10, ["p", "q"] * 5, fractions=(0.5, 0, 0.5)).splits) == {"train", "test"}


def test_no_labels_is_no_split() -> None:
    result = assign_splits([None, None], ["a", "b"])
    assert (result.splits, result.rule) == ([None, None], "none")


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="sum to 1"):
        assign_splits(["a"], fractions=(0.5, 0.1, 0.1))
    with pytest.raises(InputError, match="no image has a given split"):
        assign_splits(["a"], rule="given")
    with pytest.raises(InputError, match="--subject-pattern"):
        assign_splits(["a"], rule="subjects")
    with pytest.raises(InputError, match="'fold' is not a split"):
        assign_splits(["a"], given_splits=["fold"])


def test_splitting_by_image_over_known_subjects_warns() -> None:
    result = assign_splits(["a"] * 60, [str(i // 20) for i in range(60)], rule="images")
    assert "inflated" in result.warnings[0]


def test_a_copy_in_another_given_split_does_not_pull_a_subject_apart() -> None:
    subjects = [*[f"s{k // 2}" for k in range(16)], "s4"]
    given = ["train" if k < 8 else "test" for k in range(16)] + [None]
    groups = [*[None] * 16, 1]
    groups[0] = 1  # the free row of s4, which is in test, is a copy of a train image
    classes = ["a", "b"] * 8 + ["a"]
    splits = assign_splits(classes, subjects, given, groups=groups, rule="given").splits
    assert splits[16] == "test"
