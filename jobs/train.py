"""Train a network data-parallel on Ray, calibrate it, and publish it as a bundle."""

if __name__ == "__main__":  # ahead of imports that need the extra `train`: one that is missing is told in a sentence
    from jobs.cli import as_program

    as_program("train")

import functools
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from jobs import lineage
from jobs.common import Clock, job, job_stores, show_config, writing_stores
from jobs.config import effective
from jobs.lineage_datasets import of_manifest, of_model
from jobs.record import Account, recorded
from jobs.train_account import tell_end
from jobs.train_options import (
    TrainConfig,
    chosen_start,
    refuse_decisions,
    refuse_idle_workers,
    refuse_steps,
    with_defaults,
)
from pipeline.base.cluster import alive_nodes, connected, tell_waiting
from pipeline.base.errors import UsageError
from pipeline.base.machine import free_shared_memory, shared_memory_warning
from pipeline.base.resources import ClusterPlan, check
from pipeline.ingest.splits import check_leaks
from pipeline.model.architectures import build, check_architecture, full_name
from pipeline.model.bundle import OUT_OF_FOLD
from pipeline.model.export import ToGraph, to_onnx, to_safetensors
from pipeline.model.registry import ModelFolder
from pipeline.model.seen import size_to_decode
from pipeline.model.starting_weights import check_start, start_from
from pipeline.sources.manifest import Manifest, read_manifest
from pipeline.storage.parquet import to_parquet
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join
from pipeline.training.cache import PixelCache, default_root
from pipeline.training.center import Seen, center_for
from pipeline.training.checkpoint import Trained
from pipeline.training.cross_validation import OutOfFold, cross_validate
from pipeline.training.folds import Folds, fold_numbers
from pipeline.training.graphs import GraphMaker
from pipeline.training.recipe import Start, fits_head
from pipeline.training.records import Records
from pipeline.training.rows import LabelledRows, labelled_rows
from pipeline.training.run_folder import TrainingRun, held_run
from pipeline.training.settings import Settings
from pipeline.training.single_images import refuse_single_images
from pipeline.training.sketching import sketch_of
from pipeline.training.teacher import Teacher, open_teacher
from pipeline.training.tracking import Described, Tracker, tracking_uri

if TYPE_CHECKING:
    from pipeline.training.familiar import FeaturesOf
    from pipeline.training.probe import Probe
    from pipeline.training.publish import Published

_SHARED = (
    "norm", "center", "bit_depth", "unfreeze", "epochs", "batch_size", "accumulate", "learning_rate",
    "layer_decay", "optimizer", "weight_decay", "warmup", "clip_norm", "patience", "label_smoothing", "balance",
    "augment", "amp", "seed",
)  # fmt: skip
EXAMPLES = """examples:
  leukoray train manifest/                                          # the default recipe, on this machine
  leukoray train manifest/ --architecture resnet18 --input-size 224 --weights imagenet --epochs 20
  leukoray train manifest/ --dry-run                                # what that would be, and how long it takes
  leukoray train manifest/ --unfreeze head                          # the classifier alone: seconds
  leukoray train manifest/ --folds 5                                # cross-validate, then train the one to use
  leukoray train manifest/ --weights resnet18.pth --architecture resnet18 --target-sensitivity 0.95
  leukoray train s3://bucket/manifest --out s3://bucket/models --workers 8 --use-gpu
  leukoray train s3://bucket/manifest --out s3://bucket/models --workers 2:8 --address auto
  ray job submit --working-dir . -- python -m jobs.train --config train.yaml

An interrupted run is continued by the same command. Research software, not a medical device."""


@dataclass(frozen=True)
class _Ready:
    """All that is known before anything is started."""

    given: TrainConfig
    config: TrainConfig  # with nothing left open but what the cluster decides
    stores: Stores
    manifest: Manifest
    rows: LabelledRows
    folds: Folds | None
    folder: ModelFolder
    initial: bytes | None  # weights to start from
    teacher: Teacher | None
    is_fitted: bool  # the head alone, to its optimum; else trained in steps


def main(config: TrainConfig) -> None:
    clock, mlflow = Clock(), tracking_uri(config.mlflow)
    ready = _ready(config)
    if ready.config.dry_run:
        _rehearse(ready)
        return
    with recorded("train", ready.config, ready.stores) as kept:
        if ready.is_fitted:
            settings = _settings(ready.config, ready.rows, "1", None)
            probe = _probe(ready, settings, _cache(ready.config, settings))
            _announce(ready.rows)
            trained, published, run = _carried_out(
                ready, mlflow, settings, probe, kept, to_graph=probe.graph, features_of=probe.features_of
            )
        else:
            trained, published, run = _in_steps(ready, mlflow, kept)
        images = {split: sum(ready.rows.counts(split)) for split in ("train", "validation")}
        made, of = published.bundle, ready.manifest.info.digest
        kept.keep(made.uri, images | {"left_out": trained.rejected.count}, manifest=of, model=made.info.identity())
        lineage.writes(lambda: [of_model(published.bundle)])
        tell_end(trained, published, ready.rows, run, ready.config, clock)


_Done = tuple[Trained, "Published", TrainingRun]


def _in_steps(ready: _Ready, mlflow: str | None, kept: Account) -> _Done:
    """On Ray Train's workers."""
    from pipeline.training.fit import fit  # Ray Train and Ray Data take a second to load

    config, rows = ready.config, ready.rows
    with connected(config.address, config.num_cpus, worker_logs=config.debug) as ray:
        nodes = alive_nodes(ray)
        plan = config.plan(nodes)
        check(plan, nodes)
        settings = _settings(config, rows, config.workers or str(plan.workers), ready.teacher)
        refuse_single_images(settings, plan.workers, on_gpu=plan.gpus > 0)
        _announce(rows, plan)
        tell_waiting(ray, plan)
        cache = _cache(config, settings)
        fit_run = functools.partial(
            fit, plan=plan, initial=ready.initial, teacher=ready.teacher, max_error_share=config.max_error_share,
            cache=cache,
        )  # fmt: skip
        graphs = GraphMaker(settings, cache)
        meanwhile = functools.partial(_meanwhile, graphs)
        return _carried_out(ready, mlflow, settings, fit_run, kept, meanwhile=meanwhile, to_graph=graphs)


def _carried_out(
    ready: _Ready,
    mlflow: str | None,
    settings: Settings,
    fit_run: Callable[..., Trained],
    kept: Account,
    *,
    meanwhile: Callable[[Records], None] | None = None,
    to_graph: ToGraph = to_onnx,
    features_of: "FeaturesOf | None" = None,
) -> _Done:
    """Every fold, then the model for use, published.

    `meanwhile`: what `fit_run` does while workers train. `features_of`: those of the graph, where they are known.
    """
    rows, manifest, folder, folds = ready.rows, ready.manifest, ready.folder, ready.folds
    kind = "" if folds is None else f"{folds.count} folds {folds.digest()}"
    digest = settings.digest(manifest.info.digest, hashlib.sha256(ready.initial or b"").hexdigest(), kind)
    with (
        held_run(folder, digest) as run,
        _records(mlflow, manifest, settings, rows, run) as records,
    ):
        kept.begin(run.uri, manifest=manifest.info.digest)
        out_of_fold = None
        if folds is not None:
            out_of_fold = cross_validate(folds, settings, folder, run, digest, fit_run)
        last = fit_run if meanwhile is None else functools.partial(fit_run, meanwhile=lambda: meanwhile(records))
        trained = last(settings, rows, run=run, log=records)
        run.check_lock()
        published = _published(trained, settings, ready, out_of_fold, to_graph, features_of)
        records.published(published, trained.best.scores)
        run.close(published.bundle.info.version)
    return trained, published, run


def _probe(ready: _Ready, settings: Settings, cache: PixelCache | None) -> "Probe":
    from pipeline.training.probe import Probe

    assert ready.initial is not None, "a head is fitted to features that are known"
    config = ready.config
    connect = functools.partial(connected, config.address, config.num_cpus, worker_logs=config.debug)
    return Probe(ready.initial, settings, ready.rows, ready.manifest, cache, connect, config.max_error_share)


def _ready(given: TrainConfig) -> _Ready:
    """Read and check what is asked for; prints the configuration. Raises UsageError, InputError, PlatformError."""
    model = join(given.out, given.name)
    stores = job_stores(given) if given.dry_run else writing_stores(given, model, single_writer=given.single_writer)
    manifest = read_manifest(given.manifest, stores)
    lineage.reads(lambda: [of_manifest(manifest)])
    chosen = chosen_start(given)
    rows = _checked_rows(manifest, given, chosen)
    is_fitted = fits_head(chosen, given.unfreeze)
    (refuse_steps if is_fitted else refuse_idle_workers)(given)
    config = with_defaults(given, chosen, rows, is_fitted=is_fitted)
    given.refuse_unknown_label(manifest, rows)
    teacher = _teacher(manifest, rows, config, stores)
    settings = _settings(config, rows, "1", teacher)
    seen = center_for(manifest, rows, given.center, teacher, settings, stores, _cache(config, settings))
    config = config.model_copy(update={"center": seen.share})
    show_config(config)
    _tell(chosen, seen)
    folds = _folds(manifest, rows, config, stores)
    folder = ModelFolder(model, stores)
    folder.refuse_other_task(rows.task, rows.classes, rows.positive_classes, manifest.info.unit)
    initial = _initial_weights(chosen, rows, config, stores)
    return _Ready(given, config, stores, manifest, rows, folds, folder, initial, teacher, is_fitted)


def _tell(chosen: Start, seen: Seen) -> None:
    """Why it starts so, and sees so much."""
    for note in filter(None, (chosen.note, seen.reason)):
        print(f"note: {note}", flush=True)


def _rehearse(ready: _Ready) -> None:
    from jobs.train_rehearsal import planned, tell, tell_fit

    config, rows, folds = ready.config, ready.rows, ready.folds
    runs = 1 if folds is None else folds.count + 1
    if ready.is_fitted:
        _announce(rows)
        settings = _settings(config, rows, "1", None)
        tell_fit(config, ready.given, settings, rows, _probe(ready, settings, None), runs)
        return
    plan = planned(config)
    settings = _settings(config, rows, config.workers or str(plan.workers), ready.teacher)
    refuse_single_images(settings, plan.workers, on_gpu=plan.gpus > 0)
    _announce(rows, plan)
    each = [*(folds.without(number) for number in range(folds.count)), rows] if folds is not None else [rows]
    tell(config, ready.given, settings, rows, plan, ready.folder, ready.initial, ready.teacher, each)


def _folds(manifest: Manifest, rows: LabelledRows, config: TrainConfig, stores: Stores) -> Folds | None:
    if not config.has_folds:
        return None
    folds = fold_numbers(manifest, rows, config.folds, config.group_by, config.seed, stores)
    print(f"{folds.count} folds by {config.group_by}: {', '.join(map(str, folds.sizes()))} images held out", flush=True)
    return folds


def _published(
    trained: Trained, settings: Settings, ready: _Ready, out_of_fold: OutOfFold | None, to_graph: ToGraph,
    features_of: "FeaturesOf | None",
) -> "Published":  # fmt: skip
    """The bundle; with folds, calibrated by what their models say of images that they did not see."""
    from pipeline.training.familiar import Familiar
    from pipeline.training.judgement import HeldOut
    from pipeline.training.publish import publish

    config, teacher, held_out = ready.config, ready.teacher, None
    if out_of_fold is not None:
        held_out = HeldOut(out_of_fold.scores, looks=1, on="out-of-fold", shipped=trained.best.scores)
    cache = _cache(config, settings)
    sketch = sketch_of(ready.rows, settings.pixels, ready.stores, cache) if config.sketch else None
    published = publish(
        trained, settings, ready.rows, ready.manifest, ready.folder, held_out=held_out, sketch=sketch,
        to_graph=to_graph, target_sensitivity=config.target_sensitivity, review_error=config.review_error,
        configuration=effective(config) | {"teacher": None if teacher is None else teacher.account()},
        costs=config.costs_of_mistakes, subject_label=config.label_of_subjects,
        familiar=Familiar(ready.stores, cache, features_of),
    )  # fmt: skip
    if out_of_fold is not None:
        from pipeline.training.suspects import keep_suspects

        info = published.bundle.info
        published.bundle.write(OUT_OF_FOLD, to_parquet(out_of_fold.table(info.temperature, info.classes)))
        print(out_of_fold)
        print(keep_suspects(published.bundle, out_of_fold.scores, ready.manifest, ready.stores))
    return published


def _records(
    mlflow: str | None, manifest: Manifest, settings: Settings, rows: LabelledRows, training_run: TrainingRun
) -> Records:
    if mlflow is None:
        return Records(training_run, settings, rows, None)
    described = Described(
        parameters=asdict(settings),
        manifest_uri=manifest.uri,
        manifest_digest=manifest.info.digest,
        images={split: sum(rows.counts(split)) for split in ("train", "validation")},
        synthetic=manifest.info.synthetic,
    )
    return Records(training_run, settings, rows, Tracker(mlflow, described, training_run))


def _meanwhile(graphs: GraphMaker, records: Records) -> None:
    """What is needed only after training, begun during it: the graph first, which is made elsewhere."""
    graphs.begin()
    records.show_training_images()
    import pipeline.training.publish  # noqa: F401


def _checked_rows(manifest: Manifest, config: TrainConfig, chosen: Start) -> LabelledRows:
    """The rows to learn from. Raises UsageError or InputError before anything is started."""
    check_architecture(chosen.architecture, chosen.input_size, chosen.norm)
    check_start(chosen.architecture, chosen.weights, chosen.norm, config.unfreeze)
    if manifest.info.split_rule == "images":  # asked for at ingest, which warned; evaluate's report repeats it
        for warning in manifest.info.warnings:
            print(f"warning: {warning}", flush=True)
    else:
        columns = {name: manifest.table[name].to_pylist() for name in ("subject_id", "split", "uri")}
        check_leaks(columns["subject_id"], columns["split"], keys=columns["uri"])
    rows = labelled_rows(manifest, config.task)
    if rows.note:
        print(f"note: {rows.note}", flush=True)
    refuse_decisions(config, manifest, rows)
    most = config.worker_range[1]
    if most and most > rows.validation.num_rows:
        raise UsageError(
            f"--workers {config.workers}: the validation split has {rows.validation.num_rows} images; use fewer workers"
        )
    return rows


def _initial_weights(chosen: Start, rows: LabelledRows, config: TrainConfig, stores: Stores) -> bytes | None:
    """The starting network with the given weights, as safetensors; None to start from the seed in every worker."""
    if not chosen.is_known:
        return None
    torch.manual_seed(config.seed)
    model = build(chosen.architecture, 1 if rows.task == "binary" else len(rows.classes), chosen.norm)
    loaded = start_from(model, chosen.architecture, chosen.weights, stores, config.unfreeze)
    print(f"weights: {loaded}", flush=True)
    return to_safetensors(model)


def _teacher(manifest: Manifest, rows: LabelledRows, config: TrainConfig, stores: Stores) -> Teacher | None:
    if config.teacher is None:
        return None
    teacher = open_teacher(config.teacher, rows, manifest, config.bit_depth, stores)
    info = teacher.info
    print(f"teacher: {info.name} / {info.version}, {info.architecture}, {info.input_size} pixels", flush=True)
    if teacher.account()["manifests"] != [manifest.info.digest]:
        print(
            "warning: the teacher has learnt from another manifest; images of this one's validation and test may be "
            "among them, and figures of the new model too good",
            flush=True,
        )
    return teacher


def _cache(config: TrainConfig, settings: Settings) -> PixelCache | None:
    if config.cache == "none":
        return None
    return PixelCache(config.cache or default_root(), settings.pixels, config.cache_bytes)


def _settings(config: TrainConfig, rows: LabelledRows, workers: str, teacher: Teacher | None) -> Settings:
    shared = {name: getattr(config, name) for name in _SHARED}
    costs = config.costs_of_mistakes
    return Settings(
        architecture=full_name(str(config.architecture)),
        task=rows.task,
        classes=rows.classes,
        pretrained=config.weights != "none",
        workers=workers,
        input_size=size_to_decode(config.input_size or 0, config.center or 1.0),
        turns=config.tta,
        choose="last" if config.has_folds else "best",
        teacher=None if teacher is None else teacher.identity,
        positive=tuple(rows.classes.index(name) for name in rows.positive_classes),
        costs=None if costs is None else (costs.missed, costs.false_alarm),
        **shared,
    )


def _announce(rows: LabelledRows, plan: ClusterPlan | None = None) -> None:
    for split in ("train", "validation"):
        counts = ", ".join(f"{number} {name}" for name, number in zip(rows.classes, rows.counts(split), strict=True))
        print(f"{split}: {sum(rows.counts(split))} images ({counts})")
    if plan is None:
        return
    what = f"{plan.gpus_per_worker:g} GPU" if plan.gpus else f"{plan.cpus_per_worker:g} CPU"
    workers = f"{plan.fewest} to {plan.workers}" if plan.fewest else f"{plan.workers}"
    print(f"workers: {workers}, {what} each", flush=True)
    warning = shared_memory_warning(free_shared_memory())
    if warning:
        print(f"warning: {warning}", flush=True)


command = job("train", TrainConfig, main, EXAMPLES)
