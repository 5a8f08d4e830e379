"""What a search may change, the proposals it makes, and how it tells what it tried."""

import csv
import io
import math

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import UsageError
from pipeline.training.search_report import Trial, as_csv, as_table, picture, ranked
from pipeline.training.search_space import Choice, Range, proposal, read_space

ALLOWED = ("learning_rate", "label_smoothing", "architecture")
SPACE = read_space(["learning_rate=1e-4..1e-2", "label_smoothing=0,0.05,0.1"], ALLOWED)


def test_a_space_is_read_as_it_is_written() -> None:
    assert {"learning_rate": Range(1e-4, 1e-2), "label_smoothing": Choice(("0", "0.05", "0.1"))} == SPACE
    assert read_space(["--label-smoothing = 0, 0.1"], ALLOWED) == {"label_smoothing": Choice(("0", "0.1"))}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("seed=1,2", "seed cannot be searched; one of learning_rate"),
        ("learning_rate", "give NAME=LOW..HIGH"),
        ("learning_rate=1e-3", "give NAME=LOW..HIGH"),
        ("learning_rate=1,1", "different values"),
        ("learning_rate=0..1", "LOW must be above 0"),
        ("learning_rate=1..0.1", "below HIGH"),
        ("learning_rate=a..b", "two numbers"),
        ("learning_rate=1e-3..nan", "below HIGH"),
    ],
)
def test_what_cannot_be_read_is_named(written: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_space([written], ALLOWED)


@pytest.mark.parametrize("written", ["warmup=0.9..0.9999", "warmup=1.2346e-4..1.2349e-4"])
def test_no_rounding_leaves_the_range(written: str) -> None:
    space = read_space([written], ("warmup",))
    low, high = map(float, written.removeprefix("warmup=").split(".."))
    drawn = [float(proposal(space, number, seed=0)["warmup"]) for number in range(1, 200)]
    assert low <= min(drawn) and max(drawn) <= high


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        read_space(["learning_rate=1e-4..1e-2", "learning-rate=1,2"], ALLOWED)


def test_the_first_proposal_changes_nothing_and_more_leave_the_earlier_ones_alone() -> None:
    assert proposal(SPACE, 0, seed=3) == {}
    eight = [proposal(SPACE, number, seed=3) for number in range(1, 9)]
    assert eight == [proposal(SPACE, number, seed=3) for number in range(1, 9)]
    assert eight != [proposal(SPACE, number, seed=4) for number in range(1, 9)]
    assert len({each["learning_rate"] for each in eight}) == 8


def test_proposals_fill_the_space_evenly() -> None:
    drawn = [proposal(SPACE, number, seed=0) for number in range(1, 28)]
    rates = np.log10([float(each["learning_rate"]) for each in drawn])
    assert np.histogram(rates, bins=4, range=(-4, -2))[0].min() >= 6  # of 27
    for value in ("0", "0.05", "0.1"):
        assert sum(each["label_smoothing"] == value for each in drawn) == 9


def trial(number: int, values: list[float], ending: str = "finished") -> Trial:
    rows = [{"epoch": epoch + 1.0, "val_auc": value, "val_loss": 0.5} for epoch, value in enumerate(values)]
    return Trial(number, proposal(SPACE, number, 0), rows, ending)


TRIALS = [trial(0, [0.6, 0.7]), trial(1, [0.5], "stopped"), trial(2, [0.8, 0.75]), trial(3, [], "failed")]


def test_the_best_comes_first_and_what_failed_last() -> None:
    assert [each.number for each in ranked(TRIALS, "val_auc")] == [2, 0, 1, 3]
    lines = as_table(TRIALS, SPACE, "val_auc", {"learning_rate": "0.001", "label_smoothing": "0.0"}).splitlines()
    assert lines[0].split() == ["trial", "val", "auc", "epochs", "learning_rate", "label_smoothing"]
    assert lines[1].split()[:3] == ["2", "0.8000", "2"] and lines[2].split()[3:5] == ["0.001*", "0.0*"]
    assert lines[4].split()[:3] == ["3", "-", "0"] and lines[4].endswith("failed")


def test_what_failed_is_never_the_best_however_well_an_epoch_did_before() -> None:
    broken = trial(4, [0.99], "failed: the loss is not finite in epoch 2; lower --learning-rate")
    assert [each.number for each in ranked([broken, *TRIALS], "val_auc")] == [2, 0, 1, 4, 3]


def test_of_equal_trials_the_one_with_the_lower_loss_is_first() -> None:
    low = Trial(5, {}, [{"epoch": 1, "val_auc": 0.8, "val_loss": 0.1}], "finished")
    assert [each.number for each in ranked([*TRIALS, low], "val_auc")][:2] == [5, 2]


def test_an_undefined_epoch_is_no_best() -> None:
    assert trial(1, [math.nan, 0.5]).best("val_auc") == 0.5


def test_the_csv_has_every_trial_with_its_values_and_its_last_epoch() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(TRIALS, SPACE, "val_auc"))))
    assert [row["trial"] for row in rows] == ["2", "0", "1", "3"]
    assert (rows[0]["best_val_auc"], rows[0]["last_val_auc"]) == ("0.8", "0.75")
    assert rows[0]["learning_rate"] == proposal(SPACE, 2, 0)["learning_rate"]
    assert (rows[1]["learning_rate"], rows[3]["best_val_auc"]) == ("", "")


def test_the_picture_shows_curves_and_one_panel_an_option() -> None:
    with Image.open(io.BytesIO(picture(TRIALS, SPACE, "val_auc", "title"))) as image:
        assert image.format == "PNG"
        assert image.width > 3 * 350
    assert picture(TRIALS, SPACE, "val_auc", "a $x_$ b")[:4] == b"\x89PNG", "a name is no formula"
