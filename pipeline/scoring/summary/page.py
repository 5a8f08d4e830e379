"""A scoring run as one HTML page that holds its pictures and fetches nothing; the look is the evaluation report's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.report import plots, words
from pipeline.evaluation.report.filling import data_uri, environment
from pipeline.scoring.schemas import IS_OOD
from pipeline.scoring.summary import advice
from pipeline.scoring.summary.gallery import Thumbnail
from pipeline.scoring.summary.subjects import corrected_share, detection_of
from pipeline.scoring.summary.summary import BINS, REASONS, Summary, stages, throughput
from pipeline.sources.rows import place_of

_TEMPLATES = Path(__file__).parent / "templates"
_NO_PICTURES = Thumbnail(None, "pictures were left out")
_DECISIONS = ("negative", "review", "positive")


def render_page(summary: Summary, pictures: Mapping[int, Thumbnail]) -> str:
    """The page as HTML text. `pictures` by image id; an image without one is drawn as a placeholder."""
    run = summary.run
    return (
        environment(folders=[_TEMPLATES])
        .get_template("summary.html.j2")
        .render(
            run=run,
            counts=run.counts,
            headline=summary.headline(),
            drift_note=summary.drift_note,
            uncounted=summary.uncounted,
            tiles=_tiles(summary),
            decisions=_decisions(summary),
            classes=summary.classes,
            histogram=_histogram(summary),
            histogram_caption=_histogram_caption(summary),
            threshold=summary.threshold,
            highest=[_scored_card(row, pictures) for row in summary.highest],
            strangest=[_scored_card(row, pictures) for row in summary.strangest],
            borderline=[_scored_card(row, pictures) for row in summary.borderline],
            quarantined=[_rejected_card(row, pictures) for row in summary.quarantined],
            codes=[{**vars(item), "advice": advice.of_code(item.code)} for item in summary.codes],
            subjects=summary.subjects if summary.decides else [],
            subject_count=summary.subject_count,
            corrected=corrected_share if _has(summary, "share_corrected") else None,
            has_probability=_has(summary, "subject_probability"),
            detection=detection_of(summary),
            stages=stages(run.progress),
            throughput=throughput(run),
            reasons=REASONS,
            provenance=_provenance(summary),
            not_a_device=words.NOT_A_DEVICE,
        )
    )


def _has(summary: Summary, column: str) -> bool:
    return any(row.get(column) is not None for row in summary.subjects)


def _tiles(summary: Summary) -> list[tuple[str, str, str]]:
    counts = summary.run.counts
    tiles = [("Scored", f"{counts.scored:,}", _share(counts.scored, counts.listed, "listed"))]
    if summary.decides:
        tiles += [
            (name, f"{summary.count(key):,}", _share(summary.count(key), counts.scored, "scored"))
            for name, key in (("Positive", "positive"), ("To review", "review"))
        ]
    quarantined = counts.quarantined
    tried = counts.scored + quarantined
    return [*tiles, ("Quarantined", f"{quarantined:,}", _share(quarantined, tried, "tried"))]


def _share(part: int, whole: int, of: str) -> str:
    return f"{words.per_hundred(part / whole)} % of the {of}" if whole else f"none {of}"


def _decisions(summary: Summary) -> list[dict[str, Any]]:
    total = sum(summary.decisions.values())
    return [
        {
            "name": name,
            "rows": summary.count(name),
            "share": f"{words.per_hundred(summary.count(name) / total)} %",
        }
        for name in _DECISIONS
        if total
    ]


def _histogram(summary: Summary) -> str:
    edges = [k / BINS for k in range(BINS + 1)]
    label = "Probability of disease" if summary.decides else "Probability of the class named"
    return plots.probability_histogram(summary.histogram, edges, label, summary.threshold, summary.review_band)


def _histogram_caption(summary: Summary) -> str:
    text = f"All {summary.run.counts.scored:,} scored images in {BINS} equal steps of probability."
    if summary.decides:
        text += " The colour tells the side of the threshold."
    if summary.review_band:
        low, high = summary.review_band
        text += f" Shaded: the probabilities sent to review here, {low:.3f} to {high:.3f}."
    return text


def _scored_card(row: Mapping[str, Any], pictures: Mapping[int, Thumbnail]) -> dict[str, Any]:
    said = row["decision"] or row["class_name"]
    subject = f"subject {row['subject_id']}" if row["subject_id"] is not None else ""
    strange = "unlike the training images" if row.get(IS_OOD) else ""
    note = " · ".join(filter(None, (strange, subject)))
    kind = row["decision"] or "code"
    return _card(row, pictures, f"{words.number(row['probability'])} {said}", kind, note)


def _rejected_card(row: Mapping[str, Any], pictures: Mapping[int, Thumbnail]) -> dict[str, Any]:
    return _card(row, pictures, row["code"], "code", _shortened(row["message"] or "", 110))


def _card(
    row: Mapping[str, Any], pictures: Mapping[int, Thumbnail], title: str, kind: str, note: str
) -> dict[str, Any]:
    picture = pictures.get(row["image_id"], _NO_PICTURES)
    place = place_of(row["uri"], row["member"])
    archive = row["uri"].rsplit("/", 1)[-1] if row["member"] is not None else ""
    return {
        "source": data_uri(picture.pixels) if picture.pixels is not None else None,
        "reason": picture.reason,
        "title": title,
        "kind": kind,
        "name": _shortened(place.rsplit("/", 1)[-1], 60),
        "note": " · ".join(part for part in (note, f"in {archive}" if archive else "") if part),
        "place": f"{place} (image_id {row['image_id']})",
    }


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _provenance(summary: Summary) -> dict[str, Any]:
    run, model, sources = summary.run, summary.run.model, summary.run.request.sources
    more = f" and {len(sources) - 5} more" if len(sources) > 5 else ""
    return {
        "Run": run.run_id,
        "Output": summary.folder.uri,
        "Sources": ", ".join(sources[:5]) + more,
        "Model": f"{model.name} {model.version}",
        "Model lies in": model.uri,
        "Model identity (SHA-256)": model.sha256,
        "Threshold": model.threshold if summary.decides else None,
        **({"Review band": f"{model.review_band[0]:.4f} to {model.review_band[1]:.4f}"} if model.review_band else {}),
        **({"Without a person": str(model.review)} if model.review else {}),
        "Temperature": model.temperature,
        "Classes that count as positive": ", ".join(model.positive_classes),
        "Preprocessing digest": model.preprocessing_digest,
        "Layout of the source": run.layout,
        "Started": run.started_at,
        "Finished": run.finished_at,
        "Continued after an interruption": "yes" if run.continued else "no",
        "Bytes of images": f"{run.bytes:,}",
        "leukoray": run.leukoray_version,
        "Python": run.python,
        "Row schema": f"version {run.schema_version}",
    }
