"""`torchrun` with DistributedDataParallel and a DataLoader: what PyTorch's own guides add up to.

After https://docs.pytorch.org/tutorials/beginner/ddp_series_multigpu.html, .../ddp_series_fault_tolerance.html
and https://docs.pytorch.org/docs/stable/data.html (persistent workers, pinned memory). torchrun starts a process a
trainer.
"""

import contextlib
from pathlib import Path

import torch
import torch.distributed as distributed
from sklearn.metrics import roc_auc_score
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

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


def main() -> None:
    options = rival_arguments(__doc__)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    distributed.init_process_group("nccl" if options.gpu else "gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", rank) if options.gpu else torch.device("cpu")
    train, validation = (_loader(options, split, rank, world) for split in ("train", "validation"))
    model = DistributedDataParallel(
        network(options.architecture).to(device, memory_format=torch.channels_last),
        device_ids=[rank] if options.gpu else None,
    )
    optimizer, schedule = optimizer_and_schedule(model, options.epochs * len(train))
    timeline = Timeline(len(train) * options.batch)
    autocast = torch.autocast("cuda", torch.bfloat16) if options.gpu else contextlib.nullcontext()
    for epoch in range(options.epochs):
        train.sampler.set_epoch(epoch)
        model.train()
        begin = now()
        for images, targets in train:  # float32 (B, 3, S, S)
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            with autocast:
                logits = model(images)
            loss = loss_of(logits, targets.to(device, non_blocking=True))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            timeline.first_step_at = timeline.first_step_at or now()
        timeline.epochs.append((begin, now()))
        timeline.auc = _validate(model, validation, device)
        if rank == 0:
            states = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(states, Path(options.out) / "last.pt")
    distributed.destroy_process_group()
    if rank == 0:
        timeline.show()


def _loader(options, split: str, rank: int, world: int) -> DataLoader:
    images = Listed(options.listing, split, options.size)
    sampler = DistributedSampler(images, world, rank, shuffle=split == "train")
    return DataLoader(
        images,
        batch_size=options.batch // world,
        sampler=sampler,
        drop_last=split == "train",
        num_workers=loader_workers(world),
        persistent_workers=True,
        pin_memory=options.gpu,
    )


@torch.inference_mode()
def _validate(model: DistributedDataParallel, loader: DataLoader, device: torch.device) -> float:
    model.eval()
    logits, targets = [], []
    for images, truth in loader:
        logits.append(model.module(images.to(device, memory_format=torch.channels_last))[:, 0].float().cpu())
        targets.append(truth)
    own = (torch.cat(logits), torch.cat(targets))
    everyone: list[tuple[torch.Tensor, torch.Tensor]] = [own] * distributed.get_world_size()
    distributed.all_gather_object(everyone, own)
    truth, scores = (torch.cat([part[side] for part in everyone]).numpy() for side in (1, 0))
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else float("nan")


if __name__ == "__main__":
    main()
