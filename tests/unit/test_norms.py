"""Statistics that stay, and groups of channels in the place of batches."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pipeline.base.errors import UsageError
from pipeline.model.architectures import build, check_architecture
from pipeline.model.bundle import BundleInfo
from pipeline.model.export import to_onnx, to_safetensors
from pipeline.model.norms import NormByGroups
from pipeline.model.starting_weights import check_start, start_from
from pipeline.model.torch_engine import TorchRunner

IMAGES = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A file of resnet18 whose statistics are those of some images."""
    torch.manual_seed(0)
    model = build("resnet18", 1).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        model(IMAGES)
    (tmp_path / "w.safetensors").write_bytes(to_safetensors(model))
    return str(tmp_path / "w.safetensors")


def test_frozen_statistics_stay_while_the_weights_around_them_train(weights: str) -> None:
    model, free = build("resnet18", 1, "frozen"), build("resnet18", 1)
    for each in (model, free):
        start_from(each, "resnet18", weights)
    assert to_onnx(model, 32) == to_onnx(free, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss: Tensor = nn.Sequential(model).train()(IMAGES).square().sum()
    torch.autograd.backward(loss)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if "running_" in name or "num_batches" in name}


def test_with_frozen_statistics_an_image_does_not_depend_on_its_batch(weights: str) -> None:
    model = build("resnet18", 1, "frozen").train()
    start_from(model, "resnet18", weights)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES)[:1], model(IMAGES[:1]))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet-lite0"])
def test_groups_take_the_place_and_the_weights_of_batches(name: str, tmp_path: Path) -> None:
    source = build(name, 1)
    affine = {key: value for key, value in source.named_parameters() if ".bn" in key}
    for value in affine.values():
        nn.init.uniform_(value, 0.5, 1.5)
    (tmp_path / "w.safetensors").write_bytes(to_safetensors(source))
    model = build(name, 1, "group")
    loaded = start_from(model, name, str(tmp_path / "w.safetensors"))
    assert loaded is not None and not loaded.fresh
    groups = {key: module for key, module in model.named_modules() if isinstance(module, NormByGroups)}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in affine.items())
    each = [module.num_channels // module.num_groups for module in groups.values()]
    assert min(each) >= 8 and max(module.num_groups for module in groups.values()) <= 32


def test_a_bundle_of_groups_is_rebuilt_from_what_it_says_of_itself() -> None:
    torch.manual_seed(0)
    model = build("cnn", 1, "group").eval()
    info = BundleInfo(
        name="m", version="1", architecture="cnn", norm="group", task="binary", classes=("negative", "positive"),
        input_size=32, preprocessing_digest="", weights_sha256="", graph_sha256="",
    )  # fmt: skip
    again = BundleInfo.model_validate_json(info.model_dump_json())
    runner = TorchRunner(again, to_safetensors(model), device="cpu")
    session = onnxruntime.InferenceSession(to_onnx(model, 32), providers=["CPUExecutionProvider"])
    images = IMAGES.numpy()
    np.testing.assert_allclose(session.run(None, {"images": images})[0], runner(images).logits, atol=1e-4)
    before = info.model_dump()
    del before["norm"]  # a bundle from before there was a choice
    assert BundleInfo(**before).norm == "batch"


@pytest.mark.parametrize(
    ("weights", "norm", "unfreeze", "why"),
    [
        ("none", "frozen", "all", "no statistics to keep"),
        ("none", "batch", "head", "would be noise"),
        ("imagenet", "group", "last", "leave out --unfreeze last"),
    ],
)
def test_what_the_starting_weights_cannot_serve_is_refused(weights: str, norm: str, unfreeze: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_start("cnn", weights, norm, unfreeze)  # type: ignore[arg-type]
    check_start("cnn", "imagenet", "frozen", "head")
    check_start("cnn", "none", "group")
    check_architecture("cnn", 32, "group")
