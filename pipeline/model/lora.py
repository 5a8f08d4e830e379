"""Low-rank adaptation (Hu et al. 2022, arXiv:2106.09685): a frozen matrix of attention plus a trained one of low rank.

It exists in training only: what is kept of a network is the sum, under the plain names.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK = 8
_OF_ATTENTION = (".attn.qkv", ".attn.proj")
_ADAPTED = ".parametrizations.weight."  # torch's names for what makes up a weight


class LowRank(nn.Module):
    """weight (out, in) -> weight + up @ down; nothing at the start, for `up` is 0."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def attention(model: nn.Module) -> list[nn.Linear]:
    """What makes queries, keys and values of tokens, and what projects the answer."""
    named = model.named_modules()
    return [module for name, module in named if isinstance(module, nn.Linear) and name.endswith(_OF_ATTENTION)]


def adapt(model: nn.Module, rank: int = RANK) -> list[nn.Parameter]:
    """Put a `LowRank` on every matrix of `attention`, where there is none yet; the parameters of all."""
    found: list[nn.Parameter] = []
    for module in attention(model):
        if not parametrize.is_parametrized(module, "weight"):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))
        found += module.get_submodule("parametrizations.weight.0").parameters()
    return found


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network with adaptations as that of the plain one with the same logits; a plain one's as it is."""
    plain = {name: value for name, value in state.items() if _ADAPTED not in name}
    for name, weight in state.items():
        layer, adapted, part = name.partition(_ADAPTED)
        if adapted and part == "original":
            low_rank = state[f"{layer}{_ADAPTED}0.up"] @ state[f"{layer}{_ADAPTED}0.down"]
            plain[f"{layer}.weight"] = weight + low_rank
    return plain
