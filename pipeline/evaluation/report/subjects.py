"""Subjects in words and as a picture: from the record of `evaluation.by_subject` to what page and output show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.report import plots
from pipeline.evaluation.report.picture import Picture
from pipeline.evaluation.report.words import with_interval
from pipeline.model.subject_rules import percent

SHOWN = 40  # subjects of the page; the CSV table has all


@dataclass(frozen=True)
class Section:
    """What the page says of subjects."""

    words: list[str]  # paragraphs
    how_to_read: str
    pictures: list[Picture]
    rows: Sequence[Mapping[str, Any]]
    has_review: bool
    has_shares: bool
    has_probabilities: bool
    has_labels: bool


def section(record: Mapping[str, Any] | None) -> Section | None:
    """None where nothing can be said of subjects."""
    if not record or record["why_not"]:
        return None
    rows = [_shown(row) for row in record["rows"][:SHOWN]]
    more = len(record["rows"]) - len(rows)
    left_out = [f"The {len(rows)} most suspicious of {len(record['rows']):,} are shown; subjects.csv has all."]
    return Section(
        words=[" ".join(told) for told in (_overview(record), record["detection"], _as_a_whole(record)) if told],
        how_to_read=" ".join([*_how_to_read(record), *(left_out if more else [])]),
        pictures=[_forest(rows, record)],
        rows=rows,
        has_review=any(row["to_review"] for row in rows),
        has_shares=any(row["corrected"] is not None for row in rows),
        has_probabilities=any(row["probability"] is not None for row in rows),
        has_labels=any(row["is_positive"] is not None for row in rows),
    )


def subjects_in_words(record: Mapping[str, Any]) -> list[str]:
    """What was found of subjects, in a few sentences; none where nothing can be said."""
    if record["why_not"]:
        return []
    return [*_overview(record), *record["detection"], *_as_a_whole(record)]


def _overview(record: Mapping[str, Any]) -> list[str]:
    called, cells = (sum(row[name] for row in record["rows"]) for name in ("called_positive", "cells"))
    first = (
        f"Subject by subject: {len(record['rows']):,} subjects with {record['median_cells']:,} cells in the median, of "
        f"all cells {percent(called / cells)} called positive."
    )
    return [first, *_corrected(record)]


def _corrected(record: Mapping[str, Any]) -> list[str]:
    if record["no_rates"]:
        return [f"The shares are not corrected: {record['no_rates']}."]
    rates, covered = record["rates"], record["coverage"]
    found, alarms = rates["found"], rates["alarms"]
    known = (
        f"Corrected for what the model misses and alarms at among {rates['on']} cells (sensitivity "
        f"{with_interval(_named(found))} over {found['subjects']} subjects, false alarms "
        f"{with_interval(_named(alarms))} over {alarms['subjects']})"
    )
    if covered is None:
        return [f"{known}. {record.get('coverage_note') or ''}".strip()]
    return [
        f"{known}, the {100 * record['confidence']:g} % interval of the share holds the true share in "
        f"{covered['covered']} of {covered['subjects']} subjects."
    ]


def _named(rate: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": rate["mean"], "low": rate["low"], "high": rate["high"]}


def _as_a_whole(record: Mapping[str, Any]) -> list[str]:
    """What is known of subjects being positive themselves."""
    told = [record["label_note"]] if record["label_note"] else []
    label, area = record["label"], record["roc_auc"]
    if record["no_roll_up"]:
        told.append(f"No probability that a subject is positive ({label}): {record['no_roll_up']}.")
    else:
        of = record["roll_up"]
        told.append(
            f"The probability that a subject is positive ({label}) is calibrated on {of['positives']} such subjects "
            f"and {of['negatives']} others, and holds where they are as common as there."
        )
    if area is None:
        told += _untold_apart(record)
    else:
        by = "the share called" if record["no_roll_up"] else "that probability"
        limits = "" if area["low"] is not None else " (no interval: too few subjects of a kind)"
        doubt = "" if area["low"] is None or area["low"] > 0.5 else ", so it is not shown to be better than guessing"
        told.append(
            f"ROC-AUC of the subjects by {by}, {area['positives']} positive and {area['negatives']} not"
            f"{_left_out(record)}: {with_interval(area)}{limits}{doubt}."
        )
    return told


def _untold_apart(record: Mapping[str, Any]) -> list[str]:
    """Why no figure says how well subjects are told apart; nothing where the note on the label has said it."""
    if record["label_note"]:
        return []
    so = "so how well they are told apart cannot be measured."
    if all(row["is_positive"] is None for row in record["rows"]):
        return [f"No subject measured has a value of {record['label_column']}, {so}"]
    return [f"The subjects measured are all of one kind{_left_out(record)}, {so}"]


def _left_out(record: Mapping[str, Any]) -> str:
    unknown = sum(row["is_positive"] is None for row in record["rows"])
    return f" ({unknown:,} without a value of {record['label_column']} left out)" if unknown else ""


def _how_to_read(record: Mapping[str, Any]) -> list[str]:
    told = [
        "Share called: with Wilson's interval, cells of a subject taken as independent. True share: of the cells that "
        "were scored."
    ]
    if not record["no_rates"]:
        told.append(
            "Share corrected: Rogan and Gladen's estimate; its interval is of the share in the subject, allows for "
            "few cells, for rates known from few subjects, and for sensitivity and false alarms that differ between "
            "subjects, each on its own. It does not know of cells that were picked, or of another laboratory."
        )
    return told


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    kind = {True: "positive", False: "not", None: ""}[row["is_positive"]]
    return {**row, "true_share": percent(row["true"]), "kind": kind}


def _forest(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> Picture:
    is_corrected = not record["no_rates"]
    drawn = [
        {
            "name": row["subject_id"],
            **(row["corrected"] if is_corrected else row["observed"]),
            "true": row["true"],
            "called": row["observed"]["value"],
        }
        for row in rows
    ]
    what = "corrected share of positive cells" if is_corrected else "share of cells called positive"
    caption = (
        f"A line a subject: {what} with its {100 * record['confidence']:g} % interval, the true share of the scored "
        "cells as a diamond" + (", the share called as a cross." if is_corrected else ".")
    )
    return Picture(plots.forest(drawn, what.capitalize(), is_corrected), "Subject by subject", caption, wide=True)
