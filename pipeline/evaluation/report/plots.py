"""The report's figures: points of `curves` in, SVG text out. Figures are objects of their own, no pyplot state.

Colours are Okabe and Ito's, which remain apart with any kind of colour blindness; lines differ in dash as well.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.evaluation.names import METRIC_NAMES

INK, MUTED, GRID = "#1b2430", "#5b6672", "#e3e7ec"
NEGATIVE, POSITIVE, ACCENT = "#0072b2", "#d55e00", "#0f4c81"
BAND = "#f0e442"
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names of classes and subjects may hold dollars
    "svg.fonttype": "none",  # text stays text: crisp, selectable, in the page's font
    "svg.hashsalt": "leukoray",  # same data, same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # for measuring; the page's style sheet sets the font shown
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
SQUARE, WIDE = (4.4, 4.1), (9.3, 3.5)  # inches; one page column and two, at the same text size


def roc(curve: Mapping[str, Any], operating_point: tuple[float, float] | None, area: str) -> str:
    """ROC with the operating point (false alarm rate, sensitivity); `area` is the AUC as text."""
    with mpl.rc_context(STYLE):
        figure, axes = unit_square("False alarms (1 − specificity)", "Sensitivity")
        axes.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle=(0, (2, 3)))
        axes.fill_between(curve["fpr"], curve["tpr"], color=ACCENT, alpha=0.07, linewidth=0)
        axes.plot(curve["fpr"], curve["tpr"], color=ACCENT, linewidth=2, solid_joinstyle="round", clip_on=False)
        axes.text(0.97, 0.05, f"AUC {area}", ha="right", fontsize=10.5)
        if operating_point and all(map(_is_number, operating_point)):
            x, y = operating_point
            _point(axes, x, y, "operating point", (x + 0.06, y - 0.12) if x < 0.5 else (x - 0.45, y - 0.15))
        return as_svg(figure, "roc")


def precision_recall(curve: Mapping[str, Any], operating_point: tuple[float, float] | None, area: str) -> str:
    """Precision over recall with the operating point (recall, precision) and the share of positives."""
    with mpl.rc_context(STYLE):
        figure, axes = unit_square("Recall (sensitivity)", "Precision")
        base = curve["prevalence"]
        axes.axhline(base, color="#9aa5b1", linewidth=1, linestyle=(0, (2, 3)))
        axes.text(0.02, min(base + 0.02, 0.93), "share of positive images", color=MUTED, fontsize=8.5)
        axes.plot(curve["recall"], curve["precision"], color=ACCENT, linewidth=2, clip_on=False)
        axes.text(0.03, 0.05, f"Average precision {area}", fontsize=10.5)
        if operating_point and all(map(_is_number, operating_point)):
            x, y = operating_point
            _point(axes, x, y, "operating point", (max(x - 0.46, 0.02), y - 0.14 if y > base + 0.2 else y + 0.1))
        return as_svg(figure, "pr")


def score_histogram(
    histogram: Mapping[str, Any], names: Sequence[str], threshold: float, band: tuple[float, float] | None
) -> str:
    """Images by probability: negatives drawn downwards, positives upwards, so that neither hides the other."""
    edges = np.asarray(histogram["edges"])
    up, down = np.asarray(histogram["positive"]), np.asarray(histogram["negative"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=WIDE, layout="constrained")
        axes = figure.subplots()
        width = np.diff(edges) * 0.86
        centres = (edges[1:] + edges[:-1]) / 2
        axes.bar(centres, np.sqrt(up), width, color=POSITIVE)
        axes.bar(centres, -np.sqrt(down), width, color=NEGATIVE)
        axes.axhline(0, color=INK, linewidth=0.8)
        limit = float(np.sqrt(max(up.max(), down.max(), 1))) * 1.28
        axes.set_ylim(-limit, limit)
        axes.set_xlim(0, 1)
        axes.set_yticks(*_square_root_ticks(max(up.max(), down.max(), 1)))
        axes.set_xlabel(f"Probability of {names[1]}")
        axes.set_ylabel("Images (square-root scale)")
        axes.text(0.008, limit * 0.86, f"▲ truly {names[1]}", color=POSITIVE, fontweight="bold")
        axes.text(0.008, -limit * 0.94, f"▼ truly {names[0]}", color=NEGATIVE, fontweight="bold")
        _threshold(axes, threshold, band, limit * 0.86)
        return as_svg(figure, "scores")


def probability_histogram(
    counts: Sequence[int], edges: Sequence[float], label: str, threshold: float | None, band: tuple[float, float] | None
) -> str:
    """Images by probability, none of them with a known truth; right of the threshold in the colour of positives."""
    limits, heights = np.asarray(edges), np.sqrt(np.asarray(counts, np.float64))
    largest = max(max(counts), 1)
    centres = (limits[1:] + limits[:-1]) / 2
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE[0], 2.9), layout="constrained")
        axes = figure.subplots()
        colours = [ACCENT if threshold is None else POSITIVE if x >= threshold else NEGATIVE for x in centres]
        axes.bar(centres, heights, np.diff(limits) * 0.86, color=colours)
        top = float(np.sqrt(largest)) * 1.22
        axes.set(xlim=(0, 1), ylim=(0, top), xlabel=label, ylabel="Images (square-root scale)")
        places, names = _square_root_ticks(largest)
        middle = len(places) // 2
        axes.set_yticks(places[middle:], names[middle:])
        if threshold is not None:
            _threshold(axes, threshold, band, top * 0.91)
        return as_svg(figure, "probabilities")


def _threshold(axes: Axes, threshold: float, band: tuple[float, float] | None, height: float) -> None:
    """The line where the decision turns, its value beside it at `height`, and the review band around it."""
    if band:
        axes.axvspan(*band, color=BAND, alpha=0.35, linewidth=0, zorder=0.5)
    axes.axvline(threshold, color=INK, linewidth=1.4)
    side, shift = ("left", 0.01) if threshold < 0.6 else ("right", -0.01)
    note = f"threshold {threshold:.3f}" + (", review band shaded" if band else "")
    axes.text(threshold + shift, height, note, ha=side)


def reliability(points: Sequence[Mapping[str, Any]], share_label: str) -> str:
    """Share that happened over the probability given; the diagonal is perfect honesty.

    A point a bin, with its interval where it has one and the probabilities it spans. No line joins them: between two
    bins there may be no image at all.
    """
    with mpl.rc_context(STYLE):
        figure, axes = unit_square("Probability given", share_label)
        axes.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle=(0, (2, 3)))
        axes.text(0.60, 0.52, "perfectly calibrated", color=MUTED, fontsize=8.5, rotation=45, rotation_mode="anchor")
        x = np.array([point["probability"] for point in points])
        y = np.array([point["share"] for point in points])
        limits = {end: [point["share" if point[end] is None else end] for point in points] for end in ("low", "high")}
        bars = np.maximum([y - limits["low"], limits["high"] - y], 0)
        spans = np.maximum([x - [point["lowest"] for point in points], [point["highest"] for point in points] - x], 0)
        axes.errorbar(x, y, yerr=bars, xerr=spans, fmt="none", ecolor=ACCENT, elinewidth=1, alpha=0.55)
        axes.plot(x, y, "o", color=ACCENT, markersize=5, clip_on=False)
        return as_svg(figure, "reliability")


def reliability_of_two(series: Mapping[str, Sequence[Mapping[str, Any]]], share_label: str) -> str:
    """As `reliability`, of two sets of images by name: the first as squares, the second as points."""
    with mpl.rc_context(STYLE):
        figure, axes = unit_square("Probability given", share_label)
        axes.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle=(0, (2, 3)))
        for (name, points), colour, mark in zip(series.items(), (NEGATIVE, POSITIVE), "so", strict=False):
            x, y = (np.array([point[key] for point in points]) for key in ("probability", "share"))
            ends = [[p["share" if p[end] is None else end] for p in points] for end in ("low", "high")]
            bars = np.maximum([y - ends[0], ends[1] - y], 0)
            axes.errorbar(x, y, yerr=bars, fmt="none", ecolor=colour, elinewidth=1, alpha=0.55)
            axes.plot(x, y, mark, color=colour, markersize=5, clip_on=False, label=name)
        axes.legend(loc="upper left")
        return as_svg(figure, "reliability-two")


def trade_off(
    curve: Mapping[str, Any],
    names: Sequence[str],
    reviewed: float | None,
    errors: Sequence[float | None],
    promised: float | None,
) -> str:
    """Both errors of what is decided without a person over the share left to one; markers where the band is.

    `errors`: missed and alarmed at the band, whose `reviewed` share is None where there is no band.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SQUARE, layout="constrained")
        axes = figure.subplots()
        sides = (("missed", POSITIVE, "-", names[1], names[0]), ("alarmed", NEGATIVE, "--", names[0], names[1]))
        for (key, colour, dash, whose, called), at in zip(sides, errors, strict=True):
            label = f"{whose}, called {called}"
            axes.plot(curve["reviewed"], curve[key], color=colour, linestyle=dash, linewidth=1.8, label=label)
            if reviewed is not None and at is not None:
                axes.plot(
                    [reviewed], [at], "o", markersize=9, markerfacecolor="white", markeredgecolor=colour,
                    markeredgewidth=2, clip_on=False, zorder=3,
                )  # fmt: skip
        largest = max([*curve["missed"], *curve["alarmed"], *(at for at in errors if at is not None), promised or 0.0])
        if promised is not None:
            axes.axhline(promised, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
            axes.text(1.0, promised + 0.015 * (largest or 1), "promised", color=MUTED, fontsize=8.5, ha="right")
        axes.set(xlim=(0, 1), ylim=(0, max(1.1 * largest, 0.01)), xlabel="Left to a person", ylabel="Decided wrongly")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="upper right")
        return as_svg(figure, "review")


def decision_curve(curve: Mapping[str, Any], threshold: float) -> str:
    """Net benefit over the threshold, beside calling all images positive and none; the model's own threshold marked."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SQUARE, layout="constrained")
        axes = figure.subplots()
        top = max(curve["prevalence"], *curve["model"])
        axes.set(xlim=(0, 1), ylim=(-0.15 * top, 1.1 * top), xlabel="Threshold", ylabel="Net benefit an image")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.plot(curve["threshold"], curve["all"], color=POSITIVE, linewidth=1.4, linestyle="--", label="all called")
        axes.plot(curve["threshold"], curve["model"], color=ACCENT, linewidth=2, label="this model")
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=":", label=f"its threshold, {threshold:.3f}")
        axes.legend(loc="upper right")
        return as_svg(figure, "decision-curve")


def monitored(monitor: str) -> str:
    """A column of the history as words: 'ROC-AUC on validation'."""
    name = monitor.removeprefix("val_")
    return f"{METRIC_NAMES.get('roc_auc' if name == 'auc' else name, name)} on validation"


def learning_curves(history: Sequence[Mapping[str, Any]], kept: int | None, monitor: str = "val_auc") -> str:
    """Losses and, beside them, the validation metric that chooses the epoch, over epochs."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=WIDE, layout="constrained")
        left, right = figure.subplots(1, 2)
        _series(left, history, "train_loss", "training", MUTED, "--")
        _series(left, history, "val_loss", "validation", ACCENT, "-")
        left.set_ylabel("Loss")
        _series(right, history, monitor, monitored(monitor), ACCENT, "-")
        right.set_ylabel(monitored(monitor).removesuffix(" on validation"))
        for axes in (left, right):
            axes.set_xlabel("Epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if kept is not None:
                axes.axvline(kept, color=POSITIVE, linewidth=1, linestyle=(0, (4, 3)), label="kept")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="best")
        return as_svg(figure, "learning")


def forest(rows: Sequence[Mapping[str, Any]], label: str, is_corrected: bool) -> str:
    """A line a row, the first on top: `value` with `low` and `high`, `true`, where corrected `called`; all in 0..1."""
    height = 0.9 + 0.2 * max(4, len(rows))  # inches
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE[0], height), layout="constrained")
        axes = figure.subplots()
        at = np.arange(len(rows))
        value, low, high = (np.array([row[key] for row in rows]) for key in ("value", "low", "high"))
        axes.hlines(at, low, high, color="#a9c4dc", linewidth=5)
        axes.plot(value, at, "|", color=ACCENT, markersize=10, markeredgewidth=2.2, label=label)
        if is_corrected:
            axes.plot([row["called"] for row in rows], at, "x", color=MUTED, markersize=5, label="share called")
        true: dict[str, Any] = {"color": POSITIVE, "markerfacecolor": "none", "markersize": 6, "label": "true share"}
        axes.plot([row["true"] for row in rows], at, "D", clip_on=False, **true)
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
        axes.set_yticks(at, [shortened(str(row["name"])) for row in rows], color=INK)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.legend(loc="outside upper right", ncols=3)
        return as_svg(figure, "forest")


def shortened(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-23:]}"


def _series(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, label: str, colour: str, dash: str) -> None:
    rows = [(row["epoch"], row[key]) for row in history if _is_number(row.get(key))]
    if rows:
        axes.plot(
            *zip(*rows, strict=True), color=colour, linestyle=dash, linewidth=1.8, marker="o", markersize=3, label=label
        )


def unit_square(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SQUARE, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=x_label, ylabel=y_label, aspect="equal")
    ticks = np.linspace(0, 1, 6)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure, axes


def _point(axes: Axes, x: float, y: float, label: str, at: tuple[float, float]) -> None:
    axes.annotate(
        label,
        (x, y),
        xytext=(at[0], max(at[1], 0.03)),
        color=POSITIVE,
        arrowprops={"arrowstyle": "-", "color": POSITIVE, "linewidth": 0.8, "shrinkB": 5},
    )
    axes.plot(
        [x], [y], "o", markersize=9, markerfacecolor="white", markeredgecolor=POSITIVE, markeredgewidth=2, clip_on=False
    )


def _square_root_ticks(largest: float) -> tuple[list[float], list[str]]:
    """Round counts for an axis mirrored at 0 whose height is the square root of the count."""
    step = 10 ** np.floor(np.log10(largest))
    counts = sorted({int(count) for count in (step / 4, step, largest // step * step) if count >= 1})
    marks = [-count for count in reversed(counts)] + [0] + counts
    return [float(np.sign(mark) * np.sqrt(abs(mark))) for mark in marks], [f"{abs(mark):,}" for mark in marks]


def as_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element fit to stand in a page with others: ids of its own, no style of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1var(--sans)", text)
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        rf'<svg class="plot {name}" viewBox="\1" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
        count=1,
    )


def _is_number(value: object) -> bool:
    """Whether there is something to draw: histories leave out, or set to None or NaN, what was not measured."""
    return isinstance(value, int | float) and math.isfinite(value)
