"""A comparison in sentences: which differences are real, and what was asked how often."""

import math
from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.comparison.result import DISEASE, Comparison, Judged, Pair, metrics_of
from pipeline.evaluation.names import METRIC_NAMES
from pipeline.evaluation.report import words


def metric_name(name: str) -> str:
    return f"{METRIC_NAMES[name.removeprefix(DISEASE)]}, of disease" if name.startswith(DISEASE) else METRIC_NAMES[name]


def signed(value: float | None, digits: int = 3) -> str:
    """+0.042, -0.042 or 0.000."""
    if value is None or math.isnan(value):
        return words.DASH
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def limits(judged: Judged) -> str:
    """-0.010 to +0.081; empty where there are none."""
    low, high = judged.difference.low, judged.difference.high
    return "" if math.isnan(low) else f"{signed(low)} to {signed(high)}"


def headline(found: Comparison) -> list[str]:
    """One or two sentences a pair, those of differences first."""
    return [*(told for pair in found.pairs for told in _real(found, pair)), *_none(found)]


def _real(found: Comparison, pair: Pair) -> list[str]:
    figures = [metrics_of(found.evaluations[k]) for k in (pair.first, pair.second)]
    letters = [found.letters[k] for k in (pair.first, pair.second)]
    told = []
    for better in (0, 1):
        sign = 1 if better == 0 else -1
        real = {k: j for k, j in pair.differences.items() if j.is_real and sign * j.difference.value > 0}
        if real:
            named = "; ".join(_better(name, figures, better) for name in real)
            told.append(f"{letters[better]} is better than {letters[1 - better]}: {named}.")
    return told


def _better(name: str, figures: list[dict[str, Any]], better: int) -> str:
    one, other = (words.number(figures[k][name]["value"]) for k in (better, 1 - better))
    return f"{metric_name(name)} {one} against {other}"


def _none(found: Comparison) -> list[str]:
    """Of pairs without any real difference, how large one could hide."""
    alike = [pair for pair in found.pairs if not any(judged.is_real for judged in pair.differences.values())]
    if not alike:
        return []
    named = ", ".join(f"{found.letters[pair.first]} and {found.letters[pair.second]}" for pair in alike)
    widest = [
        max(abs(judged.difference.low), abs(judged.difference.high))
        for pair in alike
        for judged in pair.differences.values()
        if not math.isnan(judged.difference.low)
    ]
    hidden = (
        f" One of up to {max(widest):.2f} could be hidden by chance."
        if widest
        else f" Too few {found.units} to tell any."
    )
    return [f"These images show no difference between {named}.{hidden}"]


def recognized(found: Comparison) -> list[tuple[str, str]]:
    """(letter, sentence) of each model that knows images of its training among those measured."""
    return [
        (letter, sentence)
        for letter, of in zip(found.letters, found.evaluations, strict=True)
        for sentence in words.recognized(of.recognized.record(), of.metrics["task"])
    ]


def several(found: Comparison) -> str:
    """How many questions were asked, and what was done about it."""
    if not found.pairs:
        return ""
    figures, pairs = len(found.pairs[0].differences), len(found.pairs)
    percent = f"{100 * (1 - found.resampling.confidence):g} %"
    luck = f"Each of the {figures} figures is tested by itself at {percent}, without allowing for their number"
    if pairs == 1:
        return f"{luck}. Choose before looking which one decides."
    return (
        f"{luck}, but for that of the {pairs} pairs of models: p is adjusted by Holm's method over the pairs of one "
        "figure. Intervals are of one pair alone. Choose before looking which figure decides."
    )


def lines(found: Comparison) -> list[str]:
    """For the terminal: the models, their figures and the differences."""
    told = []
    for letter, name, one, speed in zip(found.letters, found.names, found.evaluations, found.speeds, strict=True):
        told.append(
            f"  {letter}: {name}, {one.bundle.info.architecture}, {speed.images_per_s:.0f} images/s a core, "
            f"{speed.p95_ms:.1f} ms for one (p95), {speed.graph_bytes / 1e6:.1f} MB"
        )
    for metric in metrics_of(found.evaluations[0]):
        told.append(f"\n  {metric_name(metric)}")
        for letter, one in zip(found.letters, found.evaluations, strict=True):
            told.append(f"    {letter:<8}{words.with_interval(metrics_of(one)[metric])}")
        for pair in found.pairs:
            told.append(f"    {_difference_line(found, pair, metric)}")
    return told


def _difference_line(found: Comparison, pair: Pair, metric: str) -> str:
    judged, which = pair.differences[metric], f"{found.letters[pair.first]} - {found.letters[pair.second]}"
    between = f" ({limits(judged)})" if limits(judged) else ""
    return f"{which:<8}{signed(judged.difference.value)}{between}, {verdict(judged, found.units)}"


def verdict(judged: Judged, units: str) -> str:
    """'real, p 0.004', 'not shown, p 0.31' or that so few `units` tell nothing."""
    if math.isnan(judged.p_adjusted):
        return f"cannot be told: too few {units}"
    p = f"p {judged.p_adjusted:.3f}" if judged.p_adjusted >= 0.001 else "p < 0.001"
    return f"{'real' if judged.is_real else 'not shown'}, {p}"


def disagreement(found: Comparison, pair: Pair) -> Mapping[str, int | str]:
    """Counts of a pair, for a table."""
    return {
        "first": found.letters[pair.first],
        "second": found.letters[pair.second],
        "both_right": pair.both_right,
        "only_first": len(pair.only_first),
        "only_second": len(pair.only_second),
        "both_wrong": pair.both_wrong,
    }
