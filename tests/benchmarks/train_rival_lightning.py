"""Lightning's Trainer with the same network, images and optimizer: what its first pages show.

After https://lightning.ai/docs/pytorch/stable/starter/introduction.html and .../common/trainer.html: a LightningModule,
a DataLoader, `strategy="ddp"`, a ModelCheckpoint by the validation loss.
"""

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader

from tests.benchmarks.train_recipe import (
    Listed,
    loader_workers,
    loss_of,
    network,
    now,
    optimizer_and_schedule,
    rival_arguments,
)
from tests.benchmarks.train_timeline import Timeline


class Classifier(lightning.LightningModule):
    def __init__(self, architecture: str, timeline: Timeline) -> None:
        super().__init__()
        self.network = network(architecture).to(memory_format=torch.channels_last)
        self.timeline = timeline
        self.begin = 0.0
        self.said: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        images, targets = batch  # float32 (B, 3, S, S)
        return loss_of(self.network(images.to(memory_format=torch.channels_last)), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        images, targets = batch
        logits = self.network(images.to(memory_format=torch.channels_last))
        self.log("val_loss", loss_of(logits, targets), sync_dist=True)
        self.said.append((logits[:, 0].float().cpu(), targets.cpu()))

    def configure_optimizers(self) -> dict:
        optimizer, schedule = optimizer_and_schedule(self, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        self.begin = now()

    def on_train_batch_end(self, *_: object) -> None:
        self.timeline.first_step_at = self.timeline.first_step_at or now()
        if self.trainer.is_last_batch:  # validation begins before the hook of the epoch's end
            self.timeline.epochs.append((self.begin, now()))

    def on_validation_epoch_end(self) -> None:
        scores, truth = (torch.cat([part[side] for part in self.said]).numpy() for side in (0, 1))
        self.said.clear()
        self.timeline.auc = float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else float("nan")


def main() -> None:
    options = rival_arguments(__doc__)
    train, validation = (
        DataLoader(
            Listed(options.listing, split, options.size),
            batch_size=options.batch // options.trainers,
            shuffle=split == "train",
            drop_last=split == "train",
            num_workers=loader_workers(options.trainers),
            persistent_workers=True,
            pin_memory=options.gpu,
        )
        for split in ("train", "validation")
    )
    timeline = Timeline(len(train) // options.trainers * options.batch)
    trainer = lightning.Trainer(
        accelerator="gpu" if options.gpu else "cpu",
        devices=options.trainers,
        strategy="ddp" if options.trainers > 1 else "auto",
        precision="bf16-mixed" if options.gpu else "32-true",
        max_epochs=options.epochs,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(dirpath=options.out, monitor="val_loss")],
        default_root_dir=options.out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Classifier(options.architecture, timeline), train, validation)
    if trainer.is_global_zero:
        timeline.show()


if __name__ == "__main__":
    main()
