"""A calibration for another laboratory, in lines that a person reads: takes what `adapt` and `adapt_curve` give."""

from collections.abc import Mapping, Sequence

from pipeline.evaluation.adapt import Adapted, Local
from pipeline.evaluation.adapt_curve import SIZES, Point
from pipeline.evaluation.report.words import DASH, number
from pipeline.model.bundle import BundleInfo
from pipeline.model.prediction import probabilities

_MUCH = 0.2  # of a class's images: more of them lost must be said
_NAMES = {
    "log_loss": "log-loss",
    "ece": "calibration error",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
_KINDS = {
    "as it was": "as it was",
    "temperature": "another temperature",
    "shifts": "temperature and shifts of the classes",
    "head": "a new head near the old one",
}


def tried(found: Adapted) -> list[str]:
    """What held-out likelihood said of each change."""
    lines = ["log-loss on images held out, by folds of the local subjects:"]
    for one in found.tried:
        gain = "" if one.kind == "as it was" else f"  gain {one.gain:+.4f}, standard error {one.error:.4f}"
        verdict = "" if one.kind == "as it was" else (": taken" if one.helps else ": not taken")
        lines.append(f"  {_KINDS[one.kind]:<40}{one.loss:.4f}{gain}{verdict}")
    change = found.change
    said = f"temperature {change.temperature:.3f}"
    said += f", shifts {', '.join(f'{value:+.2f}' for value in change.shift)}" if change.kind == "shifts" else ""
    return [*lines, f"so: {_KINDS[change.kind]} ({said})"]


def threshold(found: Adapted, info: BundleInfo) -> list[str]:
    """The operating point."""
    if not info.positive_classes:
        return []
    if found.has_new_threshold:
        return [f"threshold {number(found.threshold)}, it was {number(info.threshold)}"]
    return [f"threshold {_kept(found, info)}: another one does no better on images held out"]


def _kept(found: Adapted, info: BundleInfo) -> str:
    """The parent's operating point, which is another number where the probabilities are others."""
    if found.threshold == info.threshold:
        return f"{number(info.threshold)} kept"
    how = "decides as" if found.decides_alike else "calls as many of these images positive as"
    return f"{number(found.threshold)}, which {how} {number(info.threshold)} did"


def forgotten(found: Adapted, of: Local, classes: Sequence[str]) -> list[str]:
    """Classes of which held-out images are found much less than before: likelihood is that of the frequent ones."""
    before, now = (probabilities(logits).argmax(axis=1) == of.targets for logits in (of.logits, found.logits))
    said = []
    for k, name in enumerate(classes):
        rows = of.targets == k
        was, is_now, count = int(before[rows].sum()), int(now[rows].sum()), int(rows.sum())
        if was - is_now > max(1, _MUCH * count):
            said.append(f"of {count} held-out images of {name} {is_now} are found, {was} were before: it is being lost")
    return said


def curve(points: Sequence[Point], units: str) -> list[str]:
    """The table: of images that were not used, as it was and adapted."""
    if not points:
        return [f"no learning curve: too few {units} to learn from some and judge by others"]
    lines = [
        f"what n images bring, judged on images of {'others' if units == 'images' else f'other {units}'} "
        "(mean of draws; in brackets 95 % of them):"
    ]
    for point in points:
        taken = ", ".join(f"{kind} {count}" for kind, count in sorted(point.kinds.items(), key=lambda one: -one[1]))
        lines.append(f"  n = {point.images}, {point.draws} draws, judged on {point.judged:.0f}; taken: {taken}")
        for name, shown in _NAMES.items():
            if name in point.metrics["gain"]:
                before, now, gain = (point.metrics[key][name] for key in ("as_it_was", "adapted", "gain"))
                lines.append(
                    f"    {shown:<20}{_spread(before)}  ->  {_spread(now)}   difference {_spread(gain, sign=True)}"
                )
    missing = [str(size) for size in SIZES if size not in {point.images for point in points}]
    if missing:
        lines.append(f"  n = {', '.join(missing)}: too few {units} to learn from so many and judge by others")
    return lines


def _spread(found: Mapping[str, float | None], *, sign: bool = False) -> str:
    values = [found[end] for end in ("value", "low", "high")]
    if None in values:
        return DASH
    value, low, high = (f"{value:+.3f}" if sign else f"{value:.3f}" for value in values)
    return f"{value} ({low} to {high})"
