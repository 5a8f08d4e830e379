"""Networks of timm by name: weights of a local file, the graph, the order of depth, what is missing."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.base.errors import InputError, PlatformError, UsageError
from pipeline.model.architectures import build, check_architecture, full_name
from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.norms import NormByGroups, synchronise
from pipeline.model.starting_weights import start_from
from pipeline.model.trainable import head_of
from tests.unit.test_trainable import IMAGES, assert_features_give_the_logits, assert_layers_follow_the_use

timm = pytest.importorskip("timm", reason="networks of timm: pip install leukoray[timm]")

NAMES = ("mobilenetv4_conv_small", "hgnetv2_b0", "convnext_tiny")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def spread(network: nn.Module) -> nn.Module:
    """Statistics and affine weights that are not 0 and 1, so that it matters whether they are taken over."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_var, module.weight):
                nn.init.uniform_(value, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network.eval()


def test_a_local_file_gives_timms_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = spread(timm.create_model(name))
    path = tmp_path / ("w.pth" if name == "hgnetv2_b0" else "w.safetensors")
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    torch.save(state, path) if path.suffix == ".pth" else save_file(state, path)
    model = build("timm:" + name, 1000).eval()
    loaded = start_from(model, "timm:" + name, str(path))
    assert loaded is not None and not loaded.fresh and not loaded.left_out
    config = timm.get_pretrained_cfg(name)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
    with torch.no_grad():
        expected: Tensor = network((IMAGES.permute(0, 3, 1, 2) / 255 - mean) / std)
        torch.testing.assert_close(model(IMAGES), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 1e-3
    other = build("timm:" + name, 2)
    loaded = start_from(other, "timm:" + name, str(path))
    assert loaded is not None
    assert loaded.fresh == loaded.left_out == (f"backbone.{other.head}.bias", f"backbone.{other.head}.weight")


def test_a_bundle_names_the_tag_which_decides_mean_and_standard_deviation(name: str) -> None:
    assert full_name("timm:" + name).partition(".")[2]


def test_layers_and_head_are_found(name: str) -> None:
    model = build("timm:" + name, 3)
    assert isinstance(head_of(model), nn.Linear) and head_of(model).out_features == 3
    assert_layers_follow_the_use(model)
    assert_features_give_the_logits(model)


def test_groups_and_synchronised_batches_keep_the_activations_inside_timms_norms() -> None:
    torch.manual_seed(0)
    model = build("timm:mobilenetv4_conv_small", 1, "group")
    kinds = {type(part.act) for part in model.modules() if isinstance(part, NormByGroups)}
    assert kinds == {nn.ReLU, nn.Identity}
    batched = build("timm:mobilenetv4_conv_small", 1)
    spread(batched)
    before = _logits(batched)
    synchronise(batched)
    assert any(isinstance(part, nn.SyncBatchNorm) for part in batched.modules())
    torch.testing.assert_close(_logits(batched), before)


def _logits(model: CellClassifier) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(IMAGES)
    return logits


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("timm:mobilenetv4_conv_smal", r"no such network; perhaps mobilenetv4_conv_small,"),
        ("timm:hgnetv2_b0.imagenet", r"no weights 'imagenet' of hgnetv2_b0, but .*ssld_stage2_ft_in1k"),
        ("timm:deit_tiny_distilled_patch16_224", "more than one classifier"),
        ("timm:test_vit", "takes 160 only"),
        ("hgnetv2_b0", "or timm:NAME with the extra 'timm'"),
    ],
)
def test_a_name_that_will_not_do_is_refused_with_what_would(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_architecture(name, 64)


def test_norms_that_a_network_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="no batch normalization"):
        check_architecture("timm:test_convnext", 64, "frozen")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PlatformError, match=r"needs the extra 'timm': pip install 'leukoray\[timm\]'"):
        check_architecture("timm:hgnetv2_b0", 64)


def test_a_hub_out_of_reach_is_told_with_the_way_by_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be had from its hub .*\.safetensors.*--weights FILE"):
        start_from(build("timm:hgnetv2_b0", 1), "timm:hgnetv2_b0", "imagenet")
