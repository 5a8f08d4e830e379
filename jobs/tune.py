"""Search the settings of training on Ray Tune, and say which did best on the validation split."""

if __name__ == "__main__":  # ahead of imports that need the extra `train`: one that is missing is told in a sentence
    from jobs.cli import as_program

    as_program("tune")

import hashlib
import json
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from jobs import train
from jobs.common import Clock, job, show_config, writing_stores
from jobs.config import Option, options, validated
from jobs.record import Account, recorded
from jobs.train_options import TrainConfig, chosen_start, with_defaults
from pipeline.base.cluster import alive_nodes, connected, tell_waiting
from pipeline.base.errors import UsageError
from pipeline.base.resources import ClusterPlan, Node, check, in_all, training_plan
from pipeline.model.architectures import check_architecture
from pipeline.model.choices import Unfreeze
from pipeline.model.starting_weights import check_start
from pipeline.sources.manifest import Manifest, read_manifest
from pipeline.storage.lock import locked
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join
from pipeline.training.center import center_for
from pipeline.training.recipe import Start, fits_head
from pipeline.training.rows import LabelledRows
from pipeline.training.search import Candidate, first_rung, search
from pipeline.training.search_folder import Search
from pipeline.training.search_report import Trial, as_csv, as_table, picture, ranked
from pipeline.training.search_space import Space, proposal, read_space
from pipeline.training.settings import Settings
from pipeline.training.single_images import refuse_single_images
from pipeline.training.teacher import Teacher

TUNABLE = (
    "architecture", "weights", "input_size", "norm", "unfreeze", "batch_size", "learning_rate", "layer_decay",
    "optimizer", "weight_decay", "warmup", "clip_norm", "label_smoothing", "balance", "augment",
)  # fmt: skip
WHOLE = {option.name for option in options(TrainConfig) if option.kind is int}
Proposals = Mapping[int, Mapping[str, str]]
_SEARCHES, _CSV, _PICTURE = ".searches", "trials.csv", "trials.png"
EXAMPLES = """examples:
  leukoray tune manifest/                                           # 16 trials around the settings of `leukoray train`
  leukoray tune manifest/ --architecture resnet18 --epochs 12 --trials 24
  leukoray tune manifest/ --space learning_rate=1e-4..1e-2 architecture=cnn,cnn-se batch_size=16,32

The same command continues an interrupted search; with more --trials it adds to it. Every option of `leukoray train`
holds for all trials. Research software, not a medical device."""


class TuneConfig(TrainConfig):
    """Try settings of training, end the poor ones early, and say which did best on the validation split."""

    trials: int = Field(16, ge=2, le=1000, description="settings to try; the first are those of leukoray train")
    space: list[str] = Field(
        ["learning_rate=1e-4..3e-3", "weight_decay=1e-3..1e-1", "label_smoothing=0,0.05,0.1"],
        description="what to search: NAME=LOW..HIGH (by its logarithm) or NAME=ONE,OTHER",
    )


def main(config: TuneConfig) -> None:
    clock, model = Clock(), join(config.out, config.name)
    _refuse_what_is_of_one_run(config)
    stores = writing_stores(config, model, single_writer=config.single_writer)
    manifest = read_manifest(config.manifest, stores)
    space = read_space(config.space, TUNABLE, WHOLE)
    start = chosen_start(config)
    rows = train._checked_rows(manifest, config, start)
    given = with_defaults(config, start, rows)
    teacher = train._teacher(manifest, rows, config, stores)
    whole = train._settings(given, rows, "1", teacher)
    seen = center_for(manifest, rows, config.center, teacher, whole, stores, train._cache(given, whole))
    config = config.model_copy(update={"center": seen.share})
    given = with_defaults(config, start, rows)
    show_config(given)
    train._tell(start, seen)
    with recorded("tune", given, stores) as kept:
        _search(config, given, stores, manifest, rows, space, teacher, clock, kept)


def _search(
    config: TuneConfig, given: TrainConfig, stores: Stores, manifest: Manifest, rows: LabelledRows, space: Space,
    teacher: Teacher | None, clock: Clock, kept: Account,
) -> None:  # fmt: skip
    model = join(config.out, config.name)
    proposals = {number: proposal(space, number, config.seed) for number in range(config.trials)}
    candidates = _different(_candidates(config, proposals, given.epochs, rows, teacher, stores))
    with connected(config.address, config.num_cpus, worker_logs=config.debug) as ray:
        nodes = alive_nodes(ray)
        plan, threads = _plan(nodes, config)
        check(plan, nodes)
        _announce(len(candidates), config, space, plan, threads, candidates[0].settings.epochs)
        tell_waiting(ray, plan)
        uri = join(model, _SEARCHES, _digest(config, candidates[0], manifest)[:12])
        with locked(uri, "the same search", stores, advice="wait for it, or change --seed or --name") as check_lock:
            settings = candidates[0].settings
            kept.begin(uri, manifest=manifest.info.digest)
            tried = {number: proposals[number] for number in candidates}
            work = Search(uri, stores, check_lock, tried, settings.monitor, settings.epochs)
            trials = search(
                work, candidates, rows, plan, teacher=teacher, threads=threads,
                max_error_share=config.max_error_share, say=_say,
            )  # fmt: skip
            check_lock()
            images = {split: sum(rows.counts(split)) for split in ("train", "validation")}
            kept.keep(uri, images | {"trials": len(trials)}, manifest=manifest.info.digest)
            _write(work, trials, space, rows)
    _account(work, trials, space, config, given, clock)


def _refuse_what_is_of_one_run(config: TuneConfig) -> None:
    """Raise UsageError for an option that a search would not heed."""
    if config.has_folds:
        raise UsageError("--folds: trials share one validation split; cross-validate the best: leukoray train --folds")
    if config.dry_run:
        raise UsageError(
            "--dry-run: a search has none; `leukoray train --dry-run` with the same options tells the plan, memory and "
            "time of one trial"
        )


def _say(text: str) -> None:
    print(text, flush=True)


def _candidates(
    config: TuneConfig,
    proposals: Mapping[int, Mapping[str, str]],
    epochs: int | None,
    rows: LabelledRows,
    teacher: Teacher | None,
    stores: Stores,
) -> dict[int, Candidate]:
    """What each trial trains, all for `epochs`. Raises UsageError for a value that its option does not take."""
    initial: dict[tuple[Start, Unfreeze], bytes | None] = {}
    made = {}
    for number, values in proposals.items():
        wanted = config.model_dump(exclude_unset=True) | {"epochs": epochs} | dict(values)
        changed = validated(TuneConfig, wanted, "--space")
        start = chosen_start(changed)
        check_architecture(start.architecture, start.input_size, start.norm)
        check_start(start.architecture, start.weights, start.norm, changed.unfreeze)
        if fits_head(start, changed.unfreeze):
            raise UsageError(
                "--unfreeze head: a head alone is fitted to its optimum, so there is nothing to search; use `leukoray "
                "train --unfreeze head`"
            )
        begun = start, changed.unfreeze
        if begun not in initial:
            initial[begun] = train._initial_weights(start, rows, changed, stores)
        settings = train._settings(with_defaults(changed, start, rows), rows, "1", teacher)
        refuse_single_images(settings, 1)
        made[number] = Candidate(settings, initial[begun], train._cache(changed, settings))
    return made


def _different(candidates: Mapping[int, Candidate]) -> dict[int, Candidate]:
    """Without those that train what an earlier one does, bit for bit: a space of few choices has no more."""
    first: dict[tuple[Settings, bytes | None], int] = {}
    for number, each in candidates.items():
        first.setdefault((each.settings, each.initial), number)
    return {number: candidates[number] for number in first.values()}


def _plan(nodes: list[Node], config: TuneConfig) -> tuple[ClusterPlan, int]:
    """What trials hold at the same time, and the cores of each. A core each makes most of small networks."""
    cores, gpus = int(in_all(nodes, "CPU")), int(in_all(nodes, "GPU"))
    on_gpu = gpus > 0 if config.use_gpu is None else config.use_gpu
    count = config.worker_range[1] or min(config.trials, max(1, gpus if on_gpu else cores))
    return training_plan(nodes, count, config.cpus_per_worker, on_gpu), max(1, cores // count)


def _digest(config: TuneConfig, first: Candidate, manifest: Manifest) -> str:
    """Of all that decides what a trial comes to, but not of how many there are: more may be added."""
    others = (manifest.info.digest, hashlib.sha256(first.initial or b"").hexdigest(), json.dumps(config.space))
    return first.settings.digest(*others)


def _announce(trials: int, config: TuneConfig, space: Space, plan: ClusterPlan, threads: int, epochs: int) -> None:
    more = config.trials - trials
    fewer = f"; {more} more of --trials {config.trials} would repeat one of these" if more else ""
    print(f"searching {', '.join(space)}: {trials} trials, the first as given{fewer}", flush=True)
    print(
        f"{plan.workers} at the same time, {threads} core{'s' if threads > 1 else ''} each; of {epochs} epochs all get "
        f"{first_rung(epochs)}, a third of them goes on from there",
        flush=True,
    )


def _write(work: Search, trials: list[Trial], space: Space, rows: LabelledRows) -> None:
    store = work.stores.of(work.uri)
    title = (
        f"{len(trials)} trials on {rows.validation.num_rows} validation images. Red: the best; hollow: ended early; "
        "dashed: the settings as given. Not a medical device"
    )
    store.write(join(work.uri, _CSV), as_csv(trials, space, work.metric).encode())
    store.write(join(work.uri, _PICTURE), picture(trials, space, work.metric, title))


def _account(
    work: Search, trials: list[Trial], space: Space, config: TuneConfig, given: TrainConfig, clock: Clock
) -> None:
    print(as_table(trials, space, work.metric, {name: str(getattr(given, name)) for name in space}))
    print(f"* as given. table {join(work.uri, _CSV)}, picture {join(work.uri, _PICTURE)}")
    best = ranked(trials, work.metric)[0]
    found = "the settings as given" if not best.proposal else f"trial {best.number}"
    print(
        f"best on validation: {found}, {work.metric.replace('_', ' ')} {best.best(work.metric):.4f}. The best of many "
        "on the same images is flattered: what it is worth is said by other patients (leukoray evaluate)"
    )
    print(f"{clock.seconds:.0f} s. Next: {command_of(config, given, best.proposal)}")


def command_of(config: TuneConfig, planned: TrainConfig, values: Mapping[str, str]) -> str:
    """`leukoray train` as it was given here, with the values of a trial.

    All trials are as long as the first, as it was `planned`; `train` alone would plan by the start that a trial chose.
    """
    known = {option.name: option for option in options(TrainConfig)}
    words = ["leukoray", "train", config.manifest]
    given = config.model_dump(mode="json", include=config.model_fields_set & set(known) - {"manifest", "workers"})
    length = {"epochs": planned.epochs, "patience": planned.patience}
    for name, value in (given | length | dict(values)).items():
        words += _flag(known[name], value)
    return shlex.join(words)


def _flag(option: Option, value: Any) -> list[str]:
    if value is None:
        return []
    if option.kind is bool:
        is_on = value if isinstance(value, bool) else str(value).lower() in ("true", "1", "yes", "on")
        return [option.flag if is_on else option.flag.replace("--", "--no-", 1)]
    return [option.flag, *(map(str, value) if option.is_list else [str(value)])]


command = job("tune", TuneConfig, main, EXAMPLES)
