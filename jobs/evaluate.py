"""`leukoray evaluate`: measure a model on a split of a manifest; metrics, predictions, report."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pydantic import Field

from jobs.common import Clock, job, job_stores, show_config, start
from jobs.config import JobConfig, effective, positional
from pipeline import __version__
from pipeline.base.cluster import connected
from pipeline.base.errors import IncompleteError, InputError, UsageError
from pipeline.base.resources import ClusterPlan, check
from pipeline.evaluation.metrics import Threshold, threshold_for
from pipeline.evaluation.names import METRIC_NAMES
from pipeline.evaluation.outcomes import Outcomes, is_labelled
from pipeline.evaluation.report import render_card, render_report, words
from pipeline.evaluation.worker import EvaluationWorker, Outcome
from pipeline.ingest.splits import SPLITS
from pipeline.model.bundle import CARD, Bundle, update_info
from pipeline.model.registry import resolve
from pipeline.sources.manifest import Manifest, ManifestRow, read_manifest
from pipeline.sources.rows import Access
from pipeline.storage.parquet import to_parquet
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

HISTORY = "report/history.json"
_ROWS_PER_TASK = 128
_NOT_IN_CARD = ("slices",)


class EvaluateConfig(JobConfig):
    """Measure a model on one split: metrics with intervals over subjects, predictions, an HTML report."""

    manifest: str = positional(description="manifest folder, local or s3://")
    model: str = Field(description="bundle or registry folder, local or s3://")
    out: str = Field("report", description="folder for metrics.json, predictions.parquet and report.html")
    split: str = Field("test", description="split to measure: train, validation or test")
    target_sensitivity: float | None = Field(
        None, gt=0, le=1, description="choose the threshold on validation for at least this sensitivity"
    )
    bootstrap: int = Field(1000, ge=100, description="resamplings for the intervals")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    seed: int = Field(0, description="seed of the resampling")
    mistakes: int = Field(24, ge=0, le=200, description="how many of the worst mistakes to show")
    max_error_share: float = Field(0.05, ge=0, le=1, description="share of unreadable images above which to fail")
    workers: int | None = Field(None, ge=1, description="predictors side by side (default: one a core)")
    cpus_per_worker: float = Field(1.0, gt=0, description="cores a worker holds")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs a worker holds; 0 predicts with ONNX Runtime")


EPILOG = """examples:
  leukoray evaluate out/demo/manifest --model out/demo/models --out out/demo/report
  leukoray evaluate s3://lab/manifest --model s3://lab/models/all --out s3://lab/report --target-sensitivity 0.95

Research software, not a medical device."""


def main(config: EvaluateConfig) -> None:
    clock, stores = Clock(), job_stores(config)
    if config.split not in SPLITS:
        raise UsageError(f"--split {config.split!r}: expected one of {', '.join(SPLITS)}")
    show_config(config)
    manifest, bundle = read_manifest(config.manifest, stores), resolve(config.model, stores).verify()
    with connected(config.address, config.num_cpus) as ray:
        chosen = choose_threshold(ray, config, bundle, manifest, stores)
        if config.target_sensitivity is not None:
            bundle = bundle.with_threshold(chosen.value)
        outcomes = predict_split(ray, config, bundle, manifest, config.split, stores)
    metrics = outcomes.metrics(
        chosen.value,
        replicates=config.bootstrap,
        confidence=config.confidence,
        seed=config.seed,
        units=manifest.info.units,
    )
    notes = caveats(config, bundle, manifest, outcomes)
    facts = provenance(config, bundle, manifest, chosen)
    report = render_report(
        title=f"{bundle.info.name}, {config.split} split",
        metrics=metrics,
        curves=outcomes.curves(),
        history=training_history(bundle),
        best_epoch=bundle.info.training.get("best_epoch"),
        mistakes=outcomes.mistakes(chosen.value, config.mistakes, stores),
        provenance=facts,
        synthetic=bundle.info.synthetic or manifest.info.synthetic,
        warnings=notes,
        split=config.split,
        basis=basis(config.split, bundle, manifest),
    )
    record = {"split": config.split, "provenance": facts, **metrics, "warnings": [*notes, *metrics["warnings"]]}
    record |= {"configuration": effective(config), "rejected": len(outcomes.rejections)}
    save(config, outcomes, chosen, record, report, stores)
    keep_in_bundle(config, bundle, manifest, record, report)
    account(config, metrics, outcomes, record["warnings"], clock)


def choose_threshold(ray: Any, config: EvaluateConfig, bundle: Bundle, manifest: Manifest, stores: Stores) -> Threshold:
    """The bundle's own, or the one that reaches the target on validation."""
    if config.target_sensitivity is None:
        return Threshold(bundle.info.threshold, "the bundle's", float("nan"), float("nan"))
    validation = predict_split(ray, config, bundle, manifest, "validation", stores)
    if validation.diseased is None:
        raise UsageError("--target-sensitivity: this model's classes do not say which mean disease; leave it out")
    return threshold_for(validation.diseased, validation.probability, config.target_sensitivity)


def predict_split(
    ray: Any, config: EvaluateConfig, bundle: Bundle, manifest: Manifest, split: str, stores: Stores
) -> Outcomes:
    """Predict every labelled image of the split, spread over the cluster."""
    wanted = [row for row in manifest.split(split) if is_labelled(bundle.info, row)]
    if not wanted:
        raise InputError(
            f"{manifest.uri}: no labelled image in split {split!r}; choose another --split or ingest again"
        )
    tasks = _tasks(wanted)
    available = ray.cluster_resources()
    possible = int(available.get("CPU", 1) / config.cpus_per_worker)
    if config.gpus_per_worker:
        possible = min(possible, int(available.get("GPU", 0) / config.gpus_per_worker))
    possible = max(1, possible)
    plan = ClusterPlan(
        "evaluate", config.workers or min(possible, len(tasks)), config.cpus_per_worker, config.gpus_per_worker
    )
    check(plan, available)
    outcomes: list[Outcome] = []
    for part in _spread(ray, plan, bundle, tasks, stores):
        outcomes += part
        _progress(split, len(outcomes), len(wanted))
    return Outcomes(bundle.info, outcomes)


def _tasks(wanted: Sequence[ManifestRow]) -> list[list[ManifestRow]]:
    """Members of one archive together, in its order; those of a compressed tar in one task, which reads it once."""
    streamed: dict[str, list[ManifestRow]] = {}
    direct: list[ManifestRow] = []
    for row in sorted(wanted, key=lambda row: (row.uri, row.offset or 0)):
        (streamed.setdefault(row.uri, []) if row.access is Access.STREAM else direct).append(row)
    return [*streamed.values(), *(direct[at : at + _ROWS_PER_TASK] for at in range(0, len(direct), _ROWS_PER_TASK))]


def _spread(
    ray: Any, plan: ClusterPlan, bundle: Bundle, tasks: Sequence[Sequence[ManifestRow]], stores: Stores
) -> Iterator[list[Outcome]]:
    """Hand tasks to workers as they become free; results as they come. A lost worker is restarted, its task redone."""
    remote = ray.remote(
        num_cpus=plan.cpus_per_worker, num_gpus=plan.gpus_per_worker, max_restarts=3, max_task_retries=3
    )(EvaluationWorker)
    workers = [remote.remote(bundle, stores, plan.gpus_per_worker > 0) for _ in range(plan.workers)]
    pool = ray.util.ActorPool(workers)
    try:
        yield from pool.map_unordered(lambda worker, batch: worker.predict.remote(batch), tasks)
    finally:
        for worker in workers:
            ray.kill(worker)


def _progress(split: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{split}: {done:,} of {total:,} images", end="\n" if done == total else "", file=sys.stderr, flush=True
        )


def caveats(config: EvaluateConfig, bundle: Bundle, manifest: Manifest, outcomes: Outcomes) -> list[str]:
    """What the data says against the figures."""
    notes = list(manifest.info.warnings)
    if config.split != "test":
        notes.append(f"This is the {config.split} split: the model, its threshold or its epoch were chosen by it.")
    if bundle.info.manifest_digest and bundle.info.manifest_digest != manifest.info.digest:
        notes.append("The manifest is not the one of training: images of training may be among those measured here.")
    if outcomes.rejections:
        codes = ", ".join(sorted({error.code.value for error in outcomes.rejections}))
        notes.append(
            f"{len(outcomes.rejections)} of {len(outcomes.all)} images could not be read and are left out: {codes}."
        )
    confounded = outcomes.background_warning()
    return notes + ([confounded] if confounded else [])


def basis(split: str, bundle: Bundle, manifest: Manifest) -> str:
    """What may be said of the images measured: that they took no part in training only where it is known."""
    if split != "test":
        return f" of the {split} split"
    if bundle.info.manifest_digest != manifest.info.digest:
        return "; whether the model has seen them in training is not known"
    if manifest.info.split_rule == "images":
        return " that took no part in training, though other images of the same patients may have"
    return " that took no part in training"


def provenance(config: EvaluateConfig, bundle: Bundle, manifest: Manifest, chosen: Threshold) -> dict[str, str]:
    """What someone needs to repeat or to trust the figures."""
    info = bundle.info
    subjects = {split: len({row.subject_id for row in manifest.split(split)} - {None}) for split in SPLITS}
    known, unit = any(subjects.values()), manifest.info.units.capitalize()
    return {
        "Model": f"{info.name} / {info.version}",
        "Bundle": bundle.uri,
        "Architecture": f"{info.architecture}, {info.input_size} x {info.input_size} pixels",
        "Model SHA-256": info.identity(),
        "Trained": info.created_at,
        "Manifest": manifest.uri,
        "Manifest digest": manifest.info.digest,
        "Source": str(manifest.info.source or ""),
        "Split rule": manifest.info.split_rule or info.split_rule,
        "Images in train / validation / test": " / ".join(f"{len(manifest.split(split)):,}" for split in SPLITS),
        f"{unit} in train / validation / test": " / ".join(map(str, subjects.values())) if known else "not known",
        "Threshold": f"{chosen.value:.4f} ({chosen.rule})",
        "Temperature": f"{info.temperature:.4f}",
        "Resampling": f"{config.bootstrap} replicates, seed {config.seed}",
        "Evaluated": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Versions": ", ".join(
            [f"leukoray {__version__}", *(f"{name} {version(name)}" for name in ("ray", "onnxruntime", "numpy"))]
        ),
    }


def training_history(bundle: Bundle) -> list[Mapping[str, Any]]:
    """Per-epoch records that training left in the bundle; empty where it left none."""
    if bundle.stores.of(bundle.uri).head(join(bundle.uri, HISTORY)) is None:
        return []
    return list(json.loads(bundle.file(HISTORY)))


def save(
    config: EvaluateConfig,
    outcomes: Outcomes,
    chosen: Threshold,
    record: Mapping[str, Any],
    report: str,
    stores: Stores,
) -> None:
    out = absolute(config.out)
    store = stores.of(out)
    store.write(join(out, "predictions.parquet"), to_parquet(outcomes.table(chosen.value)))
    store.write(join(out, "metrics.json"), json.dumps(record, indent=2, allow_nan=False).encode())
    store.write(join(out, "report.html"), report.encode())


def keep_in_bundle(
    config: EvaluateConfig, bundle: Bundle, manifest: Manifest, record: Mapping[str, Any], report: str
) -> None:
    """Card, metrics and report into the bundle, when they are of its own test split at its own threshold."""
    own = bundle.info.manifest_digest == manifest.info.digest
    if not own or config.split != "test" or config.target_sensitivity is not None:
        return
    kept = {key: value for key, value in record.items() if key not in _NOT_IN_CARD}
    data = {"Source": manifest.info.source or "–", "Layout": manifest.info.layout or "–"}
    data |= {f"Images in {split}": f"{len(manifest.split(split)):,}" for split in SPLITS}
    card = render_card(bundle.info, metrics=record, data=data)
    store = bundle.stores.of(bundle.uri)
    store.write(join(bundle.uri, "report", "report.html"), report.encode())
    store.write(join(bundle.uri, CARD), card.encode())
    update_info(bundle, metrics={**bundle.info.metrics, "test": kept})


def account(
    config: EvaluateConfig, metrics: Mapping[str, Any], outcomes: Outcomes, warnings: Sequence[str], clock: Clock
) -> None:
    """Print the result; fail when too many images could not be read."""
    print()
    for sentence in words.headline(metrics):
        print(sentence)
    print()
    for name, metric in metrics["metrics"].items():
        print(f"  {METRIC_NAMES[name]:<40}{words.with_interval(metric)}")
    for warning in warnings:
        print(f"  note: {warning}")
    where = join(absolute(config.out), "report.html")
    print(f"\n{len(outcomes.scored):,} images in {clock.seconds:.0f} s. Report: {where}")
    print(words.NOT_A_DEVICE)
    share = len(outcomes.rejections) / len(outcomes.all)
    if share > config.max_error_share:
        raise IncompleteError(
            f"{len(outcomes.rejections)} of {len(outcomes.all)} images could not be read, more than --max-error-share "
            f"{config.max_error_share:g}; predictions.parquet names them with their codes"
        )


command = job("evaluate", EvaluateConfig, main, EPILOG)


if __name__ == "__main__":
    start(command)
