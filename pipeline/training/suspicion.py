"""A loss that falls while validation stays at chance: that it is so, and the likely cause, in a line."""

import math
from collections.abc import Mapping, Sequence

_EPOCHS = 3  # before that a slow start looks the same
_FALLEN = 0.9  # of the first epoch's loss
_BY_HEART = 0.5
_FEW_STEPS = 200
_NO_SPREAD = 0.01  # standard deviation of validation logits
_MARGIN, _ERRORS = 0.05, 3.0  # this far above chance, and so many standard errors, is no longer chance


def suspicion(history: Sequence[Mapping[str, float]], monitor: str, counts: Sequence[int]) -> str | None:
    """Of the rows of epochs so far and the validation images of each class; None where nothing is wrong.

    Rows hold `train_loss`, `step` (optimizer steps so far), `val_spread` and the metric `monitor`.
    """
    if len(history) < _EPOCHS or min(counts) == 0:
        return None
    first, last = history[0], history[-1]
    chance = 0.5 if monitor == "val_auc" else 1 / len(counts)
    margin = max(_MARGIN, _ERRORS * _standard_error(monitor, counts))
    best = max(row[monitor] for row in history)
    if last["train_loss"] > _FALLEN * first["train_loss"] or best > chance + margin:
        return None
    return (
        f"the training loss fell from {first['train_loss']:.3f} to {last['train_loss']:.3f}, but validation stays at "
        f"chance ({monitor.removeprefix('val_').replace('_', ' ')} {best:.3f} at best, guessing gives {chance:.3g}): "
        + _cause(first, last, last[monitor] < chance - margin)
    )


def _standard_error(monitor: str, counts: Sequence[int]) -> float:
    """Of the metric of guesses, images taken as independent."""
    if monitor == "val_auc":  # Mann & Whitney 1947
        negatives, positives = counts
        return math.sqrt((negatives + positives + 1) / (12 * negatives * positives))
    share = 1 / len(counts)
    return share * math.sqrt(share * (1 - share) * sum(1 / count for count in counts))


def _cause(first: Mapping[str, float], last: Mapping[str, float], is_reversed: bool) -> str:
    if last["val_spread"] < _NO_SPREAD:
        return (
            "all validation images get the same answer, so normalization statistics do not fit or the network is dead: "
            "lower --learning-rate, or choose another --architecture"
        )
    if is_reversed:
        return (
            "validation is ranked the wrong way round, so its labels contradict those of training, or what tells the "
            "classes apart there (background, stain, camera) is reversed here"
        )
    if last["step"] < _FEW_STEPS:
        return f"only {last['step']:.0f} steps were taken: raise --epochs, or lower --batch-size"
    if last["train_loss"] < _BY_HEART * first["train_loss"]:
        return (
            "the training images are learnt by heart: their labels do not follow from what they show (mixed up?), or "
            "something tells the classes apart that other subjects lack (background, stain, a mark of the site)"
        )
    return "labels that do not follow from the images, an --input-size too small to see why, or too few subjects"
