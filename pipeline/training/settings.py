"""What decides the weights: with the same settings, rows and machine, training gives the same model."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from pipeline.images.load import Preprocessing
from pipeline.model.choices import Norm, Unfreeze
from pipeline.model.seen import seen_size
from pipeline.model.turns import Turns
from pipeline.training.rows import Task

Optimizer = Literal["adam", "adamw"]
Balance = Literal["none", "loss", "sample"]  # rare classes weigh as much as others in the loss, or are drawn as often

Choice = Literal["best", "last"]  # the epoch whose weights are kept: by validation, or whatever it says


@dataclass(frozen=True)
class Settings:
    """Everything a worker must know. `batch_size` counts the images of one optimizer step over all workers."""

    architecture: str
    task: Task
    classes: tuple[str, ...]
    input_size: int  # pixels a side of the images that workers get
    pretrained: bool  # starts with features that were learned elsewhere
    unfreeze: Unfreeze  # which layers train
    epochs: int
    batch_size: int
    accumulate: int  # parts of a worker's share of a batch that go through the network one after the other
    learning_rate: float
    layer_decay: float  # learning rate of a layer as a share of that of the next
    optimizer: Optimizer
    weight_decay: float
    warmup: float  # share of all steps
    clip_norm: float
    patience: int  # epochs without a better monitored metric; 0: never stop early
    label_smoothing: float
    balance: Balance
    augment: bool
    amp: bool  # bfloat16 on CUDA
    workers: str  # how many, or "2:8" where their number may change: sums of floats depend on it
    seed: int
    positive: tuple[int, ...] = (1,)  # classes that mean disease
    costs: tuple[float, float] | None = None  # of a miss, of a false alarm
    choose: Choice = "best"
    norm: Norm = "batch"
    center: float = 1.0  # share of a side, about the middle, that the network sees
    turns: Turns = 1  # of an image in prediction; epochs are compared by one
    bit_depth: int | None = None  # of 16-bit samples; None: as files say
    teacher: str | None = None  # identity of the bundle whose answers are learnt

    @property
    def pixels(self) -> Preprocessing:
        return Preprocessing(self.input_size, bit_depth=self.bit_depth)

    @property
    def seen(self) -> int:
        """Pixels a side that the network sees, in the middle of `input_size`."""
        return seen_size(self.input_size, self.center)

    @property
    def outputs(self) -> int:
        return 1 if self.task == "binary" else len(self.classes)

    @property
    def monitor(self) -> str:
        """The validation metric that chooses the best epoch; higher is better."""
        return "val_auc" if self.task == "binary" else "val_balanced_accuracy"

    def digest(self, *others: str) -> str:
        """SHA-256, hex, of the settings and what else decides the weights: manifest, starting weights, pixel rules."""
        deciding = [asdict(self), *others, self.pixels.digest()]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
