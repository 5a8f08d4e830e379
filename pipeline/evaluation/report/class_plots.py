"""Figures of a model's classes, few or dozens: how they are taken for each other, and the ROC of each."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from pipeline.evaluation.report.plots import ACCENT, DASHES, INK, MUTED, STYLE, as_svg, shortened, unit_square

MANY = 8  # classes that one picture can tell apart by their lines
CLASS_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b6672", "#1b2430")
SHADES = LinearSegmentedColormap.from_list("share", ["#ffffff", "#cfe0ef", "#6fa3cc", "#0f4c81"])
_COLUMNS, _SIDE = 5, 1.75  # small pictures in a row; inches
_DIAGONAL: dict[str, Any] = {"color": "#9aa5b1", "linewidth": 1, "linestyle": (0, (2, 3))}


def roc_by_class(curves: Mapping[str, Mapping[str, Any] | None]) -> str:
    """One-vs-rest ROC of every class that can be drawn; of more than MANY in a small picture each."""
    drawn = {name: curve for name, curve in curves.items() if curve}
    with mpl.rc_context(STYLE):
        if len(drawn) > MANY:
            return _small_rocs(drawn)
        figure, axes = unit_square("False alarms (1 − specificity)", "Sensitivity")
        axes.plot([0, 1], [0, 1], **_DIAGONAL)
        lines = []
        for k, (name, curve) in enumerate(drawn.items()):
            style: dict[str, Any] = {"color": CLASS_COLOURS[k], "linestyle": DASHES[k % len(DASHES)]}
            label = f"{name}  {curve['auc']:.3f}"
            lines += axes.plot(curve["fpr"], curve["tpr"], linewidth=1.8, label=label, clip_on=False, **style)
        # named one by one: by itself a legend leaves out what begins with an underscore
        names, title = [str(line.get_label()) for line in lines], "AUC, each class against the rest"
        axes.legend(lines, names, loc="lower right", title=title, title_fontsize=8.5)
        return as_svg(figure, "roc-classes")


def _small_rocs(drawn: Mapping[str, Mapping[str, Any]]) -> str:
    rows = -(-len(drawn) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _SIDE, rows * (_SIDE + 0.25) + 0.3), layout="constrained")
    places = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, curve) in zip(places, drawn.items(), strict=False):
        axes.plot([0, 1], [0, 1], **_DIAGONAL)
        axes.plot(curve["fpr"], curve["tpr"], color=ACCENT, linewidth=1.6, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 1], yticks=[0, 1])
        axes.set_xticks([0, 1], ["0", "100%"])
        axes.set_yticks([0, 1], ["0", "100%"])
        axes.set_title(f"{shortened(name.replace('_', ' '))}\n{curve['auc']:.3f}", fontsize=8.5, color=INK)
    for axes in places[len(drawn) :]:
        axes.set_visible(False)
    figure.supxlabel("False alarms (1 − specificity)", fontsize=9.5, color=MUTED)
    figure.supylabel("Sensitivity", fontsize=9.5, color=MUTED)
    return as_svg(figure, "roc-many")


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Counts, darker the larger their share of the row, which is written below each; of more than MANY classes no 0 and
    no share is written.
    """
    counts = np.asarray(matrix, np.int64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    is_many = len(names) > MANY
    side = 1.8 + 0.42 * len(names) if is_many else max(4.2, 1.0 + 0.72 * len(names))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(side + 0.2, side - 0.2), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1.15)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        slanted = len(names) > 2 and max(map(len, names)) > 5
        slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        shown = [_label(name, is_many) for name in names]
        axes.set_xticks(range(len(names)), shown, color=INK, **(slant | ({"rotation": 60} if is_many else {})))
        axes.set_yticks(range(len(names)), shown, color=INK)
        axes.set_xlabel("The model says")
        axes.set_ylabel("Truly")
        axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#eef1f4" if is_many else "white", linewidth=1 if is_many else 3)
        axes.tick_params(which="minor", length=0)
        size = 16 if len(names) == 2 else 12 if len(names) < 6 else 8.5 if is_many else 7
        for (row, column), count in np.ndenumerate(counts):
            ink: dict[str, Any] = {"ha": "center", "color": "white" if shares[row, column] > 0.7 else INK}
            if is_many:
                axes.text(column, row, f"{count:,}" if count else "", va="center", fontsize=size, **ink)
                continue
            axes.text(column, row - 0.04, f"{count:,}", va="bottom", fontsize=size, **ink)
            share = f"{shares[row, column]:.0%}" if totals[row, 0] else "–"
            axes.text(column, row + 0.09, share, va="top", fontsize=size * 0.7, **ink)
        return as_svg(figure, "confusion")


def _label(name: str, is_many: bool) -> str:
    plain = name.replace("_", " ")
    if is_many:
        return shortened(plain)
    return plain.replace(" ", "\n", 1) if len(name) > 9 else name
