"""What a trainer asks of any network: its parameters in the order of depth, its head, what goes into the head.

Depth follows the tree of modules, in which every network here lists its parts in the order in which it runs them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.choices import Unfreeze
from pipeline.model.lora import adapt

# as many as a ViT with twelve blocks has before its head: a decay of 0.75 a layer leaves the stem a fortieth.
# Deeper networks group their blocks, as ConvNeXt's authors do for the same reason (arXiv:2201.03545, appendix A)
MOST_LAYERS = 13

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def head_of(model: CellClassifier) -> nn.Module:
    """The classifier: what starts fresh when a network learns another question. float (B, D) -> (B, outputs)."""
    return model.backbone.get_submodule(model.head)


def linear_head(model: CellClassifier) -> nn.Linear | None:
    """The head where it is one linear layer with a bias, float (B, D) -> (B, outputs); None where it is more."""
    head = head_of(model)
    return head if isinstance(head, nn.Linear) and head.bias is not None else None


@torch.no_grad()
def features(model: CellClassifier, images: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, D): what goes into the head in evaluation, whatever mode the model is in.

    `head_of(model)(features(model, images))` are the logits, so that a head can be trained on features kept.
    """
    found: list[Tensor] = []
    handle = head_of(model).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    training = model.training
    try:
        model.eval()(images)
    finally:
        handle.remove()
        model.train(training)
    return found[0].float()


def layers_of(model: CellClassifier) -> list[list[nn.Parameter]]:
    """Every parameter once, stem first, head last; at most `MOST_LAYERS` before the head, of equally many blocks."""
    head = list(head_of(model).parameters())
    of_head = {id(parameter) for parameter in head}
    blocks = [[p for p in block if id(p) not in of_head] for block in _joined(_parts(model.backbone, head_of(model)))]
    blocks = [block for block in blocks if block]
    count = min(MOST_LAYERS, len(blocks))
    layers: list[list[nn.Parameter]] = [[] for _ in range(count)]
    for number, block in enumerate(blocks):
        layers[number * count // len(blocks)] += block
    return [*layers, head]


def last_of(model: CellClassifier) -> list[nn.Parameter]:
    """The last quarter of the layers and the head: layer4 of a small ResNet, three blocks of a ViT."""
    *before, head = layers_of(model)
    last = before[len(before) - max(1, len(before) // 4) :]
    return [parameter for layer in (*last, head) for parameter in layer]


def freeze(model: CellClassifier, unfreeze: Unfreeze) -> list[nn.Parameter]:
    """Let `head`, `last` (`last_of`), `lora` (`lora.adapt`, and the head) or `all` train and nothing else; what trains.

    A BatchNorm whose weights do not train keeps its statistics as well (`CellClassifier.train`).
    """
    chosen = list(head_of(model).parameters())
    if unfreeze == "lora":
        chosen = [*adapt(model), *chosen]
    elif unfreeze == "last":
        chosen = last_of(model)
    elif unfreeze == "all":
        chosen = [parameter for layer in layers_of(model) for parameter in layer]
    training = {id(parameter) for parameter in chosen}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in training)
    model.train(model.training)
    return chosen


def _parts(module: nn.Module, head: nn.Module) -> Iterator[tuple[bool, list[nn.Parameter]]]:
    """Parameters in the order of the tree, each lot with whether it goes with the one before it.

    A lot is a module that is neither a mere list of others, nor has one called `blocks`, as the stages of timm's
    networks have, nor holds the head. Norms, which have no matrices, go with what they follow; tokens and position
    embeddings, which a module holds itself, with its first part.
    """
    own = list(module.parameters(recurse=False))
    if own:
        yield False, own
    after_own = bool(own)
    for child in module.children():
        holds_head = child is not head and any(part is head for part in child.modules())
        if isinstance(child, _CONTAINERS) or hasattr(child, "blocks") or holds_head:
            parts = _parts(child, head)
        else:
            parameters = list(child.parameters())
            parts = iter([(all(value.ndim < 2 for value in parameters), parameters)])
        for goes_along, parameters in parts:
            yield goes_along or after_own, parameters
            after_own = after_own and not parameters


def _joined(parts: Iterator[tuple[bool, list[nn.Parameter]]]) -> Iterator[list[nn.Parameter]]:
    block: list[nn.Parameter] = []
    for goes_along, parameters in parts:
        if block and not goes_along:
            yield block
            block = []
        block += parameters
    yield block
