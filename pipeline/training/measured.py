"""What training tells Prometheus: epoch, losses, images a second, the share of time that it waits for images."""

from collections.abc import Sequence

from pipeline.base.measures import Measure, Measures
from pipeline.training.display import Event

_MODEL = ("model",)
EPOCH = Measure("leukoray_train_epoch", "Gauge", "The epoch in work, from 1", _MODEL)
EPOCHS = Measure("leukoray_train_epochs", "Gauge", "Epochs at most", _MODEL)
STEP = Measure("leukoray_train_step", "Gauge", "Steps done of the epoch", _MODEL)
LOSS = Measure("leukoray_train_loss", "Gauge", "Loss of the last step, and of validation", ("model", "split"))
AUC = Measure("leukoray_train_val_auc", "Gauge", "Area under the ROC curve on validation", _MODEL)
ACCURACY = Measure("leukoray_train_val_balanced_accuracy", "Gauge", "Balanced accuracy on validation", _MODEL)
IMAGES_PER_S = Measure("leukoray_train_images_per_s", "Gauge", "Images a second over all workers", _MODEL)
WAITING = Measure("leukoray_train_waiting_share", "Gauge", "Share of time that waits for images, 0 to 1", _MODEL)
MEASURES = (EPOCH, EPOCHS, STEP, LOSS, AUC, ACCURACY, IMAGES_PER_S, WAITING)


class Measured:
    """Of one training."""

    def __init__(self, model: str, epochs: int) -> None:
        self._measures = Measures(MEASURES, model=model)
        self._measures.show(EPOCHS, epochs)

    def show(self, events: Sequence[Event]) -> None:
        show = self._measures.show
        for event in events:
            if event["kind"] == "step":
                show(EPOCH, event["epoch"])
                show(STEP, event["step"])
                show(LOSS, event["loss"], split="train")
                self._speed(event)
            elif event["kind"] == "epoch":
                row = event["row"]
                show(EPOCH, row["epoch"])
                show(LOSS, row["train_loss"], split="train")
                show(LOSS, row["val_loss"], split="validation")
                show(AUC, row["val_auc"])
                show(ACCURACY, row["val_balanced_accuracy"])
                self._speed(row)

    def _speed(self, told: Event) -> None:
        self._measures.show(IMAGES_PER_S, told["images_per_s"])
        self._measures.show(WAITING, told["waiting_share"])
