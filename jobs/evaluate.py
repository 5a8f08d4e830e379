"""`leukoray evaluate`: measure a model on a split of a manifest; metrics, predictions, report. Several are compared."""

if __name__ == "__main__":  # ahead of imports that need the extra `train`: one that is missing is told in a sentence
    from jobs.cli import as_program

    as_program("evaluate")

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from pydantic import Field, field_validator

from jobs import lineage
from jobs.common import Clock, job, job_stores, refuse_unwritable, show_config
from jobs.config import LineageConfig, effective, positional
from jobs.elsewhere import labelled_elsewhere, record_of
from jobs.lineage_datasets import of_manifest, of_model
from jobs.record import Account, recorded
from pipeline.base.cluster import connected
from pipeline.base.errors import IncompleteError, UsageError
from pipeline.base.lineage import Dataset
from pipeline.evaluation import measured
from pipeline.evaluation.audit import NO_AUDIT, Audit, audit
from pipeline.evaluation.by_subject import refuse_contradictions, rules_here
from pipeline.evaluation.changes import Copies
from pipeline.evaluation.comparison import words as comparison_words
from pipeline.evaluation.comparison.page import render_comparison
from pipeline.evaluation.comparison.result import Comparison, refuse_incomparable
from pipeline.evaluation.comparison.run import compare_on
from pipeline.evaluation.explanation import FAILS, sentences
from pipeline.evaluation.intervals import Resampling, fewest_replicates
from pipeline.evaluation.map_checks import judge_maps
from pipeline.evaluation.names import METRIC_NAMES
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.own_files import refuse_foreign, refuse_foreign_comparison
from pipeline.evaluation.predict import Glance, predict_split
from pipeline.evaluation.reach import (
    refuse_without_sides,
    refuse_without_validation,
    review_here,
    threshold_here,
    threshold_of,
)
from pipeline.evaluation.remaining import border_colour, sample_of
from pipeline.evaluation.report import elsewhere, words
from pipeline.evaluation.report.subjects import subjects_in_words
from pipeline.evaluation.result import Evaluation, evaluation
from pipeline.evaluation.shortcut import images_to_learn_from
from pipeline.evaluation.shown import predict_shown
from pipeline.evaluation.study.write import write_study
from pipeline.images.unit import refuse_mismatch
from pipeline.ingest.matching import Matched
from pipeline.model.bundle import Bundle, BundleInfo
from pipeline.model.registry import resolve
from pipeline.sources.manifest import SPLITS, Manifest, ManifestRow, read_manifest
from pipeline.sources.pseudonyms import Names, names_of
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join


class EvaluateConfig(LineageConfig):
    """Measure a model on one split: metrics with intervals over subjects, predictions, an HTML report."""

    manifest: str = positional(description="manifest folder, local or s3://; with --external any labelled source")
    model: list[str] = Field(
        min_length=1, description="bundle or registry folder, local or s3://; several are compared with each other"
    )
    out: str = Field(
        "report", description="folder for metrics.json, predictions.parquet and report.html, or comparison.html"
    )
    split: str = Field("test", description="split to measure: train, validation or test")
    external: bool = Field(
        False, description="all labelled images of another laboratory, beside the model's own figures"
    )
    labels: str | None = Field(None, description="with --external: CSV or Parquet with labels, as of ingest --labels")
    classes: list[str] = Field(
        [], description="with --external: 'theirs=ours' pairs of class names, or YAML files as of ingest --classes"
    )
    target_sensitivity: float | None = Field(
        None, gt=0, le=1, description="choose the threshold on validation for at least this sensitivity"
    )
    review_error: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="choose the review band on validation for at most this share of either class decided wrongly",
    )
    prevalence: list[float] = Field(
        [0.01, 0.05, 0.2, 0.5], description="shares of diseased images, 0..1, to give predictive values for"
    )
    bit_depth: int | None = Field(
        None, ge=8, le=16, description="bits that count in 16-bit samples (default: as the model was trained)"
    )
    bootstrap: int = Field(1000, ge=100, description="resamplings for the intervals")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    seed: int = Field(0, ge=0, description="seed of the resampling")
    mistakes: int = Field(24, ge=0, le=200, description="how many of the worst mistakes to show")
    colour_images: int = Field(
        1000, ge=0, description="training images to read for what colour alone tells; 0: not checked"
    )
    audit: int = Field(
        300, ge=0, description="measured images to show in changed copies, for what the answers rest on; 0: none"
    )
    robustness: bool = Field(
        False, description="show these images with noise, blur, other light, stain and JPEG quality as well"
    )
    compare_splits: bool = Field(
        False, description="tell what a random split would promise: a probe under several ways to split (a minute)"
    )
    study: bool = Field(False, description="write study/ as well: CLAIM, TRIPOD+AI, STARD-AI, change control plan")
    map_images: int = Field(100, ge=0, description="images to judge class-activation maps on; 0: they are not judged")
    max_error_share: float = Field(0.05, ge=0, le=1, description="share of unreadable images above which to fail")
    workers: int | None = Field(None, ge=1, description="predictors side by side (default: one a core)")
    cpus_per_worker: float = Field(1.0, ge=1e-4, description="cores a worker holds")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs a worker holds; 0 predicts with ONNX Runtime")

    @field_validator("model", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        """A configuration file may give one as a plain value."""
        return [given] if isinstance(given, str) else given

    @property
    def of_sources(self) -> tuple[str, ...]:
        return (*super().of_sources, "manifest") if self.external else super().of_sources

    def record(self, names: Names | None = None) -> dict[str, Any]:
        """As kept with the figures: one model by its name alone."""
        kept = effective(self, names)
        return kept if len(self.model) > 1 else kept | {"model": self.model[0]}


_OF_ONE = ("review_error", "robustness", "prevalence", "audit", "map_images", "colour_images", "compare_splits")
EPILOG = """examples:
  leukoray evaluate out/demo/manifest --model out/demo/models --out out/demo/report
  leukoray evaluate /data/elsewhere --external --model out/models --classes 'blasts=positive' --out out/external
  leukoray evaluate s3://lab/manifest --model s3://lab/models/all --out s3://lab/report --target-sensitivity 0.95
  leukoray evaluate out/manifest --model out/models/leukoray/V1 out/models/leukoray/V2 --out out/comparison

Research software, not a medical device."""


def main(config: EvaluateConfig) -> None:
    clock, stores = Clock(), job_stores(config)
    if config.split not in SPLITS:
        raise UsageError(f"--split {config.split!r}: expected one of {', '.join(SPLITS)}")
    if unlikely := [share for share in config.prevalence if not 0 < share < 1]:
        raise UsageError(f"--prevalence {unlikely[0]:g}: must lie between 0 and 1")
    if (fewest := fewest_replicates(config.confidence)) > config.bootstrap:
        raise UsageError(f"--confidence {config.confidence:g}: its limits need --bootstrap {fewest:,} or more")
    _refuse_mixed(config)
    show_config(config, names_of(stores))
    with recorded("evaluate", config, stores) as kept:
        if len(config.model) > 1:
            compare(config, stores, clock, kept)
        else:
            _measure(config, stores, clock, kept)


def _measure(config: EvaluateConfig, stores: Stores, clock: Clock, kept: Account) -> None:
    """One model."""
    refuse_foreign(config.out, stores, study=config.study)
    published = resolve(config.model[0], stores).verify()
    manifest, matched = _images(config, published.info, stores)
    lineage.reads(lambda: _inputs(config, manifest, [published]))
    bundle = published.with_bit_depth(config.bit_depth)
    refuse_mismatch(bundle.info.unit, manifest.info.unit, manifest.uri)
    if note := bundle.depth_note(published.info.bit_depth):
        print(note)
    _refuse_choices(config, manifest, bundle.info, stores)
    out = absolute(config.out)
    refuse_unwritable(out)
    kept.begin(out, manifest=manifest.info.digest, model=bundle.info.identity())
    threshold, rules = threshold_of(bundle.info), bundle.info.subject_rules
    with connected(config.address, config.num_cpus, worker_logs=config.debug) as ray, measured.telling(out):
        if config.target_sensitivity is not None or config.review_error is not None:
            validation, _ = outcomes_of(ray, config, bundle, manifest, "validation", stores)
            if config.target_sensitivity is not None:
                threshold = threshold_here(validation, config.target_sensitivity, manifest.info.units)
                bundle = bundle.with_threshold(threshold.value)
                rules = rules_here(validation, manifest, threshold.value, rules)
            if config.review_error is not None:
                bundle = bundle.with_review(review_here(validation, config.review_error, manifest.info.units))
        learnt_from = images_to_learn_from(manifest, bundle.info, config.split, config.colour_images)
        outcomes, glances = outcomes_of(ray, config, bundle, manifest, config.split, stores, learnt_from)
        resampling = Resampling(config.bootstrap, config.confidence, config.seed)
        audited = _audit(ray, config, bundle, outcomes, threshold.value, resampling)
        splits = _splits(ray, config, bundle, manifest, stores, resampling)
        maps = _maps(ray, config, bundle, outcomes, threshold.value, stores)
        found = evaluation(
            bundle, manifest, config.split, outcomes, threshold, resampling, glances=glances,
            asked=config.colour_images, prevalences=config.prevalence,
            matched=None if matched is None else record_of(matched), rules=rules,
            further={"splits": splits, "explanation": maps}, audited=audited,
        )  # fmt: skip
        measured.finished(f"{bundle.info.name} {bundle.info.version}", found.metrics["metrics"])
    record, report = found.record(config.record(names_of(stores))), found.report(config.mistakes, stores)
    kept.keep(out, {"images": found.metrics["images"]}, manifest=manifest.info.digest, model=bundle.info.identity())
    found.save(out, record, report, stores)
    lineage.writes(lambda: [Dataset(out, rows=len(found.outcomes.scored))])
    if config.study:
        print(f"for a study: {write_study(out, Comparison([found], [], [], 0, resampling), stores)}")
    # its card tells of its own operating point and depth, and of the whole split
    if bundle.info.identity() == published.info.identity() and not _lost_too_many(config, found):
        found.keep_in_bundle(record, report)
    account(config, found, clock)


def _inputs(config: EvaluateConfig, manifest: Manifest, bundles: Sequence[Bundle]) -> list[Dataset]:
    """Of lineage. What is measured as another laboratory's may be a source, whose name may be hidden."""
    measured = of_manifest(manifest)
    if config.external:
        measured = replace(measured, uri=names_of(bundles[0].stores).path(measured.uri))
    return [measured, *map(of_model, bundles)]


def _refuse_mixed(config: EvaluateConfig) -> None:
    if config.external and config.split != "test":
        raise UsageError("--external measures all labelled images, of whatever split; leave --split out")
    if config.external and len(config.model) > 1:
        raise UsageError("--external puts one model's figures beside its own; give one --model")
    given = [name for name in _OF_ONE if name in config.model_fields_set and len(config.model) > 1]
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is told of one model; give one --model, or leave it out, "
            "of a --config file and the environment too"
        )
    if config.robustness and not config.audit:
        raise UsageError("--robustness shows the images of --audit, which is 0; leave one of the two out")
    if not config.external and (config.labels is not None or config.classes):
        raise UsageError("--labels and --classes are for --external; a manifest of its own has labels and classes")
    if config.study and len(config.model) > 1:
        raise UsageError("--study is of one model; of a version beside the best one `leukoray promote` writes it")


def _images(config: EvaluateConfig, info: BundleInfo, stores: Stores) -> tuple[Manifest, Matched | None]:
    if not config.external:
        return read_manifest(config.manifest, stores), None
    return labelled_elsewhere(config.manifest, info, stores, labels=config.labels, classes=config.classes)


def _audit(
    ray: Any, config: EvaluateConfig, bundle: Bundle, outcomes: Outcomes, threshold: float, resampling: Resampling
) -> Audit:
    """What is left of the figures on changed copies of a sample of the images."""
    rows = sample_of(outcomes, config.audit, config.seed)
    if not rows:
        return NO_AUDIT
    copies, clock = Copies(border_colour(outcomes), config.robustness), Clock()
    shown = predict_shown(
        ray, bundle, rows, copies, bundle.stores, workers=config.workers, cpus_per_worker=config.cpus_per_worker,
        gpus_per_worker=config.gpus_per_worker,
    )  # fmt: skip
    print(f"audit: {len(rows):,} images in {len(copies.keys)} copies each, {clock.seconds:.0f} s")
    return audit(shown, copies, outcomes, threshold, resampling)


def _maps(
    ray: Any, config: EvaluateConfig, bundle: Bundle, outcomes: Outcomes, threshold: float, stores: Stores
) -> dict[str, Any] | None:
    return judge_maps(
        ray, bundle, outcomes, threshold, stores, asked=config.map_images, seed=config.seed, workers=config.workers,
        cpus_per_worker=config.cpus_per_worker,
    )  # fmt: skip


def _splits(
    ray: Any, config: EvaluateConfig, bundle: Bundle, manifest: Manifest, stores: Stores, resampling: Resampling
) -> dict[str, Any] | None:
    if not config.compare_splits:
        return None
    from pipeline.training.split_comparison import compare_splits  # torch: seconds

    connect = functools.partial(contextlib.nullcontext, ray)
    return compare_splits(manifest, bundle.info, stores, connect, resampling).record()


def _refuse_choices(config: EvaluateConfig, manifest: Manifest, info: BundleInfo, stores: Stores) -> None:
    """Raise UsageError or InputError where the images cannot tell what is asked of them, before any is read."""
    refuse_contradictions(info, manifest)
    for name, value in (("target-sensitivity", config.target_sensitivity), ("review-error", config.review_error)):
        if value is not None:
            refuse_without_sides(info, f"--{name}")
            if name == "review-error" and manifest.info.split_rule == "images":
                raise UsageError(
                    "--review-error: subjects of validation are in train as well (split by image), so nothing is known "
                    "of new ones; ingest with a split by subject, or leave it out"
                )
            refuse_without_validation(manifest, info, f"--{name}", config.review_error if "review" in name else None)
    if config.compare_splits:
        from pipeline.training.split_comparison import refuse_splits  # torch: seconds

        refuse_splits(manifest, info, stores)


def outcomes_of(
    ray: Any, config: EvaluateConfig, bundle: Bundle, manifest: Manifest, split: str, stores: Stores,
    look_at: Sequence[ManifestRow] = (),
) -> tuple[Outcomes, list[Glance]]:  # fmt: skip
    found, glances = predict_split(
        ray, bundle, manifest, split, stores, workers=config.workers, cpus_per_worker=config.cpus_per_worker,
        gpus_per_worker=config.gpus_per_worker, look_at=look_at,
    )  # fmt: skip
    return Outcomes(bundle.info, found, manifest.table.select(["image_id", *manifest.further])), glances


def compare(config: EvaluateConfig, stores: Stores, clock: Clock, kept: Account) -> None:
    """Several models on the same images."""
    refuse_foreign_comparison(config.out, "evaluate", stores)
    manifest = read_manifest(config.manifest, stores)
    bundles = [resolve(uri, stores).verify().with_bit_depth(config.bit_depth) for uri in config.model]
    lineage.reads(lambda: _inputs(config, manifest, bundles))
    refuse_incomparable(bundles)
    for bundle in bundles:
        refuse_mismatch(bundle.info.unit, manifest.info.unit, manifest.uri)
        _refuse_choices(config, manifest, bundle.info, stores)
    out = absolute(config.out)
    refuse_unwritable(out)
    digests = {f"model_{ascii_uppercase[k]}": bundle.info.identity() for k, bundle in enumerate(bundles)}
    kept.begin(out, manifest=manifest.info.digest, **digests)
    resampling = Resampling(config.bootstrap, config.confidence, config.seed)
    with connected(config.address, config.num_cpus) as ray, measured.telling(out):
        found = compare_on(
            ray, bundles, manifest, config.split, stores, resampling, workers=config.workers,
            cpus_per_worker=config.cpus_per_worker, gpus_per_worker=config.gpus_per_worker,
            target_sensitivity=config.target_sensitivity,
        )  # fmt: skip
        for one in found.evaluations:
            measured.finished(f"{one.bundle.info.name} {one.bundle.info.version}", one.metrics["metrics"])
    counts = {"images": found.evaluations[0].metrics["images"], "left_out": found.left_out}
    kept.keep(out, counts, manifest=manifest.info.digest, **digests)
    record, page = found.record(config.record(names_of(stores))), render_comparison(found, config.mistakes, stores)
    found.save(out, record, page, stores)
    lineage.writes(lambda: [Dataset(out, rows=found.evaluations[0].metrics["images"])])
    seen = [f"{letter}: {sentence}" for letter, sentence in comparison_words.recognized(found)]
    print("\n" + "\n".join([*comparison_words.headline(found), *seen, "", *comparison_words.lines(found), ""]))
    for note in [*found.warnings, comparison_words.several(found)]:
        print(f"  note: {note}")
    images = found.evaluations[0].metrics["images"]
    print(f"\n{images:,} images, {len(bundles)} models in {clock.seconds:.0f} s. Page: {join(out, 'comparison.html')}")
    print(words.NOT_A_DEVICE)
    if found.left_out > config.max_error_share * (images + found.left_out):
        raise IncompleteError(
            f"{found.left_out} of {images + found.left_out} images got no answer of one of the models, more than "
            f"--max-error-share {config.max_error_share:g}; they are left out of all figures"
        )


def _notes(found: Evaluation) -> Iterator[str]:
    """What a reader of the figures must know, a sentence each."""
    if found.ood is not None and not found.ood["is_far_above"]:  # else it is among the warnings
        yield found.ood["told"]
    yield from found.warnings
    if splits := found.further.get("splits"):
        yield from words.optimism(splits)
    if maps := found.further.get("explanation"):
        yield from (f"maps: {sentence}" for sentence in sentences(maps) if sentence.startswith(FAILS))
    for kind, count in found.outcomes.remarks.items():
        yield f"{count} images: {kind}"


def account(config: EvaluateConfig, found: Evaluation, clock: Clock) -> None:
    """Print the result; fail when too many images could not be read."""
    print()
    seen = words.recognized(found.recognized.record(), found.metrics["task"])
    for sentence in (*words.headline(found.metrics), *seen, *words.reach(found.reach)):
        print(sentence)
    if found.external is not None:
        print()
        for sentence in elsewhere.sentences(found.external, found.metrics["task"]):
            print(sentence)
    print()
    for name, metric in found.metrics["metrics"].items():
        print(f"  {METRIC_NAMES[name]:<40}{words.with_interval(metric)}")
    if told := subjects_in_words(found.by_subject):
        print("", *told, "", sep="\n")
    for note in _notes(found):
        print(f"  note: {note}")
    scored, rejected = len(found.outcomes.scored), len(found.outcomes.rejections)
    where = join(absolute(config.out), "report.html")
    colours = f", and {found.shortcut.train_images:,} of train for their colours," if not found.shortcut.why_not else ""
    print(f"\n{scored:,} images{colours} in {clock.seconds:.0f} s. Report: {where}")
    print(words.NOT_A_DEVICE)
    if _lost_too_many(config, found):
        raise IncompleteError(
            f"{rejected} of {scored + rejected} images could not be read, more than --max-error-share "
            f"{config.max_error_share:g}; predictions.parquet names them with their codes, and the model's card stays "
            "as it was"
        )


def _lost_too_many(config: EvaluateConfig, found: Evaluation) -> bool:
    return len(found.outcomes.rejections) > config.max_error_share * len(found.outcomes.all)


command = job("evaluate", EvaluateConfig, main, EPILOG)
