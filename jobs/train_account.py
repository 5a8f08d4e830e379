"""What a person is told when `leukoray train` has published: what the model is, where it lies, what comes next."""

from typing import TYPE_CHECKING

from jobs.common import Clock
from jobs.train_options import TrainConfig
from pipeline.base.errors import NotBetterThanChanceError
from pipeline.model.reference import described
from pipeline.storage.uris import join
from pipeline.training.checkpoint import Trained
from pipeline.training.rows import LabelledRows
from pipeline.training.run_folder import TrainingRun
from pipeline.training.suspicion import suspicion

if TYPE_CHECKING:
    from pipeline.training.publish import Published


def tell_end(
    trained: Trained, published: "Published", rows: LabelledRows, training_run: TrainingRun, config: TrainConfig,
    clock: Clock,
) -> None:  # fmt: skip
    state, info = trained.state, published.bundle.info
    metric, value = info.monitored
    if trained.rejected.count:
        print(f"left out: {trained.rejected}")
    early = ", stopped early" if state.epoch < (config.epochs or 0) else ""
    when = f"best epoch {state.best_epoch} of {state.epoch}{early}: " if len(state.history) > 1 else ""
    print(f"{when}{metric} {'undefined' if value is None else f'{value:.4f}'}")
    print(f"temperature {info.temperature:.3f} ({published.temperature.reason})")
    if published.threshold is not None:
        chosen = published.threshold
        print(
            f"threshold {chosen.value:.4f} ({chosen.rule}): sensitivity there {chosen.sensitivity:.3f}, "
            f"specificity {chosen.specificity:.3f}"
        )
    for told in filter(None, (published.review, published.agreement)):
        print(told)
    print(f"out of distribution: {described(info.ood)}")
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
