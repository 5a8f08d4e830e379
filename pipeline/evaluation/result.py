"""One split measured: figures, what speaks against them, where they come from; and what is kept of all that."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.audit import NO_AUDIT, Audit
from pipeline.evaluation.by_subject import SUBJECTS_CSV, by_subject, notes, table_of_subjects
from pipeline.evaluation.examples import Examples, examples_of
from pipeline.evaluation.external import beside
from pipeline.evaluation.folds import cross_validation
from pipeline.evaluation.intervals import Resampling, called_units, subject_codes
from pipeline.evaluation.multiplicity import groups_against_others, told
from pipeline.evaluation.ood import flagged_in
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import Glance
from pipeline.evaluation.prevalence import predictive_values
from pipeline.evaluation.provenance import basis, caveats, data_facts, provenance
from pipeline.evaluation.reach import Chosen, reach
from pipeline.evaluation.recognized import NO_SKETCH, OWN, RECOGNIZED, Recognized, recognize, table_of_met
from pipeline.evaluation.report.card import render_card
from pipeline.evaluation.report.html import Kept, render_report
from pipeline.evaluation.shortcut import Shortcut, judge_colours
from pipeline.model.bundle import CARD, HISTORY, REPORT, Bundle, BundleInfo
from pipeline.model.signature import is_signed
from pipeline.model.subject_rules import SubjectRules
from pipeline.sources.manifest import Manifest
from pipeline.storage.filled_in import write_beside_edited
from pipeline.storage.parquet import to_parquet
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join

if TYPE_CHECKING:
    from pipeline.model.class_maps import ClassMaps  # onnx: not every process needs it

_NOT_IN_CARD = ("slices", "slice_intervals", "by_subject", "audit", "robustness", "slice_comparison")


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on one split of a manifest."""

    bundle: Bundle
    manifest: Manifest
    split: str
    outcomes: Outcomes
    threshold: Chosen
    metrics: dict[str, Any]  # of `evaluate_binary` or `evaluate_multiclass`, with `disease` where it applies
    notes: list[str]  # `caveats`
    facts: dict[str, str]  # `provenance`
    shortcut: Shortcut
    reach: dict[str, Any]  # of `reach`
    resampling: Resampling
    recognized: Recognized
    rules: SubjectRules | None  # of subjects
    audit: Audit = NO_AUDIT
    external: dict[str, Any] | None = None  # of `beside`; None: the images are not another laboratory's
    further: Mapping[str, Any] = field(default_factory=dict)  # more records by name, each None where there is none

    @property
    def ood(self) -> dict[str, Any] | None:
        """Images of the split unlike those of training, as `flagged_in` gives it."""
        return flagged_in(self.bundle.info.ood, self.outcomes.is_ood)

    @functools.cached_property
    def curves(self) -> dict[str, Any]:
        return self.outcomes.curves(self.resampling)

    @functools.cached_property
    def by_subject(self) -> dict[str, Any]:
        """Of `by_subject`. This and what follows takes seconds or reads files, and a comparison asks for none of it."""
        are_own = _rates_are_own(self.bundle, self.manifest, self.split, self.rules)
        cut = self.threshold.value
        return by_subject(self.outcomes, self.manifest, cut, self.rules, self.resampling, are_own=are_own)

    @functools.cached_property
    def slice_comparison(self) -> dict[str, Any] | None:
        """Of `groups_against_others`, and what is told of it."""
        return _compared(self.outcomes, self.threshold.value, self.resampling.seed, self.manifest.info.units)

    @functools.cached_property
    def cross_validation(self) -> dict[str, Any] | None:
        """Of `cross_validation`. Raises InputError where the bundle's table is not of these images."""
        return cross_validation(self.bundle, self.manifest, self.resampling)

    @property
    def warnings(self) -> list[str]:
        """All that a reader must know before trusting the figures."""
        return [*self._told, *self.cautions]

    @property
    def cautions(self) -> list[str]:
        """What the number of images and subjects speaks against the figures, also against those of disease or not."""
        of_disease = (self.metrics.get("disease") or {}).get("warnings", ())
        return list(dict.fromkeys([*self.metrics["warnings"], *of_disease]))

    @property
    def _told(self) -> list[str]:
        compared = self.slice_comparison or {"rows": []}
        worse = compared["told"] if any(row["is_worse"] for row in compared["rows"]) else []
        return [*self.notes, *self.shortcut.notes(), *self.audit.notes(), *worse, *notes(self.by_subject)]

    @property
    def _records(self) -> dict[str, Any]:
        """By their names in `metrics.json`, each None where there is nothing to tell."""
        return {
            "reach": self.reach,
            "training_images": self.recognized.record(),
            "shortcut": self.shortcut.record(),
            "audit": self.audit.record(),
            "robustness": self.audit.robustness(),
            "external": self.external,
            "ood": self.ood,
            "by_subject": self.by_subject,
            "slice_comparison": self.slice_comparison,
            "cross_validation": self.cross_validation,
            **self.further,
        }

    def record(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """`metrics.json`."""
        return {
            "split": self.split,
            "provenance": self.facts,
            **self.metrics,
            **self._records,
            "reliability": self.curves["reliability"],
            "warnings": self.warnings,
            "configuration": configuration,
            "rejected": len(self.outcomes.rejections),
            "remarks": self.outcomes.remarks,
        }

    def report(self, mistakes: int, stores: Stores) -> str:
        """The page, with so many of the worst mistakes."""
        info = self.bundle.info
        maps, no_map = _with_maps(self.bundle) if mistakes else (None, "")
        return render_report(
            title=f"{info.name}, {self.split} split" if self.external is None else f"{info.name}, elsewhere",
            metrics=self.metrics,
            curves=self.curves,
            history=_history(self.bundle),
            kept=kept_weights(info),
            mistakes=self.outcomes.mistakes(self.threshold.value, mistakes, stores, maps),
            no_map=no_map,
            provenance=self.facts,
            synthetic=info.synthetic or self.manifest.info.synthetic,
            warnings=self._told,
            examples=self._examples(stores),
            records=self._records,
            split=self.split,
            basis=basis(self.split, self.bundle, self.manifest, self.recognized),
        )

    def _examples(self, stores: Stores) -> list[Examples]:
        copies = self.audit.copies
        return [] if copies is None else examples_of(self.audit.examples, copies, self.bundle.info, stores)

    def save(self, out: str, record: Mapping[str, Any], report: str, stores: Stores) -> None:
        """Into the folder `out`: predictions, metrics, the page; where they apply, RECOGNIZED and SUBJECTS_CSV."""
        store = stores.of(out)
        if self.recognized.why_not:
            store.delete(join(out, RECOGNIZED))  # of an earlier model
        else:
            store.write(join(out, RECOGNIZED), table_of_met(self.outcomes).encode())
        if self.by_subject["why_not"]:
            store.delete(join(out, SUBJECTS_CSV))
        else:
            store.write(join(out, SUBJECTS_CSV), table_of_subjects(self.by_subject, self.rules).encode())
        store.write(join(out, "predictions.parquet"), to_parquet(self.outcomes.table(self.threshold.value)))
        store.write(join(out, "metrics.json"), json.dumps(record, indent=2, allow_nan=False).encode())
        store.write(join(out, "report.html"), report.encode())

    def keep_in_bundle(self, record: Mapping[str, Any], report: str) -> None:
        """Card, metrics and report into the bundle, when they are of its own test split."""
        info = self.bundle.info
        if self.split != "test" or info.manifest_digest != self.manifest.info.digest:
            return
        self.bundle.write(REPORT, report.encode())
        card = render_card(info, metrics=record, data=data_facts(self.manifest))
        write_beside_edited(join(self.bundle.uri, CARD), card, self.bundle.stores)
        if is_signed(self.bundle):
            print(f"{self.bundle.uri}: is signed, so its bundle.json stays without these figures; the card has them")
            return
        kept = {key: value for key, value in record.items() if key not in _NOT_IN_CARD}
        self.bundle.update(metrics={**info.metrics, "test": kept})


def evaluation(
    bundle: Bundle, manifest: Manifest, split: str, outcomes: Outcomes, threshold: Chosen, resampling: Resampling,
    *, glances: Sequence[Glance] = (), asked: int | None = None, prevalences: Sequence[float] = (),
    matched: Mapping[str, Any] | None = None, rules: SubjectRules | None = None, further: Mapping[str, Any] = {},
    audited: Audit = NO_AUDIT,
) -> Evaluation:  # fmt: skip
    """Measure what the model of `bundle` said of a split at an operating point.

    `glances` at training images, at most `asked` ones, tell what colour alone would reach; predictive values are given
    for each of `prevalences`. `matched`: which classes of another laboratory these images are of; its figures are told
    beside the model's own. `rules`: of subjects, where others than the bundle's hold.
    """
    metrics = outcomes.metrics(threshold.value, resampling, manifest.info.units)
    if disease := metrics if metrics["task"] == "binary" else metrics.get("disease"):
        sides = disease["metrics"]["sensitivity"], disease["metrics"]["specificity"]
        disease["predictive_values"] = predictive_values(*sides, prevalences)
        if disease.get("review"):
            disease["review"]["is_elsewhere"] = matched is not None
    why_not = _why_not_recognized(bundle, manifest, split)
    recognized = recognize(outcomes, why_not, threshold.value, resampling, manifest.info.units)
    told = caveats(split, bundle, manifest, outcomes, recognized)
    facts = provenance(bundle, manifest, threshold, resampling, recognized)
    own = metrics["metrics"]["balanced_accuracy"]
    shortcut = judge_colours(glances, asked, manifest, outcomes, own, resampling)
    reached = reach(bundle.info, manifest, split, outcomes, threshold)
    found = Evaluation(
        bundle, manifest, split, outcomes, threshold, metrics, told, facts, shortcut, reached, resampling, recognized,
        rules or bundle.info.subject_rules,
        audit=audited,
        further=further,
    )  # fmt: skip
    if matched is None:
        return found
    external = {**matched, **beside(bundle.info, outcomes, metrics, found.curves["reliability"])}
    return replace(found, external=external)


def _compared(outcomes: Outcomes, threshold: float, seed: int, units: str) -> dict[str, Any] | None:
    """All groups but subjects, of which each says nothing of others, and classes, which are no groups of a class."""
    columns = {name: values for name, values in outcomes.slices().items() if name not in ("subject", "class")}
    right = (outcomes.called(threshold) == outcomes.truth).astype(np.int64)
    codes, unit = subject_codes(outcomes.subjects, len(right))
    found = groups_against_others(right, outcomes.truth, codes, columns, seed, called_units(unit, units))
    return None if found is None else found | {"told": told(found)}


def _rates_are_own(bundle: Bundle, manifest: Manifest, split: str, rules: SubjectRules | None) -> bool:
    """Whether the rates of cells were found on images of the very split that is measured."""
    if rules is None or rules.rates is None:
        return False
    if rules != bundle.info.subject_rules:  # of a threshold chosen on this manifest's validation images
        return split == "validation"
    if bundle.info.manifest_digest != manifest.info.digest:
        return False
    return split == "validation" or (split == "train" and rules.rates.on == "out-of-fold")


def _with_maps(bundle: Bundle) -> tuple["ClassMaps | None", str]:
    """What makes maps; or none, and why not."""
    from pipeline.model.class_maps import ClassMaps

    maps = ClassMaps(bundle)
    why_not = maps.why_no_map()
    return (None, why_not) if why_not else (maps, "")


def _why_not_recognized(bundle: Bundle, manifest: Manifest, split: str) -> str:
    if split != "test" and bundle.info.manifest_digest == manifest.info.digest:
        return OWN
    return "" if bundle.has_sketch else NO_SKETCH


def kept_weights(info: BundleInfo) -> Kept | None:
    """Which epoch's weights the model has; None where training does not say."""
    epoch = info.training.get("best_epoch")
    if epoch is None:
        return None
    has_folds = bool(info.training.get("folds")) or info.calibrated_on == "out-of-fold"  # also if calibrated since
    return Kept(epoch, str(info.training.get("monitor", "val_auc")), is_last=has_folds)


def _history(bundle: Bundle) -> list[Mapping[str, Any]]:
    """Per-epoch records that training left in the bundle; empty where it left none."""
    if bundle.stores.of(bundle.uri).head(join(bundle.uri, HISTORY)) is None:
        return []
    return list(json.loads(bundle.file(HISTORY)))
