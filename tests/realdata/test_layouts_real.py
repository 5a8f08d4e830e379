"""Layouts and splits on the paths of three public data sets."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.ingest.layouts import annotate, recognize
from pipeline.ingest.splits import SplitResult, assign_splits, check_leaks
from pipeline.sources.manifest import SPLITS

pytestmark = pytest.mark.realdata
SUFFIXES = {".jpg", ".jpeg", ".bmp"}


def paths_of(root: Path) -> list[str]:
    if not root.is_dir():
        pytest.skip(f"real images: no {root.name} in {root.parent}")
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.suffix in SUFFIXES)


def split(paths: list[str]) -> tuple[list[str | None], list[str | None], SplitResult]:
    layout = recognize(paths)
    annotations = annotate(paths, layout)
    classes, subjects = [a.class_name for a in annotations], [a.subject_id for a in annotations]
    given = [a.split for a in annotations]
    return classes, subjects, assign_splits(classes, subjects, given, keys=paths, rule=layout.split_rule)


def test_taleqani_is_split_by_blocks_with_every_class_near_its_share(real_data: Path) -> None:
    paths = paths_of(real_data / "taleqani-all")
    assert recognize(paths).name == "taleqani-all"
    classes, subjects, result = split(paths)
    assert None not in classes
    assert None not in subjects
    assert result.rule == "subjects"
    assert result.warnings == []
    check_leaks(subjects, result.splits)
    counts = Counter(zip(classes, result.splits, strict=True))
    blocks = Counter(
        (class_name, name) for _, class_name, name in set(zip(subjects, classes, result.splits, strict=True))
    )
    for class_name, total in Counter(classes).items():
        for name, fraction in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
            assert abs(counts[class_name, name] - fraction * total) <= 36  # a block
        assert blocks[class_name, "test"] >= 2
        assert blocks[class_name, "validation"] >= 2


def test_kaggle_keeps_its_test_images_and_takes_validation_from_train(real_data: Path) -> None:
    paths = paths_of(real_data / "kaggle-blood-cells")
    assert recognize(paths).name == "kaggle-blood-cells"
    classes, _, result = split(paths)
    assert len(set(classes)) == 4
    assert result.rule == "given"
    for path, name in zip(paths, result.splits, strict=True):
        assert (name == "test") == ("/TRAIN/" not in path)
    assert set(result.splits) == set(SPLITS)


def test_c_nmc_carries_subjects_and_is_too_few_of_them_to_train(real_data: Path) -> None:
    paths = paths_of(real_data / "c-nmc-2019")
    annotations = annotate(paths, recognize(paths))
    assert {a.label for a in annotations} == {1}
    assert {a.subject_id for a in annotations} <= {"11", "14", "16"}
    result = split(paths)[2]
    if len({a.subject_id for a in annotations}) < 3:
        assert set(result.splits) == {None} and "too few" in " ".join(result.warnings)
    else:
        assert set(result.splits) == set(SPLITS)


def test_all_sets_together_are_refused(real_data: Path) -> None:
    with pytest.raises(InputError, match="mixes several data sets"):
        recognize(paths_of(real_data))
