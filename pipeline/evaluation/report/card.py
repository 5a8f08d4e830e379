"""MODEL_CARD.md, after Mitchell et al. 2019, 'Model Cards for Model Reporting' (arXiv:1810.03993).

Its head is what the Hugging Face Hub reads (`front_matter`).
"""

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.calibration import called_in, kept_of_parent, spread_in
from pipeline.evaluation.names import METRIC_NAMES
from pipeline.evaluation.report import words
from pipeline.evaluation.report.filling import environment
from pipeline.evaluation.report.front_matter import front_matter
from pipeline.model.bundle import BundleInfo
from pipeline.model.reference import described


def render_card(
    info: BundleInfo,
    *,
    metrics: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown.

    `metrics` is the dictionary of `evaluate_binary` or `evaluate_multiclass` on the test split, None before that.
    `data` names facts of the training data (source, layout, images, subjects) in the order to be shown.
    """
    return (
        environment(autoescape=False)
        .overlay(finalize=_finalized)
        .get_template("card.md.j2")
        .render(
            info=info,
            front=_Head(front_matter(info, metrics)),
            identity=info.identity(),
            spreads=_spreads(info.calibration),
            metrics=metrics,
            data=data or {},
            warnings=list(dict.fromkeys(metrics["warnings"])) if metrics else [],
            names=METRIC_NAMES,
            headline=_headline(metrics) if metrics else [],
            unlike=described(info.ood),
            reach=words.reach(metrics["reach"]) if metrics and "reach" in metrics else [],
            not_a_device=words.NOT_A_DEVICE,
            synthetic_note=words.SYNTHETIC,
        )
    )


class _Head(str):
    """The YAML that the card begins with, which is no Markdown."""


def _finalized(value: Any) -> Any:
    """What the template prints, its YAML head excepted: names of classes and folders bring no HTML."""
    return value if isinstance(value, _Head) or not isinstance(value, str) else words.unmarked(value)


def _headline(metrics: Mapping[str, Any]) -> list[str]:
    return [*words.headline(metrics), *words.recognized(metrics.get("training_images"), metrics["task"])]


def _spreads(calibration: Mapping[str, Any]) -> str:
    """How many images temperature and threshold rest on, with limits of the latter; empty where a bundle is silent."""
    if not calibration:
        return ""
    images, threshold = f" ({calibration['images']:,})", spread_in(calibration, "threshold")
    images += kept_of_parent(calibration)
    if threshold is None or threshold.low is None:
        return images
    limits = f"{words.number(threshold.low)} to {words.number(threshold.high)}"
    units, percent = f"{calibration['units']} {called_in(calibration)}", f"{100 * calibration['confidence']:g} %"
    return f"{images}; threshold {limits} over {units} ({percent}, percentile bootstrap)"
