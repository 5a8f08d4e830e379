"""The exported graph equals the network; for every architecture in test_maps, which has exported them all."""

import contextlib
from pathlib import Path

import onnxruntime
import pytest
import torch

from pipeline.base.errors import PlatformError
from pipeline.model.architectures import build
from pipeline.model.bundle import BundleInfo
from pipeline.model.cell_classifier import CellClassifier, WithFeatures
from pipeline.model.export import check_parity, exported, to_onnx, to_safetensors
from pipeline.model.feature_graph import features_graph, with_head
from pipeline.model.torch_engine import load_model


def _trained_looking(name: str, outputs: int) -> CellClassifier:
    """Fresh weights with BatchNorm statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = build(name, outputs).train()
    with torch.no_grad():
        model(torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8))
    return model.eval()


@pytest.mark.slow
def test_a_graph_of_features_with_a_head_put_on_it_gives_both() -> None:
    """What `--unfreeze head` publishes."""
    model = _trained_looking("mobilenet_v3_small", 3)
    head = model.backbone.get_submodule(model.head)
    weight, bias = (values.detach().numpy() for values in (head.weight, head.bias))
    graph = with_head(features_graph(model, 64), weight, bias)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits", "features"]
    check_parity(WithFeatures(model).eval(), graph, 64)
    with pytest.raises(PlatformError, match="older version"):  # as graphs of features alone
        check_parity(WithFeatures(model).eval(), features_graph(model, 64), 64)


def test_a_graph_with_other_features_is_refused() -> None:
    model = _trained_looking("cnn", 1)
    graph = to_onnx(model, 64)
    other = WithFeatures(model).eval()
    other.trunk.register_forward_hook(lambda _module, _given, features: 2 * features)
    with torch.no_grad():
        other.head[0].weight.mul_(0.5)  # the same logits from features twice as large
    with pytest.raises(PlatformError, match="in features"):
        check_parity(other, graph, 64)


def test_a_graph_of_other_weights_is_refused() -> None:
    graph = to_onnx(_trained_looking("cnn", 1), 64)
    torch.manual_seed(5)
    with pytest.raises(PlatformError, match="differs from PyTorch"):
        check_parity(build("cnn", 1).eval(), graph, 64)


class _Brightness(torch.nn.Module):
    """Logits (B, 1) of mean levels about the middle, `steep` times as large, moved by `shift`."""

    def __init__(self, steep: float, shift: float) -> None:
        super().__init__()
        self.steep, self.shift = steep, shift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float().mean((1, 2, 3))[:, None] - 127.5) / 127.5 * self.steep + self.shift


@pytest.mark.parametrize(
    ("steep", "shift", "is_equal"),
    [(1.0, 2e-5, True), (1.0, 2e-4, False), (100.0, 2e-4, True), (100.0, 8e-3, False)],
)
def test_what_rounding_moves_is_told_by_how_large_logits_are(steep: float, shift: float, is_equal: bool) -> None:
    graph = exported(_Brightness(steep, shift), 8, ("logits",))
    with contextlib.nullcontext() if is_equal else pytest.raises(PlatformError, match="in probability"):
        check_parity(_Brightness(steep, 0.0), graph, 8)


def test_weights_survive_safetensors() -> None:
    model = _trained_looking("cnn", 4)
    info = BundleInfo(
        name="m", version="1", architecture="cnn", task="multiclass", classes=tuple("abcd"), input_size=64,
        preprocessing_digest="", weights_sha256="", graph_sha256="",
    )  # fmt: skip
    again = load_model(info, to_safetensors(model))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_graph_does_not_tell_where_its_code_lay() -> None:
    graph = to_onnx(build("cnn", 1), 32)
    assert str(Path(torch.__file__).parents[1]).encode() not in graph and b".py" not in graph
