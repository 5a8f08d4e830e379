"""A transfer check as one HTML page: what differs in words, distributions of both, the images that differ most.

It holds its pictures and fetches nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected
from pipeline.evaluation.report.filling import data_uri, environment
from pipeline.evaluation.report.words import NOT_A_DEVICE, SYNTHETIC, number
from pipeline.evaluation.transfer import Inspected, Transfer, sentences
from pipeline.images.appearance import NAMES
from pipeline.images.load import Limits, load_image
from pipeline.model.drift import FEATURES, LEVELS, OOD_SCORE, Shift, Verdict, told
from pipeline.model.prediction import Prediction
from pipeline.sources.fetch import fetch_rows
from pipeline.storage.stores import Stores
from pipeline.storage.uris import short_name

SHOWN = 12
_SIDE = 176  # pixels of a thumbnail
_WIDTH, _ROW = 240, 15  # of a drawing
_KINDS = {Verdict.ALIKE: "", Verdict.DIFFERS: " synthetic", Verdict.TOO_DIFFERENT: " alert", Verdict.UNKNOWN: ""}


def render_transfer(found: Transfer, source: str, configuration: Mapping[str, Any], stores: Stores) -> str:
    """The page as HTML text; the images that differ most are read again."""
    headline, *lines, basis = sentences(found)
    return (
        environment()
        .get_template("transfer.html.j2")
        .render(
            source=source,
            model=f"{found.info.name} / {found.info.version}",
            headline=headline[0].upper() + headline[1:] + ".",
            kind=_KINDS[found.verdict],
            lines=[line.removeprefix("- ") for line in lines],
            basis=basis,
            rows=[_row(shift, found) for shift in found.shifts],
            figures=_figures(found, stores) if found.usable else [],
            is_synthetic=found.info.synthetic,
            synthetic_note=SYNTHETIC,
            configuration=configuration,
            not_a_device=NOT_A_DEVICE,
        )
    )


def _row(shift: Shift, found: Transfer) -> dict[str, Any]:
    home = found.reference.statistics[shift.name]
    values = found.values[shift.name]
    return {
        "title": shift.figure.title,
        "unit": shift.figure.unit,
        "drawing": strips(np.asarray(home.quantiles), values[np.isfinite(values)]),
        "at_home": f"{shift.at_home:.2f}",
        "here": f"{shift.here:.2f}" if np.isfinite(shift.here) else "–",
        "distance": f"{shift.distance:.1f}" if shift.is_told else "–",
        "limit": f"{shift.limit:.1f}",
        "is_beyond": shift.is_beyond,
        "said": told(shift, found.info.unit) if shift.is_beyond or not shift.is_told else "within the limit",
    }


def strips(home: NDArray[np.floating], here: NDArray[np.floating]) -> str:
    """SVG: of two sets the range of 9 in 10 images as a line, of every other one as a bar, the median as a tick."""
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    sets = [np.interp(levels, LEVELS, home)] + ([np.quantile(here, levels)] if len(here) else [])
    low, high = min(values[0] for values in sets), max(values[-1] for values in sets)
    scale = (_WIDTH - 4) / max(float(high - low), 1e-9)
    parts = []
    for number_, (values, colour) in enumerate(zip(sets, ("#5b6672", "#d55e00"), strict=False)):
        x = [2 + (float(value) - float(low)) * scale for value in values]
        y = _ROW * number_ + _ROW / 2
        parts.append(
            f'<line x1="{x[0]:.1f}" x2="{x[4]:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="1.5"/>'
            f'<rect x="{x[1]:.1f}" y="{y - 4}" width="{max(1.0, x[3] - x[1]):.1f}" height="8" fill="{colour}" '
            f'fill-opacity=".45"/><line x1="{x[2]:.1f}" x2="{x[2]:.1f}" y1="{y - 5}" y2="{y + 5}" stroke="{colour}" '
            'stroke-width="2"/>'
        )
    size = f'width="{_WIDTH}" height="{2 * _ROW}" viewBox="0 0 {_WIDTH} {2 * _ROW}"'
    return f'<svg {size} role="img" aria-label="at home above, here below">{"".join(parts)}</svg>'


def most_different(found: Transfer, count: int = SHOWN) -> list[tuple[Inspected, str]]:
    """The images farthest from those of training, by their features, else by their looks; and why, in words."""
    names = [name for name in (*NAMES, OOD_SCORE) if name in found.reference.statistics]
    known = [found.reference.statistics[name] for name in names]
    away = np.stack(
        [(found.values[name] - item.middle) / item.spread for name, item in zip(names, known, strict=True)], axis=1
    )  # (N, statistics), in spreads
    scores = found.values[OOD_SCORE]
    by = scores if np.isfinite(scores).any() else np.nanmean(np.square(away), axis=1)
    order = np.argsort(-np.nan_to_num(by, nan=-np.inf), kind="stable")[:count]
    return [(found.usable[row], _why(found.predictions[row], names, away[row])) for row in order.tolist()]


def _why(said: Prediction, names: Sequence[str], away: NDArray[np.floating]) -> str:
    titles = dict(zip(NAMES, _TITLES, strict=True))
    looks = [(name, float(value)) for name, value in zip(names, away, strict=True) if name in titles]
    looks = sorted((pair for pair in looks if np.isfinite(pair[1])), key=lambda pair: -abs(pair[1]))[:2]
    words = ", ".join(f"{titles[name]} {value:+.1f}" for name, value in looks)
    distance = "" if said.ood_score is None else f"{FEATURES.title} {number(said.ood_score, 2)}"
    return "; ".join(filter(None, (distance, words and f"{words} spreads")))


_TITLES = ("brightness", "red", "yellow", "colour", "bare ground", "sharpness", "grain", "size")


def _figures(found: Transfer, stores: Stores) -> list[dict[str, Any]]:
    shown = most_different(found)
    wanted = sorted((item.row for item, _ in shown), key=lambda row: row.uri)  # one pass an archive
    pictures: dict[int, str] = {}
    for fetched in fetch_rows(wanted, stores, Limits()):
        try:
            if fetched.data is not None:
                pixels = load_image(fetched.data, _SIDE, bit_depth=found.info.bit_depth).pixels
                pictures[fetched.row.image_id] = data_uri(pixels)
        except ImageRejected:  # replaced since it was measured
            continue
    return [
        {
            "source": pictures.get(item.row.image_id),
            "why": why,
            "name": short_name(str(item.row.member or item.row.uri)),
        }
        for item, why in shown
    ]
