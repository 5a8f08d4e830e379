"""What a person can choose of a training run, and what is chosen where they have not."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config import LineageConfig, positional
from pipeline.base.errors import UsageError
from pipeline.base.resources import ClusterPlan, Node, training_plan
from pipeline.evaluation.calibration import Costs
from pipeline.evaluation.subject_labels import check_label
from pipeline.model.choices import Norm, Unfreeze
from pipeline.model.subject_rules import SubjectLabel
from pipeline.model.turns import Turns
from pipeline.sources.manifest import Manifest
from pipeline.storage.uris import absolute, is_s3
from pipeline.training.folds import GroupBy
from pipeline.training.recipe import Start, choose_start, planned_patience
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Balance
from pipeline.training.tracking import check_tracking_uri

_WORDS_FOR_WEIGHTS = ("auto", "none", "imagenet")


# What only training in steps heeds
OF_STEPS = {
    "epochs", "batch_size", "accumulate", "learning_rate", "layer_decay", "optimizer", "weight_decay", "warmup",
    "clip_norm", "patience", "label_smoothing", "augment", "amp", "workers", "cpus_per_worker", "use_gpu",
    "teacher",
}  # fmt: skip


class TrainConfig(LineageConfig):
    """Train a network on a manifest's train split, choose the best epoch on its validation split, publish a bundle."""

    manifest: str = positional(description="manifest made by `leukoray ingest`, a folder or s3:// prefix")
    out: str = Field("models", description="registry: the bundle goes to <out>/<name>/<version>/")
    name: str = Field(
        "leukoray", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the model's name in the registry"
    )
    architecture: str | None = Field(
        None,
        description="network, e.g. cnn, resnet18, timm:NAME (default: efficientnet-lite0 where its weights are there)",
    )
    input_size: int | None = Field(
        None, ge=16, le=1024, description="pixels, square, that images are brought to (default: by network)"
    )
    center: float | None = Field(
        None,
        ge=0.25,
        le=1,
        description="share of an image's side, about its middle, that the network sees, at --input-size (default: 1, "
        "or what training images of single cells ask for)",
    )
    bit_depth: int | None = Field(
        None, ge=8, le=16, description="bits that count in 16-bit samples (default: as files state, else a guess)"
    )
    weights: str = Field(
        "auto", description="start from: none, imagenet, a .pth or .safetensors file; auto: imagenet where installed"
    )
    teacher: str | None = Field(
        None,
        description="bundle or registry of the same classes, whose answers are learnt too: a small network nears a "
        "large one",
    )
    unfreeze: Unfreeze = Field(
        "all",
        description="what trains of known weights; head: fitted, no steps; lora: changes of attention, head",
    )
    norm: Norm | None = Field(
        None,
        description="batch normalization as it is, frozen (with the statistics of the weights), or group in its place "
        "(default: frozen where it has weights)",
    )
    task: Literal["auto", "binary", "multiclass"] = Field(
        "auto", description="auto: binary where the manifest labels positive and negative, else by class names"
    )
    epochs: int | None = Field(None, ge=1, description="passes over the train split (default: by its size)")
    batch_size: int = Field(32, ge=1, le=65_536, description="images of one optimizer step, over all workers")
    accumulate: int = Field(1, ge=1, description="parts of a worker's share of a batch, one after the other in memory")
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate (default: by start)")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of a layer as a share of that of the next one"
    )
    optimizer: Literal["adam", "adamw"] = Field("adamw", description="optimizer")
    weight_decay: float = Field(1e-2, ge=0, description="weight decay of matrices")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the learning rate rises")
    clip_norm: float = Field(1.0, ge=0, description="gradient norm is clipped to this; 0: never")
    patience: int | None = Field(
        None, ge=0, description="stop after so many epochs without a better metric; 0: never (default: half of them)"
    )
    label_smoothing: float = Field(0.05, ge=0, lt=0.5, description="share of certainty that labels do not claim")
    balance: Balance | None = Field(
        None,
        description="rare classes weigh as much as others in the loss, or are drawn as often (sample) "
        "(default: loss where there are more than two)",
    )
    augment: bool = Field(True, description="random turns, place, focus, stain and light of training images")
    tta: Turns = Field(1, description="turned and mirrored views of an image, whose mean is the model's answer")
    amp: bool = Field(True, description="bfloat16 arithmetic on GPUs")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="the same seed on the same machine gives the same model")
    folds: int | None = Field(
        None, ge=2, description="cross-validate over so many folds first; threshold and temperature come from them"
    )
    group_by: GroupBy = Field("subject", description="what folds never divide; with site and no --folds, one site each")
    workers: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]{0,4}(:[1-9][0-9]{0,4})?$",
        description="data-parallel workers (default: a GPU each, else 2, 1 on one core); 2:8: as many as there is room "
        "for, fewer when a node is lost and more when one comes",
    )
    cpus_per_worker: float | None = Field(None, ge=1e-4, description="Ray CPUs a worker holds (default: by cores)")
    use_gpu: bool | None = Field(None, description="train on GPUs (default: where the cluster has them)")
    cache: str | None = Field(
        None, description="folder of decoded images on each node; none: no cache (default: ~/.cache/leukoray/pixels)"
    )
    cache_bytes: int | None = Field(
        None, ge=0, description="size of all files of the cache (default: half of what its disk has free)"
    )
    target_sensitivity: float | None = Field(
        None, gt=0, le=1, description="choose the threshold for this sensitivity (default: balanced accuracy)"
    )
    costs: str | None = Field(
        None,
        description="what a miss and a false alarm cost, as FN=5,FP=1: weighs classes, chooses the threshold",
    )
    review_error: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="leave to a person ('review') what it takes that at most this share of either class is decided "
        "wrongly, for new subjects",
    )
    subject_label: str | None = Field(
        None,
        description="which subjects are positive as a whole, by a column of the manifest, as diagnosis=APL (default: "
        "those with more than 20 % truly positive cells)",
    )
    sketch: bool = Field(
        True,
        description="keep hashes of the training images in the bundle, so that they are known again: by anybody who "
        "has it",
    )
    single_writer: bool = Field(
        False, description="only this run ever writes to --out: for S3 stores that heed no conditional writes"
    )
    max_error_share: float = Field(0.05, ge=0, le=1, description="share of unreadable images above which to fail")
    dry_run: bool = Field(
        False, description="measure a few steps, say what would be done and how long it takes, and draw what is seen"
    )
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

    @field_validator("workers", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("workers")
    @classmethod
    def _in_order(cls, value: str | None) -> str | None:
        if value is not None and int(value.split(":")[0]) > int(value.split(":")[-1]):
            raise ValueError("the first number is the fewest workers, the second the most")
        return value

    @property
    def worker_range(self) -> tuple[int | None, int | None]:
        """The fewest workers, where they may become fewer, and the most."""
        if self.workers is None:
            return None, None
        fewest, _, most = self.workers.partition(":")
        return (int(fewest), int(most)) if most else (None, int(fewest))

    def plan(self, nodes: Sequence[Node]) -> ClusterPlan:
        """What training holds on these nodes."""
        fewest, most = self.worker_range
        plan = training_plan(nodes, most, self.cpus_per_worker, self.use_gpu, fewest)
        if plan.workers > self.batch_size:  # `refuse_idle_workers` where their number was given
            plan = training_plan(nodes, self.batch_size, self.cpus_per_worker, self.use_gpu)
        return plan

    @field_validator("weights")
    @classmethod
    def _absolute_file(cls, value: str) -> str:
        return value if value in _WORDS_FOR_WEIGHTS else absolute(value)

    @field_validator("teacher")
    @classmethod
    def _absolute_bundle(cls, value: str | None) -> str | None:
        return value if value is None else absolute(value)

    @field_validator("tta", mode="before")
    @classmethod
    def _a_number(cls, value: Any) -> Any:
        """As typed; a Literal of numbers takes no words."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("costs")
    @classmethod
    def _two_costs(cls, value: str | None) -> str | None:
        if value is not None:
            Costs.parse(value)
        return value

    @field_validator("subject_label")
    @classmethod
    def _a_label(cls, value: str | None) -> str | None:
        if value is not None:
            SubjectLabel.parse(value)
        return value

    @property
    def label_of_subjects(self) -> SubjectLabel | None:
        return None if self.subject_label is None else SubjectLabel.parse(self.subject_label)

    def refuse_unknown_label(self, manifest: Manifest, rows: LabelledRows) -> None:
        """Raise as `check_label`, before anything is trained."""
        if self.label_of_subjects is not None:
            check_label(manifest, self.label_of_subjects, has_disease=bool(rows.positive_classes))

    @property
    def costs_of_mistakes(self) -> Costs | None:
        return None if self.costs is None else Costs.parse(self.costs)

    @property
    def has_folds(self) -> bool:
        return self.folds is not None or self.group_by != "subject"

    @model_validator(mode="after")
    def _one_rule_for_the_threshold(self) -> "TrainConfig":
        if self.costs is not None and self.target_sensitivity is not None:
            raise ValueError("--costs and --target-sensitivity are two rules for one threshold: give one of them")
        return self

    @model_validator(mode="after")
    def _nothing_seen_before(self) -> "TrainConfig":
        if self.teacher is not None and self.has_folds:
            raise ValueError(
                "--teacher and folds: the teacher has seen the images that folds hold out, so they would tell too "
                "much; cross-validate without it"
            )
        return self

    @field_validator("mlflow")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        return value if value is None else check_tracking_uri(value)


def chosen_start(config: TrainConfig) -> Start:
    """Raises UsageError for an unknown architecture."""
    return choose_start(config.architecture, config.weights, config.input_size, config.norm)


def refuse_steps(config: TrainConfig) -> None:
    """Raise UsageError for an option of training in steps, where a head is fitted: it would decide nothing."""
    given = sorted(OF_STEPS & config.model_fields_set)
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{flags}: a head alone is fitted to its optimum, not trained in steps; leave it out")


def refuse_decisions(config: TrainConfig, manifest: Manifest, rows: LabelledRows) -> None:
    """Raise UsageError where the images cannot tell what is asked of the decision rule."""
    asked = {
        "target-sensitivity": config.target_sensitivity,
        "review-error": config.review_error,
        "costs": config.costs,
    }
    for name, value in asked.items():
        if value is not None and not rows.positive_classes:
            raise UsageError(
                f"--{name}: no class of this manifest means disease, so there is no decision to tune; name the ones "
                "that do with `leukoray ingest --positive CLASS`, or leave it out"
            )
    if config.review_error is not None:
        from pipeline.training.judgement import refuse_review  # SciPy, for a command that may be a rehearsal

        refuse_review(manifest, rows, config.review_error, has_folds=config.has_folds)


def refuse_idle_workers(config: TrainConfig) -> None:
    """Raise UsageError where a batch has no image for some workers: their statistics would stay as they began."""
    most = config.worker_range[1]
    if most and most > config.batch_size:
        raise UsageError(
            f"--workers {config.workers}: a batch has {config.batch_size} images, so some workers would never see "
            f"one; use at most {config.batch_size}, or a larger --batch-size"
        )


def with_defaults(config: TrainConfig, start: Start, rows: LabelledRows, *, is_fitted: bool = False) -> TrainConfig:
    """The configuration with nothing left open but what the cluster decides. `is_fitted`: there are no steps."""
    epochs = 1 if is_fitted else config.epochs or start.epochs(rows.train.num_rows)
    chosen: dict[str, Any] = {
        "architecture": start.architecture,
        "weights": start.weights,
        "input_size": start.input_size,
        "center": config.center or 1.0,
        "norm": start.norm,
        "epochs": epochs,
        "learning_rate": config.learning_rate or start.learning_rate,
        "patience": planned_patience(epochs) if config.patience is None else config.patience,
        "balance": config.balance or ("none" if rows.task == "binary" else "loss"),
    }
    return config.model_copy(update=chosen)
