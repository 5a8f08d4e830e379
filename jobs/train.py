"""Train a network data-parallel on Ray, calibrate it, and publish it as a bundle."""

import functools
import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, field_validator

from jobs.common import Clock, job, show_config, start, writing_stores
from jobs.config import NamingConfig, effective, positional
from pipeline.base.cluster import alive_nodes, connected, tell_waiting
from pipeline.base.errors import NotBetterThanChanceError, UsageError
from pipeline.base.machine import shared_memory_warning
from pipeline.base.resources import ClusterPlan, check, training_plan
from pipeline.ingest.splits import check_leaks
from pipeline.model.architectures import build, check_architecture, full_name
from pipeline.model.bundle import Norm
from pipeline.model.export import to_safetensors
from pipeline.model.registry import ModelFolder
from pipeline.model.starting_weights import check_start, start_from
from pipeline.sources.manifest import Manifest, read_manifest
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, is_s3, join
from pipeline.training.cache import PixelCache, default_root
from pipeline.training.fit import Trained, fit
from pipeline.training.records import Records
from pipeline.training.rows import LabelledRows, labelled_rows
from pipeline.training.run_folder import TrainingRun, held_run
from pipeline.training.settings import Settings
from pipeline.training.suspicion import suspicion
from pipeline.training.tracking import Described, Tracker, check_tracking_uri, tracking_uri

if TYPE_CHECKING:
    from pipeline.training.publish import Published

_SHARED = (
    "architecture", "norm", "input_size", "bit_depth", "epochs", "batch_size", "learning_rate", "optimizer",
    "weight_decay", "warmup_epochs", "clip_norm", "patience", "balance", "augment", "amp", "seed",
)  # fmt: skip
EXAMPLES = """examples:
  leukoray train manifest/                                          # the small network, on this machine
  leukoray train manifest/ --architecture resnet18 --input-size 224 --weights imagenet --epochs 20
  leukoray train manifest/ --weights resnet18.pth --architecture resnet18 --target-sensitivity 0.95
  leukoray train s3://bucket/manifest --out s3://bucket/models --workers 8 --use-gpu
  ray job submit --working-dir . -- python -m jobs.train --config train.yaml

An interrupted run is continued by the same command. Research software, not a medical device."""


class TrainConfig(NamingConfig):
    """Train a network on a manifest's train split, choose the best epoch on its validation split, publish a bundle."""

    manifest: str = positional(description="manifest made by `leukoray ingest`, a folder or s3:// prefix")
    out: str = Field("models", description="registry: the bundle goes to <out>/<name>/<version>/")
    name: str = Field(
        "leukoray", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the model's name in the registry"
    )
    architecture: str = Field("cnn", description="network, e.g. cnn, resnet18, efficientnet-lite0, timm:NAME")
    input_size: int = Field(128, ge=16, le=1024, description="pixels, square, that images are brought to")
    bit_depth: int | None = Field(
        None, ge=8, le=16, description="bits that count in 16-bit samples (default: as files state, else a guess)"
    )
    weights: str = Field("none", description="start from: none, imagenet, or a .pth or .safetensors file")
    norm: Norm = Field(
        "batch",
        description="batch normalization as it is, frozen (with the statistics of the weights), or group in its place",
    )
    task: Literal["auto", "binary", "multiclass"] = Field(
        "auto", description="auto: binary where the manifest labels positive and negative, else by class names"
    )
    epochs: int = Field(20, ge=1, description="passes over the train split at most")
    batch_size: int = Field(16, ge=1, description="images per worker and step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    optimizer: Literal["adam", "adamw"] = Field("adamw", description="optimizer")
    weight_decay: float = Field(1e-2, ge=0, description="weight decay of matrices")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up before the cosine")
    clip_norm: float = Field(1.0, ge=0, description="gradient norm is clipped to this; 0: never")
    patience: int = Field(6, ge=0, description="stop after so many epochs without a better metric; 0: never")
    balance: bool = Field(True, description="weigh classes by the inverse of their count")
    augment: bool = Field(True, description="random turns, stain and light of training images")
    amp: bool = Field(True, description="bfloat16 arithmetic on GPUs")
    seed: int = Field(0, ge=0, description="the same seed on the same machine gives the same model")
    workers: int | None = Field(
        None, ge=1, description="data-parallel workers (default: a GPU each, else 2, 1 on one core)"
    )
    cpus_per_worker: float | None = Field(None, gt=0, description="Ray CPUs a worker holds (default: by cores)")
    use_gpu: bool | None = Field(None, description="train on GPUs (default: where the cluster has them)")
    cache: str | None = Field(
        None, description="folder of decoded images on each node; none: no cache (default: ~/.cache/leukoray/pixels)"
    )
    cache_bytes: int | None = Field(
        None, ge=0, description="size of all files of the cache (default: half of what its disk has free)"
    )
    target_sensitivity: float | None = Field(
        None,
        gt=0,
        le=1,
        description="choose the threshold for this sensitivity (default: balanced accuracy)",
    )
    review_margin: float | None = Field(
        None, gt=0, lt=0.5, description="probabilities this close to the threshold are decided 'review'"
    )
    single_writer: bool = Field(
        False, description="only this run ever writes to --out: for S3 stores that heed no conditional writes"
    )
    max_error_share: float = Field(0.05, ge=0, le=1, description="share of unreadable images above which to fail")
    mlflow: str | None = Field(
        None, description="MLflow server or sqlite:/// file to log the run to (default: $MLFLOW_TRACKING_URI)"
    )

    @field_validator("manifest", "out")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return absolute(value)

    @field_validator("cache")
    @classmethod
    def _absolute_folder(cls, value: str | None) -> str | None:
        if value is not None and is_s3(value):
            raise ValueError("must lie on a disk of the node itself: it is mapped into memory")
        return value if value in (None, "none") else absolute(value)

    @field_validator("weights")
    @classmethod
    def _absolute_file(cls, value: str) -> str:
        return value if value in ("none", "imagenet") else absolute(value)

    @field_validator("mlflow")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        return value if value is None else check_tracking_uri(value)


def main(config: TrainConfig) -> None:
    clock, model = Clock(), join(config.out, config.name)
    mlflow = tracking_uri(config.mlflow)
    show_config(config)
    stores = writing_stores(config, model, single_writer=config.single_writer)
    manifest = read_manifest(config.manifest, stores)
    rows = _checked_rows(manifest, config)
    folder = ModelFolder(model, stores)
    folder.refuse_other_task(rows.task, rows.classes, rows.positive_classes, manifest.info.unit)
    initial = _initial_weights(config, rows, stores)
    with connected(config.address, config.num_cpus, worker_logs=config.debug) as ray:
        nodes = alive_nodes(ray)
        plan = training_plan(nodes, config.workers, config.cpus_per_worker, config.use_gpu)
        check(plan, nodes)
        _announce(rows, plan, config.batch_size)
        tell_waiting(ray, plan)
        settings = _settings(config, rows, plan.workers)
        digest = settings.digest(manifest.info.digest, hashlib.sha256(initial or b"").hexdigest())
        with (
            held_run(folder, digest) as training_run,
            _records(mlflow, manifest, settings, rows, training_run) as records,
        ):
            trained = fit(
                settings, rows, plan, training_run, initial=initial, max_error_share=config.max_error_share,
                cache=_cache(config, settings), log=records, meanwhile=functools.partial(_meanwhile, records),
            )  # fmt: skip
            training_run.check_lock()
            from pipeline.training.publish import publish

            published = publish(
                trained, settings, rows, manifest, folder, configuration=effective(config),
                target_sensitivity=config.target_sensitivity, review_margin=config.review_margin,
            )  # fmt: skip
            records.published(published, trained.best.scores)
            training_run.close(published.bundle.info.version)
    _account(trained, published, rows, training_run, config, clock)


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


def _meanwhile(records: Records) -> None:
    """What needs no worker, and what is needed only after training: seconds that nobody waits for while they start."""
    records.show_training_images()
    import pipeline.training.publish  # noqa: F401
    from pipeline.model.export import warm_up

    warm_up()


def _checked_rows(manifest: Manifest, config: TrainConfig) -> LabelledRows:
    """The rows to learn from. Raises UsageError or InputError before anything is started."""
    check_architecture(config.architecture, config.input_size, config.norm)
    check_start(config.weights, config.norm)
    if manifest.info.split_rule == "images":  # asked for at ingest, which warned; evaluate's report repeats it
        for warning in manifest.info.warnings:
            print(f"warning: {warning}", flush=True)
    else:
        columns = {name: manifest.table[name].to_pylist() for name in ("subject_id", "split", "uri")}
        check_leaks(columns["subject_id"], columns["split"], keys=columns["uri"])
    rows = labelled_rows(manifest, config.task)
    for name, value in (("target-sensitivity", config.target_sensitivity), ("review-margin", config.review_margin)):
        if value is not None and not rows.positive_classes:
            raise UsageError(
                f"--{name}: no class of this manifest means disease, so there is no decision to tune; name the ones "
                "that do with `leukoray ingest --positive CLASS`, or leave it out"
            )
    if config.workers and config.workers > rows.validation.num_rows:
        raise UsageError(
            f"--workers {config.workers}: the validation split has {rows.validation.num_rows} images; use fewer workers"
        )
    return rows


def _initial_weights(config: TrainConfig, rows: LabelledRows, stores: Stores) -> bytes | None:
    """The starting network with the given weights, as safetensors; None to start from the seed in every worker."""
    if config.weights == "none":
        return None
    torch.manual_seed(config.seed)
    model = build(config.architecture, 1 if rows.task == "binary" else len(rows.classes), config.norm)
    print(f"weights: {start_from(model, config.architecture, config.weights, stores)}", flush=True)
    return to_safetensors(model)


def _cache(config: TrainConfig, settings: Settings) -> PixelCache | None:
    if config.cache == "none":
        return None
    return PixelCache(config.cache or default_root(), settings.pixels, config.cache_bytes)


def _settings(config: TrainConfig, rows: LabelledRows, workers: int) -> Settings:
    shared = {name: getattr(config, name) for name in _SHARED}
    shared["architecture"] = full_name(config.architecture)
    return Settings(task=rows.task, classes=rows.classes, workers=workers, **shared)


def _announce(rows: LabelledRows, plan: ClusterPlan, batch_size: int) -> None:
    for split in ("train", "validation"):
        counts = ", ".join(f"{number} {name}" for name, number in zip(rows.classes, rows.counts(split), strict=True))
        print(f"{split}: {sum(rows.counts(split))} images ({counts})")
    what = f"{plan.gpus_per_worker:g} GPU" if plan.gpus else f"{plan.cpus_per_worker:g} CPU"
    print(f"workers: {plan.workers}, {what} each", flush=True)
    each = rows.train.num_rows // plan.workers
    if each < batch_size:
        print(f"warning: a worker has {each} images for batches of {batch_size}: images repeat in a batch", flush=True)
    warning = shared_memory_warning()
    if warning:
        print(f"warning: {warning}", flush=True)


def _account(
    trained: Trained, published: "Published", rows: LabelledRows, training_run: TrainingRun, config: TrainConfig,
    clock: Clock,
) -> None:  # fmt: skip
    state, info = trained.state, published.bundle.info
    metric, value = info.monitored
    if trained.rejected.count:
        print(f"left out: {trained.rejected}")
    early = ", stopped early" if state.epoch < config.epochs else ""
    print(f"best epoch {state.best_epoch} of {state.epoch}{early}: {metric} {value or 0.0:.4f}")
    print(f"temperature {info.temperature:.3f} ({published.temperature.reason})")
    if published.threshold is not None:
        chosen = published.threshold
        print(
            f"threshold {chosen.value:.4f} ({chosen.rule}): sensitivity there {chosen.sensitivity:.3f}, "
            f"specificity {chosen.specificity:.3f}"
        )
    if published.agreement is not None:
        print(published.agreement)
    kind = "synthetic images; " if info.synthetic else ""
    print(f"bundle {published.bundle.uri} ({kind}research software, not a medical device)")
    if doubt := suspicion(state.history, str(info.training["monitor"]), rows.counts("validation")):
        print(f"note: {doubt}")
    print(info.against_chance)
    print(published.verdict.reason)
    print(f"TensorBoard: tensorboard --logdir {training_run.board}")
    model = join(config.out, config.name) if published.verdict.is_best else published.bundle.uri
    if published.verdict.guesses:
        raise NotBetterThanChanceError(
            f"{info.version} is kept, but {published.verdict.reason}; use it all the same with `leukoray promote "
            f"{join(config.out, config.name)} --version {info.version}`"
        )
    print(f"{clock.seconds:.0f} s. Next: leukoray evaluate {config.manifest} --model {model}")


command = job("train", TrainConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
