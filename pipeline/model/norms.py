"""How a network normalises: by the batch, by statistics that stay, or by groups of channels.

Statistics of the training set's batches are what breaks first on another laboratory's stain and camera.
"""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Wu & He 2018 (arXiv:1803.08494): 32 groups, or 16 channels each, are about equally good. Fewer than 8 channels say
# nothing where the field has shrunk to a pixel or four
_MOST_GROUPS, _LEAST_CHANNELS = 32, 8


class NormByGroups(nn.GroupNorm):
    """GroupNorm in the place of a BatchNorm2d: its affine weights under the same names, and what a subclass appends.

    timm's `BatchNormAct2d` drops and activates after it has normalised.
    """

    def __init__(self, replaced: nn.BatchNorm2d) -> None:
        super().__init__(_groups(replaced.num_features), replaced.num_features, replaced.eps, replaced.affine)
        self.load_state_dict({name: value.detach() for name, value in replaced.named_parameters(recurse=False)})
        self.drop = getattr(replaced, "drop", nn.Identity())
        self.act = getattr(replaced, "act", nn.Identity())

    def forward(self, input: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def by_groups(module: nn.Module) -> None:
    """Put a GroupNorm in the place of every BatchNorm2d below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, NormByGroups(child))
        else:
            by_groups(child)


def synchronise(module: nn.Module) -> None:
    """Let every BatchNorm below `module` normalise by the batch of all ranks: CUDA only, torch has none for CPUs."""
    if any(isinstance(part, nn.BatchNorm2d) and hasattr(part, "act") for part in module.modules()):
        from timm.layers import convert_sync_batchnorm  # torch's own would lose timm's activations

        convert_sync_batchnorm(module)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]


def _groups(channels: int) -> int:
    """The largest number of equal groups within both bounds."""
    most = max(1, min(_MOST_GROUPS, channels // _LEAST_CHANNELS))
    return next(count for count in range(most, 0, -1) if channels % count == 0)
