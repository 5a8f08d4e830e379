"""The evaluation report: one HTML file that holds its pictures and fetches nothing, on screen and on paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.names import MAIN_METRICS, METRIC_NAMES
from pipeline.evaluation.report import audit_pictures, class_plots, elsewhere, plots, subjects, words
from pipeline.evaluation.report.filling import data_uri, environment
from pipeline.evaluation.report.picture import Picture
from pipeline.model import overlay

_SLICE_ROWS = 15
_RIGHT = "Share rightly named"
_RECORDS = (
    "reach", "training_images", "shortcut", "ood", "audit", "robustness", "external", "by_subject",
    "slice_comparison", "cross_validation", "splits", "explanation",
)  # fmt: skip
_FIXED = {
    "names": METRIC_NAMES,
    "slice_rows": _SLICE_ROWS,
    "not_a_device": words.NOT_A_DEVICE,
    "synthetic_note": words.SYNTHETIC,
    "what_a_map_is": overlay.WHAT_IT_IS,
}


@dataclass(frozen=True)
class Kept:
    """The epoch whose weights a model has, and what it was chosen by: a metric of the history, or being the last."""

    epoch: int
    monitor: str = "val_auc"
    is_last: bool = False


def render_report(
    *,
    title: str,
    metrics: Mapping[str, Any],
    curves: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]] = (),
    kept: Kept | None = None,
    mistakes: Sequence[Mistake] = (),
    no_map: str = "",
    provenance: Mapping[str, Any],
    synthetic: bool,
    warnings: Sequence[str] = (),
    examples: Sequence[Mapping[tuple[str, int], NDArray[np.uint8]]] = (),
    records: Mapping[str, Any] = {},
    split: str = "test",
    basis: str = "",
) -> str:
    """The report as HTML text.

    `metrics` and `curves` are those of `evaluate_binary` and `binary_curves`, or of their multi-class siblings; a
    multi-class model with diseased classes may carry the binary view as `metrics["disease"]`, `curves["disease"]`.
    `no_map` says why mistakes have no map. `warnings` add to those in `metrics`. `basis` goes on
    after 'Measured on N images of M subjects'. `records`: what else was found, by its name in `metrics.json`; a section
    is left out where its record is missing or None. `examples`: changed copies of the audit. `kept` names the epoch of
    `history` whose weights the model has.
    """
    template = environment().get_template("report.html.j2")
    return template.render(
        title=title,
        metrics=metrics,
        disease=metrics.get("disease"),
        headline=words.headline(metrics),
        tiles=_tiles(metrics),
        grids=_grids(metrics),
        results=_result_pictures(metrics, curves),
        scores=_score_pictures(metrics, curves),
        predictive=_disease(metrics).get("predictive_values", []),
        training=_training_pictures(history, kept),
        mistakes=[_shown(mistake) for mistake in mistakes],
        no_map=no_map,
        provenance=provenance,
        synthetic=synthetic,
        **_sections(records, metrics, examples),
        basis=basis or f" ({split} split)",
        warnings=list(dict.fromkeys([*warnings, *metrics["warnings"], *_disease(metrics).get("warnings", ())])),
        hardest=_hardest,
        **_FIXED,
    )


def _sections(
    records: Mapping[str, Any],
    metrics: Mapping[str, Any],
    examples: Sequence[Mapping[tuple[str, int], NDArray[np.uint8]]],
) -> dict[str, Any]:
    """What the sections of `records` show."""
    found = {name: records.get(name) for name in _RECORDS}
    sources = [{key: data_uri(pixels) for key, pixels in some.items()} for some in examples]
    return found | {
        "reach": words.reach(found["reach"]) if found["reach"] else [],
        "recognized": found["training_images"] or {},
        "external": _external(found["external"], metrics),
        "subjects": subjects.section(found["by_subject"]),
        "audit_pictures": audit_pictures.drawn(found["audit"], found["robustness"], sources),
    }


def _shown(mistake: Mistake) -> dict[str, str]:
    """Sources and texts of a figure; without a map where there is none."""
    shown = {"source": data_uri(mistake.pixels), "caption": mistake.caption, "alt": mistake.alt}
    mapped = "" if mistake.mapped is None else data_uri(mistake.mapped)
    return shown | {"mapped": mapped, "map_alt": mistake.map_alt}


def _disease(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """The two-class view: the metrics themselves, or the disease view of many classes, or nothing."""
    return metrics if metrics["task"] == "binary" else metrics.get("disease") or {}


def _external(record: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the section shows; None where the images are the model's own."""
    if record is None:
        return None
    curves = {"internal": record["reliability"]["internal"], "external": record["reliability"]["external"]}
    known = {name: points for name, points in curves.items() if points}
    label = f"Share truly {words.disease_words(metrics['class_names'])[1]}" if metrics["task"] == "binary" else _RIGHT
    caption = (
        "Both calibration curves; each point is a group of equally many images. Below the diagonal the model claims "
        "more than is so."
    )
    missing = "" if len(known) == 2 else " This bundle, of an older version, keeps none of its own."
    picture = Picture(plots.reliability_of_two(known, label), "Calibration there and here", caption + missing)
    return {
        **record,
        "classes_told": elsewhere.about_classes(record),
        "threshold_told": elsewhere.about_threshold(record),
        "internal_told": elsewhere.internal(record),
        "picture": picture,
    }


def _hardest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of a slice table with the lowest accuracy; of a short table all, in its own order."""
    if len(rows) <= _SLICE_ROWS:
        return list(rows)
    return sorted(rows, key=lambda row: (row["accuracy"]["value"], -row["images"]))[:_SLICE_ROWS]


def _tiles(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The four figures at the top."""
    return [{"name": METRIC_NAMES[key], **metrics["metrics"][key]} for key in MAIN_METRICS[metrics["task"]]]


def _grids(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Two icon arrays of 100 images: of the diseased how many are found, of the healthy how many alarm."""
    view = _disease(metrics)
    if not view:
        return []
    negative, positive = words.disease_words(view["class_names"])
    found = view["metrics"]["sensitivity"]["value"]
    alarms = words.complement(view["metrics"]["specificity"])["value"]
    grids = []
    if found is not None:
        filled = _of_hundred(found)
        text = f"{words.per_hundred(found)} of 100 {positive} images are found"
        grids.append(
            {"filled": filled, "kind": "found", "text": text, "rest": f"{words.per_hundred(1 - found)} missed"}
        )
    if alarms is not None:
        filled = _of_hundred(alarms)
        text = f"{words.per_hundred(alarms)} of 100 {negative} images raise a false alarm"
        rest = f"{words.per_hundred(1 - alarms)} rightly cleared"
        grids.append({"filled": filled, "kind": "alarm", "text": text, "rest": rest})
    return grids


def _of_hundred(share: float) -> int:
    """All or none of a hundred circles only where it is so."""
    return round(100 * share) if share in (0.0, 1.0) else min(99, max(1, round(100 * share)))


def _result_pictures(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> list[Picture]:
    names = metrics["class_names"]
    is_many = len(names) > class_plots.MANY
    shares = "darker the larger their share of the row" if is_many else "with the share of each row"
    pictures = [
        Picture(
            class_plots.confusion(metrics["confusion"], names),
            "Confusion",
            f"Images by what they truly are (rows) and what the model says (columns), {shares}.",
            wide=len(names) > 5,
        )
    ]
    if curves.get("roc_by_class"):
        caption = "Each class against all others. A class seldom seen has a ragged curve."
        drawn = class_plots.roc_by_class(curves["roc_by_class"])
        pictures.append(Picture(drawn, "ROC by class", caption, wide=is_many))
    view = _disease(metrics)
    points = curves.get("disease") or curves
    if view and points.get("roc"):
        values = view["metrics"]
        alarms = words.complement(values["specificity"])["value"]
        operating = (alarms, values["sensitivity"]["value"]) if alarms is not None else None
        svg = plots.roc(points["roc"], operating, words.number(values["roc_auc"]["value"]))
        caption = "What every possible threshold would find, and at what price in false alarms."
        pictures.append(Picture(svg, "ROC" if view is metrics else "ROC of disease", caption))
    return pictures


def _score_pictures(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> list[Picture]:
    view = _disease(metrics)
    points = curves.get("disease") or curves
    pictures = []
    if view and points.get("histogram"):
        band = _band(view)
        names = words.disease_words(view["class_names"])
        svg = plots.score_histogram(points["histogram"], names, view["threshold"], band)
        caption = "Where the model puts the images of each side. Colour on the wrong side of the line is an error."
        pictures.append(Picture(svg, "Scores", caption, wide=True))
    if view and points.get("trade_off"):
        pictures.append(_trade_off(view, points["trade_off"]))
    if view and points.get("pr"):
        values = view["metrics"]
        operating = (values["sensitivity"]["value"], values["precision"]["value"])
        known = None if None in operating else operating
        svg = plots.precision_recall(points["pr"], known, words.number(values["pr_auc"]["value"]))
        caption = "How many alarms are right. Depends on how common the disease is in this split."
        pictures.append(Picture(svg, "Precision and recall", caption))
    if view and points.get("net_benefit"):
        svg = plots.decision_curve(points["net_benefit"], view["threshold"])
        share = words.per_hundred(points["net_benefit"]["prevalence"])
        caption = (
            "What acting on the model is worth: diseased images found, less false alarms weighed by the threshold. Of "
            "use where its line lies above both calling all images and calling none (0), where the disease is as "
            f"common as here, in {share} of 100 images."
        )
        pictures.append(Picture(svg, "Decision curve", caption))
    if curves.get("reliability"):
        positive = words.disease_words(metrics["class_names"])[1] if metrics["task"] == "binary" else None
        label = f"Share truly {positive}" if positive else _RIGHT
        method = metrics["intervals"]
        caption = (
            "On the diagonal, a probability of 80 % is right in 80 of 100 images. Each point is a group of equally "
            "many images: across, the probabilities that it spans; upright, the "
            f"{100 * method['confidence']:g} % interval, {method['method']}."
        )
        pictures.append(Picture(plots.reliability(curves["reliability"], label), "Calibration", caption))
    return pictures


def _band(view: Mapping[str, Any]) -> tuple[float, float] | None:
    review = view.get("review")
    return (review["low"], review["high"]) if review and review["low"] is not None else None


def _trade_off(view: Mapping[str, Any], curve: Mapping[str, Any]) -> Picture:
    """What it spares to leave images to a person."""
    review = view.get("review")
    errors = [review[key]["value"] if review else None for key in ("missed", "alarmed")]
    reviewed = review["share"]["value"] if review else None
    promised = review["promise"]["error"] if review and review["promise"] else None
    names = words.disease_words(view["class_names"])
    caption = (
        "Of the images of each side, the share that is decided wrongly where so many of all, those nearest to the "
        "threshold, are left to a person. Each subject counts alike."
    )
    caption += " The circles are the review band of this model, which need not lie on the lines." if review else ""
    return Picture(plots.trade_off(curve, names, reviewed, errors, promised), "Work against error", caption)


def _training_pictures(history: Sequence[Mapping[str, Any]], kept: Kept | None) -> list[Picture]:
    if len(history) < 2:
        return []
    monitor = kept.monitor if kept else "val_auc"
    caption = f"Loss on both splits and {plots.monitored(monitor)} by epoch."
    if kept is not None:
        why = "the last" if kept.is_last else f"the best by {plots.monitored(monitor)}"
        caption += f" The weights of epoch {kept.epoch}, {why}, were kept."
    svg = plots.learning_curves(history, kept.epoch if kept else None, monitor)
    return [Picture(svg, "Learning curves", caption, wide=True)]
