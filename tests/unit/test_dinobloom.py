"""DinoBloom's transformer takes the published names of weights, and equals DINOv2's as timm has it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.base.errors import InputError, UsageError
from pipeline.model.architectures import build, check_architecture
from pipeline.model.export import to_onnx
from pipeline.model.starting_weights import start_from
from pipeline.model.trainable import features
from pipeline.model.vision_transformer import positions

WIDTH = 384


def random_weights(tokens: int = 257, width: int = WIDTH, blocks: int = 12) -> dict[str, Tensor]:
    """Random tensors by the names and shapes of a DINOv2 backbone of patches of 14 pixels."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    matrices = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    matrices |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(blocks):
        for name, shape in matrices.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{name}"] = (width,)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def release(folder: Path, weights: dict[str, Tensor]) -> str:
    """A file as DinoBloom's release has them: a teacher's backbone beside the heads of its training."""
    teacher = {f"backbone.{name}": value for name, value in weights.items()}
    teacher["dino_head.last_layer.weight_g"] = torch.ones(8, 1)
    torch.save({"teacher": teacher, "iteration": 3}, folder / "DinoBloom.pth")
    return str(folder / "DinoBloom.pth")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


def images(size: int) -> Tensor:
    return torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_release_gives_the_features_of_dinov2(weights: dict[str, Tensor], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="reference transformer: pip install leukoray[timm]")
    reference = timm.create_model("vit_small_patch14_dinov2", img_size=224).eval()
    reference.load_state_dict({name: value for name, value in weights.items() if name != "mask_token"})
    model = build("dinobloom-s", 1)
    loaded = start_from(model, "dinobloom-s", release(tmp_path, weights))
    assert loaded is not None and loaded.fresh == ("backbone.head.bias", "backbone.head.weight")
    assert loaded.left_out == ("backbone.dino_head.last_layer.weight_g", "backbone.mask_token")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    batch = images(224)
    with torch.no_grad():
        expected = reference((batch.permute(0, 3, 1, 2) / 255 - mean) / std)  # (B, D), of the class token
    assert expected.std() > 1e-3
    torch.testing.assert_close(features(model, batch), expected, atol=1e-4, rtol=1e-4)


def test_smaller_images_get_positions_between_those_that_were_learnt(weights: dict[str, Tensor]) -> None:
    embedding = weights["pos_embed"]
    grid = embedding[:, 1:].view(1, 16, 16, WIDTH).permute(0, 3, 1, 2)
    expected = functional.interpolate(grid, (9, 9), mode="bicubic").flatten(2).transpose(1, 2)
    moved = positions(embedding, 9)
    torch.testing.assert_close(moved[:, 1:], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(moved[:, :1], embedding[:, :1])
    assert positions(embedding, 16) is embedding


@pytest.mark.slow
def test_the_graph_of_loaded_weights_equals_the_network(weights: dict[str, Tensor], tmp_path: Path) -> None:
    model = build("dinobloom-s", 2)
    start_from(model, "dinobloom-s", release(tmp_path, weights))
    to_onnx(model, 224)  # raises where they differ


def test_positions_of_another_size_are_brought_to_ours(tmp_path: Path) -> None:
    larger = random_weights(tokens=1 + 37 * 37)  # of 518 pixels, as DINOv2's own
    model = build("dinobloom-s", 1)
    start_from(model, "dinobloom-s", release(tmp_path, larger))
    found = model.state_dict()["backbone.pos_embed"]
    assert torch.equal(found, positions(larger["pos_embed"], 16))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokens": 258}, r"backbone\.pos_embed is 1x258x384 there, 1x257x384 here"),
        ({"width": 768, "blocks": 1}, r"not weights of dinobloom-s: backbone\.\S+ is \S+ there, \S+ here"),
        ({"blocks": 9}, "feature tensors are missing"),
    ],
)
def test_weights_of_another_shape_are_refused(change: dict[str, int], why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        start_from(build("dinobloom-s", 1), "dinobloom-s", release(tmp_path, random_weights(**change)))


def test_a_size_that_patches_do_not_fill_is_refused() -> None:
    check_architecture("dinobloom-s", 112)
    with pytest.raises(UsageError, match="needs a multiple of 14, as 126 or 140"):
        check_architecture("dinobloom-s", 128)


def test_there_are_no_imagenet_weights_of_it() -> None:
    with pytest.raises(UsageError, match="none for dinobloom-s"):
        start_from(build("dinobloom-s", 1), "dinobloom-s", "imagenet")
