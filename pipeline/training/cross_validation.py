"""Train once for each fold and gather what the models say of the images that they did not see.

Nothing is chosen by the fold that is held out: its model is the one after the last epoch.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.model.bundle import class_columns
from pipeline.model.prediction import probabilities
from pipeline.model.registry import ModelFolder
from pipeline.storage.uris import join
from pipeline.training import validation
from pipeline.training.checkpoint import Trained
from pipeline.training.display import EpochLog
from pipeline.training.folds import Folds
from pipeline.training.records import Records
from pipeline.training.rows import LabelledRows
from pipeline.training.run_folder import TrainingRun, held_run
from pipeline.training.settings import Settings
from pipeline.training.validation import Scores, measure

_SHOWN = (("val_auc", "ROC-AUC"), ("val_balanced_accuracy", "balanced accuracy"))


class Fit(Protocol):
    def __call__(self, settings: Settings, rows: LabelledRows, *, run: TrainingRun, log: EpochLog) -> Trained:
        """Train, or continue, `run`."""


@dataclass(frozen=True)
class OutOfFold:
    """Scores of every image by the model of the folds that it is not in, in id order."""

    scores: Scores
    fold: NDArray[np.int64]  # (N,)
    metrics: list[dict[str, float]]  # of each fold

    def spread(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of a metric over the folds where it is defined; NaN where too few are."""
        known = self._known(name)
        mean = float(known.mean()) if len(known) else np.nan
        return mean, float(known.std(ddof=1)) if len(known) > 1 else np.nan

    def _known(self, name: str) -> NDArray[np.float64]:
        values = np.array([fold[name] for fold in self.metrics])
        known: NDArray[np.float64] = values[np.isfinite(values)]
        return known

    def __str__(self) -> str:
        parts = []
        for name, title in _SHOWN:
            mean, deviation = self.spread(name)
            count = len(self._known(name))
            of = "" if count == len(self.metrics) else f" ({count} of them hold more than one class)"
            parts.append(f"{title} {_number(mean)} +- {_number(deviation)}{of}")
        return f"out of fold, mean and standard deviation over {len(self.metrics)} folds: {', '.join(parts)}"

    def table(self, temperature: float, classes: tuple[str, ...]) -> pa.Table:
        """image_id, fold, target (a class's name) and the calibrated probability of each class."""
        said = probabilities(self.scores.logits, temperature)  # (N, C)
        columns = {
            "image_id": pa.array(self.scores.image_ids, pa.int64()),
            "fold": pa.array(self.fold + 1, pa.int64()),
            "class": pa.array([classes[target] for target in self.scores.targets], pa.string()),
            **{name: pa.array(said[:, number], pa.float64()) for number, name in enumerate(class_columns(classes))},
        }
        return pa.table(columns)


def cross_validate(
    folds: Folds, settings: Settings, folder: ModelFolder, run: TrainingRun, digest: str, fit: Fit
) -> OutOfFold:
    """Train and score each fold, one after the other; what `run` has of them already is not done again.

    Raises what `fit` raises.
    """
    chosen = replace(settings, choose="last")
    parts = []
    for number in range(folds.count):
        path = join(run.uri, f"fold-{number + 1}.npz")
        kept = run.stores.read_if_there(path)
        rows = folds.without(number)
        if kept is not None:
            scores = Scores.unpacked(kept)
        else:
            print(f"fold {number + 1} of {folds.count}: {rows.validation.num_rows} images held out", flush=True)
            with _held_out(chosen, rows, folder, f"{digest}:{number}", fit) as scores:
                run.check_lock()
                run.stores.of(path).write(path, scores.packed())
        parts.append(scores)
        print(f"fold {number + 1} of {folds.count}: {_told(measure(scores, settings.task))}", flush=True)
    return joined(folds, parts, settings.task)


def joined(folds: Folds, parts: list[Scores], task: str) -> OutOfFold:
    scores = validation.joined(parts)
    return OutOfFold(scores, folds.fold_of(scores.image_ids), [measure(part, task) for part in parts])


@contextlib.contextmanager
def _held_out(settings: Settings, rows: LabelledRows, folder: ModelFolder, name: str, fit: Fit) -> Iterator[Scores]:
    """What a fold's model says of it. Its run is closed when the block has kept that: a kill before costs no epoch."""
    with held_run(folder, settings.digest(name)) as run:
        with Records(run, settings, rows, None) as log:
            scores = fit(settings, rows, run=run, log=log).best.scores
        run.check_lock()
        yield scores
        run.close("held out")


def _told(metrics: dict[str, float]) -> str:
    return ", ".join(f"{title} {_number(metrics[name])}" for name, title in _SHOWN)


def _number(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "undefined"
