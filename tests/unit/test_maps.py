"""Class-activation maps without autograd are Grad-CAM's, for every architecture, and lie where they belong."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional

from pipeline.base.errors import InputError
from pipeline.model.architectures import ARCHITECTURES, build, full_name
from pipeline.model.bundle import GRAPH, BundleInfo
from pipeline.model.cell_classifier import CellClassifier, in_the_middle
from pipeline.model.class_maps import BATCH, ClassMaps
from pipeline.model.export import to_onnx, to_safetensors
from pipeline.model.feature_graph import features_graph, with_head
from pipeline.model.map_graph import NoMapError
from pipeline.model.maps import Inner, Mapper, placed
from pipeline.model.predictor import Predictor
from pipeline.model.tail import OPERATIONS
from pipeline.model.torch_engine import TorchRunner
from pipeline.model.vision_transformer import VisionTransformer
from tests.bundles import make_bundle, make_mapped_bundle

SIZE, OUTPUTS = 64, 3
QUICK = ("cnn", "cnn-se")
TIMM = ("timm:mobilenetv4_conv_small", "timm:hgnetv2_b0", "timm:test_convnext")

Rest = Callable[[Tensor], Tensor]


def trained_looking(name: str, outputs: int = OUTPUTS, size: int = SIZE, seen: int | None = None) -> CellClassifier:
    """Statistics that are not 0 and 1, every weight off its start: biases and layer scales of 0 would hide errors."""
    torch.manual_seed(0)
    model = build(name, outputs, seen=seen).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for _ in range(3):
            model(torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8))
    return model.eval()


def images_of(size: int, count: int = 3) -> np.ndarray:
    """Blobs on noise: maps that differ from place to place."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, size, size, 3)) // 4
    for number, image in enumerate(images):
        at = 4 + 8 * number
        image[at : at + size // 3, at : at + size // 2] += (150, 60, 120)
    return images.clip(0, 255).astype(np.uint8)


def activations_and_rest(model: CellClassifier, pixels: Tensor) -> tuple[Tensor, Rest]:
    """The last activations (B, D, h, w) by torch, and how the backbone goes on from them."""
    network = model.backbone
    kept: list[Tensor] = []

    def keep(name: str) -> None:
        network.get_submodule(name).register_forward_hook(lambda *given: kept.append(given[2].detach()))

    def flat(head: nn.Module) -> Rest:
        return lambda values: head(values.mean(dim=(2, 3)))

    kind = type(network).__name__
    if hasattr(network, "forward_head"):  # timm's networks
        return network.forward_features(pixels).detach(), network.forward_head
    if kind == "PlainCnn":
        keep("features")
        rest: Rest = lambda a: network.classifier(torch.cat([a.mean(dim=(2, 3)), a.amax(dim=(2, 3))], dim=1))  # noqa: E731
    elif kind == "ResNet":
        keep("layer4")
        rest = flat(network.fc)
    elif kind == "EfficientNetLite":
        keep("bn1")
        rest = flat(network.fc)
    else:
        keep("features")
        rest = flat(network.classifier)
    with torch.no_grad():
        network(pixels)
    after = {"DenseNet": functional.relu, "EfficientNetLite": functional.relu6}.get(kind, lambda values: values)
    return after(kept[0]), rest


def grad_cam(model: CellClassifier, images: np.ndarray, logit: int) -> np.ndarray:
    """Selvaraju et al. 2017, by autograd, before its ReLU."""
    shown = in_the_middle(torch.from_numpy(images), model.seen).permute(0, 3, 1, 2).float()
    activations, rest = activations_and_rest(model, (shown - model.shift) / model.scale)
    activations.requires_grad_(True)
    (gradient,) = torch.autograd.grad(rest(activations)[:, logit].sum(), activations)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return np.asarray((weights * activations).sum(dim=1).detach())


def token_map(model: CellClassifier, images: np.ndarray, logit: int) -> np.ndarray:
    """How much each patch's token, as the class token gathers it in the last block, moves the logit; by autograd."""
    network = model.backbone
    assert isinstance(network, VisionTransformer)
    last, kept = network.blocks[-1], []
    last.register_forward_pre_hook(lambda _, given: kept.append(given[0].detach()))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - model.shift) / model.scale
    network(pixels)
    tokens = kept[0]
    batch, count, width = tokens.shape
    split = last.attn.qkv(last.norm1(tokens)).view(batch, count, 3, width // 64, 64).permute(2, 0, 3, 1, 4)
    query, key, value = split.detach()
    weights = (query[:, :, :1] @ key.transpose(2, 3) / 8).softmax(dim=-1)  # (B, H, 1, T)
    given = (weights.transpose(2, 3) * value).requires_grad_(True)  # (B, H, T, 64)
    gathered = given.sum(dim=2).reshape(batch, width)
    token = tokens[:, 0] + last.ls1(last.attn.proj(gathered))
    token = token + last.ls2(last.mlp(last.norm2(token)))
    (gradient,) = torch.autograd.grad(network.head(network.norm(token))[:, logit].sum(), given)
    found = (gradient * given).sum(dim=(1, 3))[:, 1:].detach()
    side = round(found.shape[1] ** 0.5)
    return np.asarray(found.view(batch, side, side))


class Exported(NamedTuple):
    name: str
    size: int
    model: CellClassifier
    graph: bytes


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*ARCHITECTURES, *TIMM)],
)
def network(request: pytest.FixtureRequest) -> Exported:
    """Of each architecture one, exported once for all that is asked of it: that is what takes the time."""
    name = str(request.param)
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    size = 56 if name.startswith("dinobloom") else SIZE
    model = trained_looking(name, size=size)
    return Exported(name, size, model, to_onnx(model, size))


def test_the_graph_gives_the_networks_logits_and_features_for_any_batch_size(network: Exported) -> None:
    info = BundleInfo(
        name="m", version="1", architecture=full_name(network.name), task="multiclass", classes=("a", "b", "c"),
        input_size=network.size, preprocessing_digest="", weights_sha256="", graph_sha256="",
    )  # fmt: skip
    model = network.model
    runner = TorchRunner(info, to_safetensors(model), device="cpu")
    session = onnxruntime.InferenceSession(network.graph, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("images", "tensor(uint8)")
    head = model.backbone.get_submodule(model.head)
    width = next(layer for layer in head.modules() if isinstance(layer, nn.Linear)).in_features
    rng = np.random.default_rng(0)
    for count in (1, 2, 5):
        images = rng.integers(0, 256, (count, network.size, network.size, 3), dtype=np.uint8)
        logits, features = session.run(["logits", "features"], {"images": images})
        expected = runner(images)
        np.testing.assert_allclose(logits, expected.logits, atol=1e-4, rtol=1e-4)
        assert features.shape == (count, width) and expected.features is not None
        np.testing.assert_allclose(features, expected.features, atol=1e-4 * max(1.0, np.abs(features).max()))
        with torch.inference_mode():  # what goes into the head is what the logits come from
            again = head(torch.from_numpy(features)).numpy()
            np.testing.assert_allclose(model(torch.from_numpy(images)).numpy(), again, atol=1e-4, rtol=1e-4)


def test_the_map_is_what_autograd_gives(network: Exported) -> None:
    mapper = Mapper(network.graph)
    images = images_of(network.size)
    inner = mapper.inner(images)
    by_autograd = token_map if network.name.startswith("dinobloom") else grad_cam
    for logit in range(OUTPUTS):
        expected = by_autograd(network.model, images, logit)
        found = mapper.signed(inner, [logit] * len(images))
        assert found.shape == expected.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=5e-5 * np.abs(expected).max())
        assert np.ptp(expected) > 1e-6
        assert np.array_equal(mapper.small(inner, [logit] * len(images)), found.clip(0))


@pytest.mark.slow
def test_a_head_that_is_put_on_a_graph_of_features_has_the_same_map() -> None:
    """What `--unfreeze head` publishes; seen is the middle."""
    model = trained_looking("cnn", seen=48)
    model.backbone.classifier = nn.Linear(256, OUTPUTS)
    weight, bias = (values.detach().numpy() for values in model.backbone.classifier.parameters())
    mapper = Mapper(with_head(features_graph(model, SIZE), weight, bias))
    images = images_of(SIZE)
    found = mapper.signed(mapper.inner(images), [1, 1, 1])
    expected = grad_cam(model, images, 1)
    np.testing.assert_allclose(found, expected, atol=5e-5 * np.abs(expected).max())


@given(
    st.sampled_from(
        sorted(set(OPERATIONS) - {"join", "sum", "product", "affine", "scale", "shift", "clip", "layer norm"})
    ),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_each_activation_has_its_own_slope(name: str, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 3, (2, 5)).astype(np.float32)
    by_torch = {
        "same": lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
        "gelu": functional.gelu, "hard swish": functional.hardswish,
    }[name]  # fmt: skip
    tensor = torch.from_numpy(values).requires_grad_(True)
    given_by_torch = by_torch(tensor)
    (slope,) = torch.autograd.grad(given_by_torch.sum(), tensor)
    operation = OPERATIONS[name]
    np.testing.assert_allclose(operation.value([values], []), given_by_torch.detach(), atol=1e-5)
    np.testing.assert_allclose(operation.back(np.ones_like(values), [values], [])[0], slope, atol=1e-5)


def red_at(size: int, row: int, column: int, side: int = 8) -> np.ndarray:
    image = np.full((size, size, 3), 128, np.uint8)
    image[row : row + side, column : column + side] = (255, 30, 0)
    return image


def test_a_map_is_hot_where_the_class_is_and_nowhere_else(tmp_path: Path) -> None:
    predictor = Predictor(make_mapped_bundle(tmp_path))
    blue = red_at(64, 40, 8)[:, :, ::-1].copy()
    maps, peaks = predictor.maps([red_at(64, 40, 8), blue, red_at(64, 0, 56)], ["positive"] * 3)
    assert maps.shape == (3, 64, 64) and maps.dtype == np.float32
    assert maps[0, 40:48, 8:16].min() > 0.3 and maps[0].max() == 1 and maps[0, :32].max() == 0
    assert not maps[1].any() and peaks[1] == 0  # what speaks against a class is not shown
    assert maps[2, 2, 62] == 1 and maps[2, 20:].max() == 0


def test_a_map_of_what_is_seen_lies_in_the_middle_of_the_whole_image(tmp_path: Path) -> None:
    predictor = Predictor(make_mapped_bundle(tmp_path, center=0.5))
    outside, inside = red_at(64, 2, 2), red_at(64, 36, 20)
    maps, peaks = predictor.maps([outside, inside], ["positive"] * 2)
    assert not maps[0].any() and peaks[0] == 0
    assert maps[1, 36:44, 20:28].min() > 0.3 and maps[1, :30].max() == 0 and maps[1, :, 32:].max() == 0


def test_each_image_has_the_map_of_the_class_that_is_asked_for(tmp_path: Path) -> None:
    predictor = Predictor(make_mapped_bundle(tmp_path, task="multiclass"))
    image = red_at(64, 0, 0)
    image[48:56, 48:56] = (0, 30, 255)
    (last, first, between), _ = predictor.maps([image] * 3, ["Pro", "Benign", "Early"])
    assert last[4, 4] > 0.9 and last[52, 52] == 0 and first[52, 52] > 0.9 and first[4, 4] == 0
    assert not between.any()
    with pytest.raises(InputError, match=r"no map of 'Late'; of Benign, Early, Pre, Pro"):
        predictor.maps([image], ["Late"])


def test_a_map_is_of_the_image_as_it_is_whatever_the_turns(tmp_path: Path) -> None:
    image = red_at(64, 40, 8)
    once, eight = (
        Predictor(make_mapped_bundle(tmp_path / str(turns), turns=turns)).maps([image], ["positive"])
        for turns in (1, 8)
    )
    assert np.array_equal(once.maps, eight.maps)


def test_a_network_that_pools_nothing_says_that_it_has_no_map(tmp_path: Path) -> None:
    predictor = Predictor(make_bundle(tmp_path))
    assert "no map is known of its network (linear): it neither pools" in predictor.why_no_map()
    with pytest.raises(InputError, match="neither pools over positions nor gathers tokens"):
        predictor.maps([red_at(64, 0, 0)], ["positive"])


def test_an_end_that_is_not_understood_is_no_map(tmp_path: Path) -> None:
    """Rather none than a wrong one: an operation without a derivative here, and one that hides in a shape."""
    graph = onnx.load_from_string(make_mapped_bundle(tmp_path).file(GRAPH))
    last = graph.graph.node[-1]
    for operation in ("Softsign", "Flip"):
        other = onnx.ModelProto.FromString(graph.SerializeToString())
        del other.graph.node[-1]
        if operation == "Softsign":
            other.graph.node.append(helper.make_node("Softsign", ["features"], ["turned"]))
        else:
            index = onnx.numpy_helper.from_array(np.array([1, 0]), "turned_index")
            other.graph.initializer.append(index)
            other.graph.node.append(helper.make_node("Gather", ["features", "turned_index"], ["turned"], axis=1))
        other.graph.node.append(helper.make_node("Gemm", ["turned", *last.input[1:]], ["logits"]))
        with pytest.raises(NoMapError, match="Softsign" if operation == "Softsign" else "not understood"):
            Mapper(other.SerializeToString())


def test_small_maps_are_stretched_to_their_own_peak() -> None:
    small = np.array([[[0, 0], [0, 4.0]], [[0, 0], [0, 0]]], np.float32)
    maps, peaks = placed(small, 16, 8)
    assert peaks.tolist() == [4, 0] and maps[0].max() == 1 and maps[0, 11, 11] == 1 and not maps[1].any()
    assert not maps[0, :4].any() and not maps[0, 12:].any()


def test_many_images_get_the_maps_that_each_gets_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In passes of at most BATCH images, for their inner activations take memory."""
    maps = ClassMaps(make_mapped_bundle(tmp_path, task="multiclass"))
    images = [red_at(64, 3 * k, 63 - 3 * k)[:, :, :: 1 if k % 2 else -1].copy() for k in range(BATCH + 3)]
    classes = ["Pro" if k % 3 else "Benign" for k in range(len(images))]
    passes: list[int] = []
    inner = Mapper.inner

    def counted(self: Mapper, some: np.ndarray) -> Inner:
        passes.append(len(some))
        return inner(self, some)

    monkeypatch.setattr(Mapper, "inner", counted)
    found = maps.maps(images, classes)
    assert passes[-2:] == [BATCH, 3] and found.maps.any()
    for k, (image, name) in enumerate(zip(images, classes, strict=True)):
        alone = maps.maps([image], [name])
        np.testing.assert_allclose(found.maps[k], alone.maps[0], atol=1e-5)
        assert found.peaks[k] == pytest.approx(alone.peaks[0], abs=1e-4)
