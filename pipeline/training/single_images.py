"""Parts of a batch that hold one image: where a layer leaves it one value a channel, batch normalization has nothing to
measure, and torch refuses the step."""

import torch

from pipeline.base.errors import UsageError
from pipeline.training.order import smallest_part
from pipeline.training.settings import Settings


def refuse_single_images(settings: Settings, world: int, *, on_gpu: bool = False) -> None:
    """Raise UsageError where `world` workers, at most, would meet such a part. Costs nothing where parts are larger.

    Several GPUs are never refused: they measure the images of all ranks together.
    """
    part = smallest_part(settings.batch_size, world, settings.accumulate)
    if part > 1 or settings.norm != "batch" or (on_gpu and world > 1):
        return
    from pipeline.training.loop import begun  # Ray Train takes a second to load

    model, _ = begun(settings, None, torch.device("cpu"), 1)
    image = torch.zeros((1, settings.input_size, settings.input_size, 3), dtype=torch.uint8)
    try:
        with torch.no_grad():
            model.train()(image)
    except ValueError as error:
        how = f"{world} worker{'' if world == 1 else 's'}"
        how += f" and --accumulate {settings.accumulate}" if settings.accumulate > 1 else ""
        raise UsageError(
            f"--batch-size {settings.batch_size}: with {how} a part of it is one image, of which "
            f"{settings.architecture} at {settings.seen} pixels has nothing to normalize by; use a larger --batch-size "
            "or --input-size, or --norm group"
        ) from error
