"""What scores of images that a model did not learn from say of it: calibration, operating point, worth."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import UsageError
from pipeline.evaluation.abstention import in_band, refuse_unpromised, review_rule
from pipeline.evaluation.calibration import (
    Agreement,
    CalibratedOn,
    Calibration,
    Costs,
    agreement,
    calibrate,
)
from pipeline.evaluation.chance import against_chance
from pipeline.evaluation.definitions import binary_metrics
from pipeline.evaluation.report.curves import reliability_of
from pipeline.evaluation.subject_labels import rules_of
from pipeline.model.chance import AgainstChance
from pipeline.model.prediction import probabilities
from pipeline.model.review import ReviewRule
from pipeline.model.subject_rules import SubjectLabel, SubjectRules
from pipeline.sources.manifest import Manifest
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings
from pipeline.training.validation import Scores, measure

_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class HeldOut:
    """Scores of images by models that did not see them: of validation, or of all images by the models of folds.

    `looks`: validations among which each of those models was chosen. `on`: which of the two. `shipped`: what the
    weights to publish say of images that they did not see either, to be compared; None where there are none.
    """

    scores: Scores
    looks: int
    on: CalibratedOn = "validation"
    shipped: Scores | None = None


@dataclass(frozen=True)
class Judgement:
    """What a bundle says of its model's worth and decisions."""

    task: str
    scores: Scores
    rule: Calibration
    against_chance: AgainstChance
    agreement: Agreement | None  # of the shipped weights with the scores
    subjects: list[str | None]  # of each score
    subject_rules: SubjectRules | None = None
    review: ReviewRule | None = None

    @property
    def reviewed(self) -> float | None:
        """Share of the images in the review band, 0..1; None where there is none."""
        if self.review is None:
            return None
        return float(in_band(self.review.band(self._cut), self.rule.values).mean())

    @property
    def told_of_review(self) -> str:
        """The band, what it leaves to a person of these images, and its promise; empty without one."""
        if self.review is None:
            return ""
        band = self.review.band(self._cut)
        limits = "empty" if band is None else f"{band[0]:.4f} to {band[1]:.4f}"
        return f"review band {limits}, {self.reviewed or 0.0:.1%} of these images: {self.review}"

    @property
    def _cut(self) -> float:
        return 0.5 if self.rule.threshold is None else self.rule.threshold.value

    def fields(self) -> dict[str, Any]:
        """Fields of `BundleInfo`."""
        rule = self.rule
        return {
            "calibrated_on": rule.on,
            "calibration": rule.record() | self._further(),
            "temperature": rule.temperature.value,
            "threshold": self._cut,
            "review_band": None if self.review is None else self.review.band(self._cut),
            "review": self.review,
            "metrics": {"validation": _metrics(self.scores, self.task, rule)},
            "against_chance": self.against_chance,
            "subject_rules": self.subject_rules,
            "reference_scores": _reference(rule),
        }

    def _further(self) -> dict[str, Any]:
        """The calibration curve, for whoever compares with another laboratory's; how the shipped weights compare."""
        classes = probabilities(self.scores.logits, self.rule.temperature.value)
        curve = {"reliability": reliability_of(self.scores.targets, classes, self.task, self.subjects)}
        return curve | ({"shipped": asdict(self.agreement)} if self.agreement else {})


def judge(
    asked: HeldOut,
    settings: Settings,
    rows: LabelledRows,
    manifest: Manifest,
    *,
    target_sensitivity: float | None = None,
    costs: Costs | None = None,
    subject_label: SubjectLabel | None = None,
    review_error: float | None = None,
) -> Judgement:
    """Fit temperature, threshold and review band to the scores, and ask by subjects if these are better than chance."""
    scores, subjects = asked.scores, _subjects_of(asked.scores.image_ids, manifest)
    positive = [rows.classes.index(name) for name in rows.positive_classes]
    rule = calibrate(
        scores.logits, scores.targets, subjects, positive, on=asked.on, target_sensitivity=target_sensitivity,
        costs=costs, seed=settings.seed, called=manifest.info.units,
    )  # fmt: skip
    worth = against_chance(
        scores.targets, probabilities(scores.logits), subjects, task=settings.task, looks=asked.looks,
        called=manifest.info.units,
    )  # fmt: skip
    shipped = _agreement(rule, asked, subjects, manifest, positive)
    review = None if review_error is None else _review(rule, subjects, manifest, review_error, shipped)
    of_subjects = _subject_rules(rule, subjects, manifest, subject_label)
    return Judgement(settings.task, scores, rule, worth, shipped, subjects, of_subjects, review)


def _subject_rules(
    rule: Calibration, subjects: list[str | None], manifest: Manifest, label: SubjectLabel | None
) -> SubjectRules | None:
    if rule.diseased is None or rule.threshold is None:
        return None
    cut = rule.threshold.value
    return rules_of(
        rule.diseased, rule.values >= cut, subjects, manifest, label or SubjectLabel(), on=rule.on, threshold=cut,
        temperature=rule.temperature.value,
    )  # fmt: skip


def _review(
    rule: Calibration, subjects: list[str | None], manifest: Manifest, error: float, shipped: Agreement | None
) -> ReviewRule | None:
    if rule.diseased is None:
        return None
    why_not = "" if shipped is None or shipped.is_alike else "the shipped weights score otherwise"
    return review_rule(
        rule.diseased.astype(np.int64), rule.values, subjects, error, on=rule.on, called=manifest.info.units,
        why_not=why_not,
    )  # fmt: skip


def refuse_review(manifest: Manifest, rows: LabelledRows, error: float, *, has_folds: bool) -> None:
    """Raise UsageError where the images to calibrate on cannot hold an error for new subjects."""
    if manifest.info.split_rule == "images" and not has_folds:
        raise UsageError(
            f"--review-error {error:g}: subjects of validation are in train as well (split by image), so nothing is "
            "known of new ones; ingest with a split by subject, train with --folds, or leave it out"
        )
    table = pa.concat_tables([rows.train, rows.validation]) if has_folds else rows.validation
    positive = [rows.classes.index(name) for name in rows.positive_classes]
    labels = np.isin(table["target"].to_numpy(), positive).astype(np.int64)
    more = "" if has_folds else ", --folds counts those of train too"
    refuse_unpromised(labels, _subjects_of(table["image_id"], manifest), error, manifest.info.units, more=more)


def _agreement(
    rule: Calibration, asked: HeldOut, subjects: list[str | None], manifest: Manifest, positive: Sequence[int]
) -> Agreement | None:
    if asked.shipped is None or not len(asked.shipped.image_ids):
        return None
    return agreement(rule, asked.shipped.logits, _subjects_of(asked.shipped.image_ids, manifest), subjects, positive)


def _subjects_of(image_ids: Any, manifest: Manifest) -> list[str | None]:
    """The subject of each image, None where the manifest knows none."""
    ids = manifest.table["image_id"].combine_chunks()
    rows = pc.index_in(pa.array(image_ids, pa.int64()), ids)
    found: list[str | None] = manifest.table["subject_id"].take(rows).to_pylist()
    return found


def _metrics(scores: Scores, task: str, rule: Calibration) -> dict[str, float | None]:
    """Validation metrics at the published operating point; null where undefined."""
    found = {name.removeprefix("val_"): value for name, value in measure(scores, task).items()}
    found["roc_auc"] = found.pop("auc")
    if rule.diseased is not None and rule.threshold is not None:
        prefix = "" if task == "binary" else "disease_"
        at_threshold = binary_metrics(rule.diseased, rule.values, rule.threshold.value)
        found |= {prefix + name: value for name, value in at_threshold.items()}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def _reference(rule: Calibration) -> dict[str, Any]:
    values = rule.values
    return {
        "split": rule.on,
        "count": len(values),
        "mean": float(values.mean()),
        "quantiles": {f"{q:g}": float(np.quantile(values, q)) for q in _QUANTILES},
    }
