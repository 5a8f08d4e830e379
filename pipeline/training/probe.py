"""Training the head alone: a linear model on features that are computed once, fitted to its optimum.

No steps, no epochs, no chance: logistic regression has one best answer for a strength of its penalty, which is chosen
inside the train split. What comes of it is an ordinary network, published as any other.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from pipeline.base.errors import PlatformError
from pipeline.base.machine import usable_memory
from pipeline.model.architectures import build
from pipeline.model.cell_classifier import CellClassifier, WithFeatures
from pipeline.model.export import check_parity
from pipeline.model.feature_graph import with_head
from pipeline.model.trainable import linear_head
from pipeline.sources.manifest import Manifest
from pipeline.training.checkpoint import Best, State, Trained, weights_of
from pipeline.training.display import EpochLog
from pipeline.training.feature_network import feature_network
from pipeline.training.features import QUARTERS, Features, FeatureSource, Network, kept_turns, seconds_an_image
from pipeline.training.folds import groups_of
from pipeline.training.linear import MOST_ITERATIONS, Learnt, choose_strength, fit_head, mean_loss, weigh
from pipeline.training.rejected import refuse_missing_classes
from pipeline.training.rows import LabelledRows
from pipeline.training.run_folder import TrainingRun
from pipeline.training.settings import Settings
from pipeline.training.validation import Scores, measure

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    from pipeline.training.cache import PixelCache

TRAINED_TURNS = QUARTERS  # learning from eight turns gained nothing over these four


@dataclass
class Probe:
    """Fits heads for one start, `initial`: calling it is a run as `fit` is one. All share what is computed once.

    `rows`: all that any run of this probe will ask for.
    """

    initial: bytes
    settings: Settings
    rows: LabelledRows
    manifest: Manifest
    cache: "PixelCache | None"
    connect: "Callable[[], AbstractContextManager[Any]]"
    max_error_share: float
    _model: CellClassifier = field(init=False)
    _network: Network | None = field(init=False, default=None)
    _features: Features | None = field(init=False, default=None)
    _groups: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self._model = build(settings.architecture, settings.outputs, settings.norm, settings.seen)
        self._model.load_state_dict(load(self.initial))
        self._model.eval()

    def __call__(self, settings: Settings, rows: LabelledRows, *, run: TrainingRun, log: EpochLog) -> Trained:
        """Fit the head on `rows.train`, and score `rows.validation`.

        Raises IncompleteError when too many images are damaged, or a class has none left, and what `take` raises.
        """
        began = time.time()
        features = self._taken(run)
        train, validation = (_Split.of(features, table) for table in (rows.train, rows.validation))
        train.refuse_gaps(settings, "training")
        if settings.choose == "best":  # a fold may hold one class alone
            validation.refuse_gaps(settings, "validation")
        weights = weigh(settings, train.targets)
        groups = self._groups[np.searchsorted(features.asked, train.image_ids)]
        turns = train.values[:, :TRAINED_TURNS]
        strength, why = choose_strength(turns.mean(axis=1), train.targets, weights, groups, settings)
        head = fit_head(turns, train.targets, weights, strength, settings)
        scores = Scores(validation.image_ids, validation.targets, head(validation.values[:, : settings.turns]))
        row = self._row(settings, train, scores, head, began)
        if head.iterations >= MOST_ITERATIONS:
            print(f"warning: the head is not at its optimum after {head.iterations} iterations", flush=True)
        print(
            f"head of {head.weight.size:,} weights fitted to {len(train.targets):,} images in {TRAINED_TURNS} turns, "
            f"{head.iterations} iterations; strength C={strength:g} ({why})",
            flush=True,
        )
        log.add(row)
        state = State().after(row, None, 0, 1)
        return Trained(state, Best(self._weights(head), scores), features.noted.rejected)

    def graph(self, model: CellClassifier, input_size: int) -> bytes:
        """The ONNX graph of a network that this probe made. Raises PlatformError when the two engines disagree."""
        head = linear_head(model)
        assert head is not None, "a probe has a linear head"
        weight, bias = (np.asarray(values.detach(), np.float32) for values in (head.weight, head.bias))
        made = with_head(self._features_network().graph, weight, bias)
        check_parity(WithFeatures(model).eval(), made, input_size)
        return made

    def features_of(self, image_ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Of these images (N,), which are usable, and what their features are as they stand, (n, D)."""
        assert self._features is not None, "a probe that has fitted a head knows them"
        usable, values = self._features.of(image_ids)
        return usable, values[:, 0]

    def memory_bytes(self) -> int:
        """What features and the fit take at most: all features, those of the splits, and the fit's own in float64."""
        train: int = self.rows.train.num_rows
        images: int = train + self.rows.validation.num_rows
        kept = images * kept_turns(self._turns) * np.dtype(np.float32).itemsize
        fitted = (images if self.settings.choose == "last" else train) * TRAINED_TURNS * np.dtype(np.float64).itemsize
        return (2 * kept + fitted) * self._features_network().width

    def refuse_too_large(self) -> None:
        """Raise PlatformError where this machine has not the memory: it would be ended without a word."""
        need, (_, free) = self.memory_bytes(), usable_memory()
        if need > free:
            images = sum(table.num_rows for table in self.rows.splits.values())
            raise PlatformError(
                f"the features of {images:,} images and a head's fit take {need / 1e9:.1f} GB of memory, "
                f"{free / 1e9:.1f} GB are free; train with --unfreeze last, which takes them a batch at a time, or on "
                "a machine with more"
            )

    def image_s(self) -> float:
        """Seconds that a core needs for the features of an image whose pixels are there."""
        return seconds_an_image(self._features_network(), self.settings.input_size, self._turns)

    @property
    def _turns(self) -> int:
        return max(TRAINED_TURNS, self.settings.turns)

    def _taken(self, run: TrainingRun) -> Features:
        if self._features is None:
            self.refuse_too_large()
            rows = pa.concat_tables([self.rows.train, self.rows.validation])
            source = FeatureSource(self._features_network(), self.settings.pixels, run.stores, self.cache, self.connect)
            found = source.take(rows, self._turns)
            found.noted.rejected.refuse_too_many(self.max_error_share)
            for kind, count in found.noted.rejected.remarks.items():
                print(f"{count} images: {kind}", flush=True)
            ids = pa.chunked_array([found.asked])
            self._groups = groups_of(self.manifest, ids, "subject", run.stores)
            self._features = found
        return self._features

    def _features_network(self) -> Network:
        if self._network is None:
            settings = self.settings
            self._network = feature_network(self._model, settings.architecture, settings.input_size, self.cache)
        return self._network

    def _weights(self, head: Learnt) -> dict[str, torch.Tensor]:
        weights = weights_of(self._model)
        prefix = f"backbone.{self._model.head}"
        weights[f"{prefix}.weight"] = torch.from_numpy(head.weight)
        weights[f"{prefix}.bias"] = torch.from_numpy(head.bias)
        return weights

    def _row(self, settings: Settings, train: "_Split", scores: Scores, head: Learnt, began: float) -> dict[str, float]:
        """The one line of the history."""
        logits = head(train.values[:, :1])
        return {
            "epoch": 1,
            "step": 1,
            "train_loss": mean_loss(logits, train.targets),
            **measure(scores, settings.task),
            "strength": head.strength,
            "iterations": head.iterations,
            "seconds": time.time() - began,
            "ended_at": time.time(),
        }


@dataclass(frozen=True)
class _Split:
    """The usable images of a split in id order."""

    image_ids: NDArray[np.int64]  # (N,)
    targets: NDArray[np.int64]  # (N,)
    values: NDArray[np.float32]  # (N, turns, D)

    @classmethod
    def of(cls, features: Features, rows: pa.Table) -> "_Split":
        ordered = rows.sort_by("image_id")
        ids, targets = ordered["image_id"].to_numpy(), ordered["target"].to_numpy()
        usable, values = features.of(ids)
        return cls(ids[usable], targets[usable], values)

    def refuse_gaps(self, settings: Settings, what: str) -> None:
        counts = np.bincount(self.targets, minlength=len(settings.classes)).tolist()
        refuse_missing_classes(counts, settings.classes, what)
