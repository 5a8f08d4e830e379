"""The pictures of changed copies: what is left of a metric, curves over severities (SVG), and what copies look like."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.evaluation.names import METRIC_NAMES
from pipeline.evaluation.report.plots import ACCENT, INK, MUTED, POSITIVE, STYLE, as_svg

_CURVE = (4.4, 2.9)  # inches, one page column


def drawn(
    audit: Mapping[str, Any] | None,
    robustness: Mapping[str, Any] | None,
    examples: Sequence[Mapping[tuple[str, int], str]],
) -> dict[str, Any]:
    """What `audit.html.j2` shows beside the records. `examples`: data: URIs of copies, by kind and severity."""
    if not audit or audit["why_not"]:
        return {}
    metric = METRIC_NAMES[audit["metric"]]
    found: dict[str, Any] = {"left_over": left_over(audit["rows"], audit["chance"], metric)}
    found["hidden"] = [
        [(sources[row["shown"], 0], row["name"].split(",")[0]) for row in audit["rows"]] for sources in examples
    ]
    kinds = robustness["kinds"] if robustness else []
    found["curves"] = {
        kind["kind"]: severities(kind, robustness["unchanged"], robustness["chance"], metric)
        for kind in kinds
        if robustness
    }
    found["disturbed"] = {
        kind["kind"]: [
            (examples[0][kind["kind"], row["severity"]], f"severity {row['severity']}") for row in kind["levels"]
        ]
        for kind in kinds
        if examples
    }
    return found


def left_over(rows: Sequence[Mapping[str, Any]], chance: float, metric: str) -> str:
    """A row for each copy: its value, its interval, and how far it is from guessing."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.3, 0.6 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            colour = ACCENT if place == 0 else POSITIVE
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=5, alpha=0.3)
            axes.plot([row["value"]], [place], "o" if place == 0 else "D", color=colour, markersize=6, clip_on=False)
        axes.axvline(chance, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(chance, -0.75, "guessing", ha="center", color=MUTED, fontsize=8.5)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], color=INK)
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.9), xlabel=metric)
        axes.grid(axis="y", visible=False)
        return as_svg(figure, "audit")


def severities(kind: Mapping[str, Any], unchanged: Mapping[str, Any], chance: float, metric: str) -> str:
    """The metric over severities with its interval, and the share of images that is flagged."""
    levels = [unchanged, *kind["levels"]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_CURVE, layout="constrained")
        axes = figure.subplots()
        axes.axhline(chance, color="#9aa5b1", linewidth=1, linestyle=(0, (2, 3)))
        _curve(axes, levels, metric, ACCENT, "-", "o")
        flags = [row["ood"] for row in levels]
        if None not in flags:
            _curve(axes, flags, "Flagged as unlike", POSITIVE, "--", "s")
        axes.set(xlim=(-0.1, len(levels) - 0.9), ylim=(-0.02, 1.02))
        names = ["as it\nis", *(f"{row['severity']}\n({row['step']:g})" for row in kind["levels"])]
        axes.set_xticks(range(len(levels)), names, color=INK)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("Severity")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8.5, borderaxespad=0.1)
        return as_svg(figure, f"robustness-{kind['kind']}")


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], label: str, colour: str, dash: str, marker: str) -> None:
    places = range(len(rows))
    axes.plot(
        places, [row["value"] for row in rows], color=colour, linestyle=dash, marker=marker, markersize=4, label=label,
        clip_on=False,
    )  # fmt: skip
    if all(row["low"] is not None for row in rows):
        low, high = ([row[end] for row in rows] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)
