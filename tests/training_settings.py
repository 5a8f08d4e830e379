"""The settings of a short training of the smallest network, to be changed where a test needs other ones."""

from typing import Any

from pipeline.training.settings import Settings

_PLAIN: dict[str, Any] = {
    "architecture": "cnn",
    "task": "binary",
    "classes": ("negative", "positive"),
    "input_size": 32,
    "pretrained": False,
    "unfreeze": "all",
    "epochs": 1,
    "batch_size": 8,
    "accumulate": 1,
    "learning_rate": 1e-3,
    "layer_decay": 1.0,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "warmup": 0.0,
    "clip_norm": 0.0,
    "patience": 0,
    "label_smoothing": 0.0,
    "balance": "none",
    "augment": False,
    "amp": False,
    "workers": "1",
    "seed": 0,
}


def training_settings(**changes: Any) -> Settings:
    return Settings(**{**_PLAIN, **changes})
