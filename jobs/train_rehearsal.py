"""`leukoray train --dry-run`: what would be done, how long it would take and what the network would see."""

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from jobs.train_options import OF_STEPS, TrainConfig
from pipeline.base.cluster import alive_nodes, connected
from pipeline.base.machine import usable_cores, usable_memory, visible_cards
from pipeline.base.resources import ClusterPlan, Node, check
from pipeline.base.text import human_time
from pipeline.model.registry import RUNS, ModelFolder
from pipeline.storage.uris import join
from pipeline.training.order import steps_per_epoch
from pipeline.training.preview import augmentation_sheet, png
from pipeline.training.rehearsal import Rehearsal, rehearse
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings
from pipeline.training.teacher import Teacher

if TYPE_CHECKING:
    from pipeline.training.probe import Probe

# What decides the model, by the names of options
_SETTINGS = ("weights", *(each.name for each in fields(Settings)))
_DECIDING = [name for name in _SETTINGS if name in TrainConfig.model_fields]
_SHEET = f"{RUNS}/dry-run.png"


def planned(config: TrainConfig) -> ClusterPlan:
    """The plan for the cluster that would be used; a local Ray's is known without starting it. Raises PlatformError."""
    nodes: list[Node]
    if config.address or os.environ.get("RAY_ADDRESS"):
        with connected(config.address, config.num_cpus) as ray:
            nodes = list(alive_nodes(ray))
    else:
        nodes = [{"CPU": config.num_cpus or usable_cores(), "GPU": visible_cards()}]
    plan = config.plan(nodes)
    check(plan, nodes)
    return plan


def tell(
    config: TrainConfig,
    given: TrainConfig,
    settings: Settings,
    rows: LabelledRows,
    plan: ClusterPlan,
    folder: ModelFolder,
    initial: bytes | None,
    teacher: Teacher | None,
    runs: Sequence[LabelledRows],
) -> None:
    """`given` as by the user, `config` with all that was left open; `runs` with these settings: folds, the last.

    A fold trains on other images than the last run: of training and validation all but its own.
    """
    found = rehearse(settings, rows, plan, folder.stores, initial, teacher)
    _tell_choices(config, given, _DECIDING)
    print(f"{'network':<9} {_network(settings, found)}")
    print(f"{'steps':<9} {_steps(settings, runs)}")
    print(f"{'memory':<9} {_memory(plan, found)}")
    print(f"{'time':<9} {_time(settings, plan, found, runs)}")
    uri, made = join(folder.uri, _SHEET), augmentation_sheet(rows.train, settings, folder.stores)
    if made is not None:
        folder.stores.of(uri).write(uri, png(made))
        print(f"{'look at':<9} {uri}")
    print("nothing was trained or published; without --dry-run it is")


def tell_fit(
    config: TrainConfig, given: TrainConfig, settings: Settings, rows: LabelledRows, probe: "Probe", runs: int
) -> None:
    """As `tell`, of a head that is fitted to features."""
    images, cores = rows.train.num_rows + rows.validation.num_rows, config.num_cpus or usable_cores()
    seconds = images * probe.image_s() / cores
    _tell_choices(config, given, [name for name in _DECIDING if name not in OF_STEPS])
    print(f"{'network':<9} {settings.architecture}, {_seen(settings)}: its head alone is fitted")
    print(f"{'features':<9} of {images:,} images: about {human_time(seconds)} on {cores} cores, kept for later runs")
    need, free = probe.memory_bytes() / 1e6, usable_memory()[1] / 1e6
    print(f"{'memory':<9} {need:,.0f} MB for features and fit, {free:,.0f} MB are free")
    print(f"{'fits':<9} {runs}, some seconds each")
    print("nothing was trained or published; without --dry-run it is")


def _tell_choices(config: TrainConfig, given: TrainConfig, deciding: Sequence[str]) -> None:
    names = [name for name in deciding if getattr(config, name) is not None]
    for title, is_given in (("given", True), ("chosen", False)):
        values = [f"{name}={getattr(config, name)}" for name in names if (name in given.model_fields_set) is is_given]
        print(f"{title:<9} {'  '.join(values) or 'nothing'}")


def _network(settings: Settings, found: Rehearsal) -> str:
    share = found.trainable / found.parameters
    return (
        f"{settings.architecture}, {_seen(settings)}: {found.parameters:,} parameters, {found.trainable:,} "
        f"of them train ({share:.0%}, --unfreeze {settings.unfreeze})"
    )


def _seen(settings: Settings) -> str:
    return f"{settings.seen} px" if settings.center == 1 else f"the middle {settings.seen} of {settings.input_size} px"


def _steps(settings: Settings, runs: Sequence[LabelledRows]) -> str:
    steps = [steps_per_epoch(run.train.num_rows, settings.batch_size) for run in runs]
    several = f"{len(runs)} runs of " if len(runs) > 1 else ""
    each = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
    early = f"; ends after {settings.patience} epochs without a better {settings.monitor}" if settings.patience else ""
    total = settings.epochs * sum(steps)
    return f"{several}{settings.epochs} epochs of {each} steps of {settings.batch_size} images: {total:,}{early}"


def _memory(plan: ClusterPlan, found: Rehearsal) -> str:
    where = "of the GPU " if plan.gpus else ""
    each = f"{found.memory_bytes / 1e6:,.0f} MB {where}a worker"
    return f"{each}, {plan.workers} of them; all images decoded fill {found.pixels_bytes / 1e6:,.0f} MB of the cache"


def _time(settings: Settings, plan: ClusterPlan, found: Rehearsal, runs: Sequence[LabelledRows]) -> str:
    steps = [steps_per_epoch(run.train.num_rows, settings.batch_size) for run in runs]
    epochs_s = [found.epoch_s(count, run, plan.workers) for count, run in zip(steps, runs, strict=True)]
    rate = settings.batch_size / found.speed.step_s
    total = settings.epochs * sum(epochs_s)
    return (
        f"about {human_time(total)}, an epoch {human_time(epochs_s[-1])} ({rate:.0f} images/s); "
        f"to decode {human_time(found.decoding_s(runs[-1]))} where the cache has nothing, and what Ray takes to start"
    )
