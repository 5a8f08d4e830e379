"""A bundle's weights in the plain torchvision network that most scripts use: float NCHW in, one logit out, eager."""

from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file

from pipeline.model.bundle import WEIGHTS, read_bundle
from pipeline.model.cell_classifier import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = list(IMAGENET_MEAN), list(IMAGENET_STD)


def eager_model(bundle: str) -> torch.nn.Module:
    model = torchvision.models.get_model(read_bundle(bundle).info.architecture, weights=None)
    if hasattr(model, "fc"):
        model.fc = torch.nn.Linear(model.fc.in_features, 1)
    else:
        model.classifier[-1] = torch.nn.Linear(model.classifier[-1].in_features, 1)
    weights = load_file(Path(bundle) / WEIGHTS)
    model.load_state_dict({name.removeprefix("backbone."): value for name, value in weights.items()})
    return model.eval()
