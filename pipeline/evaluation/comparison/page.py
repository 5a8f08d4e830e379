"""The page of a comparison: one HTML file that holds its pictures and fetches nothing."""

import math
from pathlib import Path
from typing import Any

from pipeline.evaluation.comparison import delong
from pipeline.evaluation.comparison import words as told
from pipeline.evaluation.comparison.result import Comparison, Judged, Pair, metrics_of
from pipeline.evaluation.outcomes import thumbnails
from pipeline.evaluation.report import words
from pipeline.evaluation.report.filling import data_uri, environment
from pipeline.storage.stores import Stores
from pipeline.storage.uris import short_name

TEMPLATES = Path(__file__).parent / "templates"


def render_comparison(found: Comparison, pictures: int, stores: Stores) -> str:
    """The page as HTML; of the images that models disagree on, `pictures` in all, shared out over the pairs."""
    one = found.evaluations[0]
    method = one.metrics["intervals"]
    page = environment(folders=[TEMPLATES]).get_template("comparison.html.j2")
    return page.render(
        title=f"{' / '.join(found.letters)} on the {one.split} split",
        found=found,
        one=one,
        method=method,
        percent=words.level(method["confidence"]),
        units=found.units,
        headline=told.headline(found),
        several=told.several(found),
        models=_models(found),
        metrics=[(told.metric_name(name), _rows(found, name)) for name in metrics_of(one)],
        disagreements=[told.disagreement(found, pair) for pair in found.pairs],
        galleries=_galleries(found, pictures, stores),
        recognized=told.recognized(found),
        synthetic=any(of.bundle.info.synthetic or of.manifest.info.synthetic for of in found.evaluations),
        synthetic_note=words.SYNTHETIC,
        not_a_device=words.NOT_A_DEVICE,
    )


def _models(found: Comparison) -> list[dict[str, Any]]:
    every = zip(found.letters, found.evaluations, found.speeds, strict=True)
    return [
        {
            "letter": letter,
            "name": of.bundle.info.name,
            "version": of.bundle.info.version,
            "architecture": of.bundle.info.architecture,
            "size": of.bundle.info.input_size,
            "threshold": of.threshold.value if of.bundle.info.positive_classes else None,
            "images_per_s": f"{speed.images_per_s:,.0f}",
            "p95_ms": f"{speed.p95_ms:.1f}",
            "megabytes": f"{speed.graph_bytes / 1e6:.1f}",
            "identity": of.bundle.info.identity()[:12],
        }
        for letter, of, speed in every
    ]


def _rows(found: Comparison, name: str) -> dict[str, Any]:
    """One metric: each model with limits, then each difference with a bar of its limits."""
    widest = [
        abs(limit)
        for pair in found.pairs
        for limit in (pair.differences[name].difference.low, pair.differences[name].difference.high)
        if not math.isnan(limit)
    ]
    reach = max([*widest, 1e-6])
    figures = [
        {"letter": letter, **metrics_of(of)[name]} for letter, of in zip(found.letters, found.evaluations, strict=True)
    ]
    return {
        "figures": figures,
        "pairs": [_difference(found, pair, pair.differences[name], reach) for pair in found.pairs],
    }


def _difference(found: Comparison, pair: Pair, judged: Judged, reach: float) -> dict[str, Any]:
    of = judged.difference
    known = not math.isnan(of.low)

    def place(value: float) -> float:
        return 50 + 48 * value / reach

    return {
        "which": f"{found.letters[pair.first]} − {found.letters[pair.second]}",
        "value": told.signed(of.value),
        "limits": told.limits(judged),
        "verdict": told.verdict(judged, found.units),
        "is_real": judged.is_real,
        "test": of.test if of.test == delong.METHOD else "",
        "bar": {"low": place(of.low), "high": place(of.high), "value": place(of.value)} if known else None,
    }


def _galleries(found: Comparison, pictures: int, stores: Stores) -> list[tuple[str, list[tuple[str, str]]]]:
    """Title and (data URI, caption) of the worst images of each direction of each pair."""
    asked = [
        (pair, first, second, rows)
        for pair in found.pairs
        for first, second, rows in (
            (pair.first, pair.second, pair.only_first),
            (pair.second, pair.first, pair.only_second),
        )
        if len(rows)
    ]
    share = max(1, pictures // len(asked)) if asked and pictures else 0
    scored = found.evaluations[0].outcomes.scored
    wanted = {k: scored[k].row for _, _, _, rows in asked for k in rows[:share].tolist()}
    seen = thumbnails(wanted.values(), found.evaluations[0].bundle.info.bit_depth, stores) if wanted else {}
    galleries = []
    for _, first, second, rows in asked:
        shown = [
            (data_uri(seen[wanted[k].image_id]), _caption(found, second, k))
            for k in rows[:share].tolist()
            if wanted[k].image_id in seen
        ]
        title = f"{found.letters[first]} right, {found.letters[second]} wrong: {len(rows):,} images"
        if shown:
            galleries.append((title, shown))
    return galleries


def _caption(found: Comparison, wrong: int, k: int) -> str:
    of = found.evaluations[wrong]
    row = of.outcomes.scored[k].row
    said = of.outcomes.told(k, of.outcomes.called(of.threshold.value), of.threshold.value)
    return f"{said}; {short_name(str(row.member or row.uri))}"
