"""Networks by name: shapes, starting weights, augmentation."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.base.errors import InputError, UsageError
from pipeline.model.architectures import ARCHITECTURES, build, check_architecture
from pipeline.model.export import to_safetensors
from pipeline.model.starting_weights import start_from

LARGE = ("resnet50", "densenet121", "efficientnet_b0")


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_one_row_of_finite_logits_an_image(name: str, outputs: int) -> None:
    torch.manual_seed(0)
    model = build(name, outputs).eval()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits = model(images)
    assert logits.shape == (2, outputs)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_the_same_seed_gives_the_same_starting_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build("cnn", 1).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"alexnet.*cnn, cnn-se, vgg11"):
        check_architecture("alexnet", 128)


def test_an_input_that_the_strides_cannot_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 32"):
        check_architecture("resnet18", 16)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_weight_file_is_taken_over_except_for_another_head(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    source = build("cnn", 7)
    state = {name.removeprefix("backbone."): value.clone() for name, value in source.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {"module." + name: value for name, value in state.items()}}, path)
    else:
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    torch.manual_seed(2)
    model = build("cnn", 1)
    loaded = start_from(model, "cnn", str(path))
    assert loaded is not None
    assert loaded.fresh == loaded.left_out == ("backbone.classifier.3.bias", "backbone.classifier.3.weight")
    assert torch.equal(model.state_dict()["backbone.features.0.weight"], state["features.0.weight"])


@pytest.mark.parametrize("key", ["model", "model_state_dict"])
def test_a_training_scripts_checkpoint_is_understood(tmp_path: Path, key: str) -> None:
    path = tmp_path / "last.pth"
    torch.save({key: build("cnn", 1).state_dict(), "epoch": 3}, path)
    loaded = start_from(build("cnn", 1), "cnn", str(path))
    assert loaded is not None and not loaded.fresh


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    state = build("cnn", 1).state_dict()
    state["backbone.features.0.weight"][0] = float("nan")
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(InputError, match="NaN or infinity"):
        start_from(build("cnn", 1), "cnn", str(tmp_path / "broken.pth"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: (weight * 100).to(torch.int8), "is int8 there, float32 here"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "is float8_e4m3fn there"),
        (lambda weight: weight.to(torch.complex64), "is complex64 there"),
        (lambda weight: weight.to_sparse(), "sparse, quantized or empty"),
        (lambda weight: weight.to("meta"), "sparse, quantized or empty"),
    ],
)
def test_numbers_that_are_not_the_weights_themselves_are_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    state = build("cnn", 1).state_dict()
    state["backbone.features.0.weight"] = change(state["backbone.features.0.weight"])
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=words):
        start_from(build("cnn", 1), "cnn", str(tmp_path / "odd.pth"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken_over(tmp_path: Path, dtype: torch.dtype) -> None:
    state = build("cnn", 1).state_dict()
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "half.pth")
    model = build("cnn", 1)
    assert start_from(model, "cnn", str(tmp_path / "half.pth")) is not None
    name = "backbone.features.0.weight"
    assert torch.allclose(model.state_dict()[name], state[name], rtol=1e-2)


def test_what_a_file_lacks_is_refused_where_it_would_stay_as_it_begins(tmp_path: Path) -> None:
    """Frozen layers, and statistics that are never measured, would be noise with exit code 0."""
    state, path = build("resnet18", 1).state_dict(), tmp_path / "part.pth"
    del state["backbone.layer4.1.bn2.running_mean"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"1 tensors are not in it .*running_mean.*--unfreeze head"):
        start_from(build("resnet18", 1), "resnet18", str(path), unfreeze="head")
    with pytest.raises(InputError, match="1 normalization statistics are not in it"):
        start_from(build("resnet18", 1, "frozen"), "resnet18", str(path))
    loaded = start_from(build("resnet18", 1), "resnet18", str(path))
    assert loaded is not None and loaded.fresh == ("backbone.layer4.1.bn2.running_mean",)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_safetensors(build("cnn", 1)))
    with pytest.raises(InputError, match="not weights of resnet18"):
        start_from(build("resnet18", 1), "resnet18", str(path))


class Bomb:
    """Unpickling it makes a folder: what stands for any code of a stranger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_the_code_in_a_weight_file_is_refused_and_never_runs(tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "code-has-run"
    torch.save({"state_dict": build("cnn", 1).state_dict(), "notes": Bomb(trace)}, path)
    with pytest.raises(InputError, match=r"weights\.pth: holds more than tensors, refused \(it names posix\.mkdir\)$"):
        start_from(build("cnn", 1), "cnn", str(path))
    assert not trace.exists()


def test_a_missing_weight_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.pth: does not exist"):
        start_from(build("cnn", 1), "cnn", str(tmp_path / "nothing.pth"))


def test_the_plain_network_has_no_imagenet_weights() -> None:
    with pytest.raises(UsageError, match="none for cnn"):
        start_from(build("cnn", 1), "cnn", "imagenet")
