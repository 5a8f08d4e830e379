"""What a search tried, best first: a table for a terminal, a CSV, and a picture."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.base.csv_text import csv_of
from pipeline.training.search_space import Choice, Range, Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Trial:
    """One set of values and how far it came. `history` has a row an epoch; no proposal: the settings as given."""

    number: int
    proposal: Mapping[str, str]
    history: Sequence[Mapping[str, float]]
    ending: str  # finished, stopped (others were ahead), failed or unfinished

    @property
    def failed(self) -> bool:
        """Whether training with these values comes to no model, however well an epoch did before."""
        return self.ending.startswith("failed")

    def best(self, metric: str) -> float:
        """The highest value of any epoch; nan before the first."""
        return self._best_row(metric).get(metric, math.nan)

    def loss(self, metric: str) -> float:
        """On validation, in its best epoch; tells trials of the same metric apart."""
        return self._best_row(metric).get("val_loss", math.inf)

    def _best_row(self, metric: str) -> Mapping[str, float]:
        rows = [row for row in self.history if math.isfinite(row[metric])]
        return max(rows, key=lambda row: (row[metric], -row["val_loss"]), default={})


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Best first; then what failed, and what has no value."""

    def place(trial: Trial) -> tuple[bool, bool, float, float, int]:
        best = trial.best(metric)
        return trial.failed, math.isnan(best), 0.0 if math.isnan(best) else -best, trial.loss(metric), trial.number

    return sorted(trials, key=place)


def as_table(trials: Sequence[Trial], space: Space, metric: str, given: Mapping[str, str]) -> str:
    """Aligned columns, best first; `given` are the values of the settings as given, marked by a star."""
    header = ["trial", metric.replace("_", " "), "epochs", *space, ""]
    rows = [
        [
            str(trial.number),
            _value(trial.best(metric)),
            str(len(trial.history)),
            *_words(trial, space, given),
            trial.ending,
        ]
        for trial in ranked(trials, metric)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def as_csv(trials: Sequence[Trial], space: Space, metric: str) -> str:
    """The same, with the last row of every trial's history."""
    last = [trial.history[-1] if trial.history else {} for trial in ranked(trials, metric)]
    names = list(dict.fromkeys(name for row in last for name in row))
    lines: list[list[object]] = [
        ["trial", f"best_{metric}", "epochs", "ending", *space, *(f"last_{name}" for name in names)]
    ]
    for trial, row in zip(ranked(trials, metric), last, strict=True):
        best = trial.best(metric)
        told = ["" if math.isnan(best) else repr(best), len(trial.history), trial.ending]
        values = [trial.proposal.get(name, "") for name in space]
        lines.append([trial.number, *told, *values, *(row.get(name, "") for name in names)])
    return csv_of(lines)


def picture(trials: Sequence[Trial], space: Space, metric: str, title: str) -> bytes:
    """PNG: every trial's metric over its epochs, and its best value over each option that was searched."""
    import matplotlib as mpl

    with mpl.rc_context({"text.parse_math": False}):  # names may hold dollars
        return _drawn(trials, space, metric, title)


def _drawn(trials: Sequence[Trial], space: Space, metric: str, title: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = ranked(trials, metric)
    columns = 1 + len(space)
    figure = Figure(figsize=(3.6 * columns, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, *others = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for trial in reversed(order):
        style = {"color": "tab:red", "lw": 2.0, "zorder": 3} if trial is order[0] else {"color": "0.7", "lw": 1.0}
        epochs = [row["epoch"] for row in trial.history]
        curves.plot(epochs, [row[metric] for row in trial.history], marker=".", **style)
    curves.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    for axes, (name, values) in zip(others, space.items(), strict=True):
        axes.set_xlabel(name)
        _scatter(axes, order, name, values, metric)
    figure.suptitle(title, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _scatter(axes: "Axes", order: Sequence[Trial], name: str, values: Range | Choice, metric: str) -> None:
    known = [trial for trial in order if name in trial.proposal]
    if isinstance(values, Range):
        shown = (values.low, math.sqrt(values.low * values.high), values.high)
        axes.set_xscale("log")
        axes.set_xlim((values.low / values.high) ** 0.05 * values.low, (values.high / values.low) ** 0.05 * values.high)
        axes.set_xticks(shown, [f"{each:.2g}" for each in shown])
        axes.set_xticks([], minor=True)
        places = [float(trial.proposal[name]) for trial in known]
    else:
        axes.set_xticks(range(len(values.values)), values.values, rotation=20 if len(values.values) > 4 else 0)
        places = [float(values.values.index(trial.proposal[name])) for trial in known]
    for trial, place in zip(known, places, strict=True):
        is_best = trial is order[0]
        whole = "none" if trial.ending == "stopped" else "tab:red" if is_best else "tab:blue"
        axes.scatter(place, trial.best(metric), s=60 if is_best else 28, zorder=3 if is_best else 2,
                     facecolors=whole, edgecolors="tab:red" if is_best else "tab:blue")  # fmt: skip
    given = next((trial for trial in order if not trial.proposal), None)
    if given is not None and not math.isnan(given.best(metric)):
        axes.axhline(given.best(metric), color="0.5", lw=1.0, ls="--")


def _words(trial: Trial, space: Space, given: Mapping[str, str]) -> list[str]:
    return [trial.proposal[name] if name in trial.proposal else f"{given[name]}*" for name in space]


def _value(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
