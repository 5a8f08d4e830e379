"""The vision transformer of DINOv2 with patches of 14 pixels: what DinoBloom's weights are made for, in S and B.

Dosovitskiy et al. 2021 (arXiv:2010.11929), Oquab et al. 2024 (arXiv:2304.07193), Koch et al. 2024 (arXiv:2404.05022).
The names of the tensors are those of the published weights. Left out are stochastic depth and the mask token, which
only their training needs.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 14  # pixels
_GRID = 16  # patches a side that positions are learnt for: 224 pixels
_EPSILON = 1e-6


class Patches(nn.Module):
    """float (B, 3, S, S) -> tokens (B, S/14 * S/14, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Every token looks at every other, in heads of 64 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        query, key, value = self.qkv(tokens).view(batch, count, 3, width // 64, 64).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)  # (B, heads, T, 64)
        projected: Tensor = self.proj(seen.transpose(1, 2).reshape(batch, count, width))
        return projected


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        changed: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return changed


class LayerScale(nn.Module):
    """A learnt weight a channel for what a block adds (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPSILON)
        self.attn = Attention(width)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, _EPSILON)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        changed: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return changed


class VisionTransformer(nn.Module):
    """float (B, 3, S, S) -> (B, outputs), by the class token; S a multiple of 14."""

    def __init__(self, outputs: int, *, width: int, depth: int = 12) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _GRID * _GRID, width))
        self.patch_embed = Patches(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, _EPSILON)
        self.head = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches], dim=1)  # (B, 1 + patches, D)
        tokens = tokens + positions(self.pos_embed, images.shape[-1] // PATCH)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits


def positions(embedding: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + n * n, D) for `side` patches a side, between those that were learnt (bicubic).

    As two products of matrices, whose gradient is deterministic on GPUs too, which that of `interpolate` is not.
    """
    learnt = math.isqrt(embedding.shape[1] - 1)
    if side == learnt:
        return embedding
    unit = torch.eye(learnt, device=embedding.device, dtype=embedding.dtype).view(learnt, 1, learnt, 1)
    between = functional.interpolate(unit, (side, 1), mode="bicubic").view(learnt, side)  # (learnt, side)
    grid = embedding[:, 1:].view(learnt, learnt, -1)
    moved = torch.einsum("ai,bj,abd->ijd", between, between, grid)
    return torch.cat([embedding[:, :1], moved.reshape(1, side * side, -1)], dim=1)


def with_our_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with its position embeddings, of 518 pixels in DINOv2's own, as many as ours."""
    key = "backbone.pos_embed"
    found = state.get(key)
    if found is None or found.ndim != 3 or math.isqrt(max(0, found.shape[1] - 1)) ** 2 != found.shape[1] - 1:
        return state
    return {**state, key: positions(found.float(), _GRID)}
