"""What only a machine with an NVIDIA GPU can show: the same numbers as on cores, and as many images.

Everywhere else these tests are skipped, with that reason. They need nothing of the other tests' servers.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.base.machine import nvidia_cards
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.bundle import BundleInfo
from pipeline.model.export import to_onnx, to_safetensors
from pipeline.model.outputs import FEATURES, LOGITS
from pipeline.model.torch_engine import TorchRunner
from pipeline.training.batch import Batch, batch_of
from pipeline.training.epoch import Learner
from pipeline.training.loop import begun, compute_repeatably
from pipeline.training.objective import make_loss
from tests.training_settings import training_settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not nvidia_cards(), reason="what a GPU computes: no NVIDIA GPU on this machine"),
]
SIZE, BATCH = 96, 16
ARCHITECTURES = ("cnn", "cnn-se", "resnet18", "mobilenet_v3_small", "efficientnet-lite0", "efficientnet_b0")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Training asks PyTorch for repeatable sums; the engine does not."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gpu_and_onnx_runtime_give_the_same_numbers(architecture: str) -> None:
    torch.manual_seed(0)
    model = build(architecture, 1).eval()
    _unlike_its_start(model)
    info = BundleInfo(
        name="any", version="1", architecture=architecture, task="binary", classes=("negative", "positive"),
        input_size=SIZE, preprocessing_digest=Preprocessing(SIZE).digest(), weights_sha256="", graph_sha256="",
    )  # fmt: skip
    runner = TorchRunner(info, to_safetensors(model))
    session = onnxruntime.InferenceSession(to_onnx(model, SIZE), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (300, SIZE, SIZE, 3), dtype=np.uint8)
    logits, features = (np.concatenate(each) for each in zip(*(
        session.run([LOGITS, FEATURES], {"images": images[at : at + 50]}) for at in range(0, 300, 50)
    ), strict=True))  # fmt: skip
    for count in (300, 1, 15, 16, 17, 128, 129):  # whole passes, filled ones, several
        found = runner(images[:count])
        assert found.logits.shape == (count, 1) and found.features is not None
        assert np.abs(_probability(found.logits) - _probability(logits[:count])).max() < 1e-5
        assert np.abs(found.features - features[:count]).max() < 1e-4 * np.abs(features).max()


@pytest.mark.parametrize("architecture", ["cnn-se", "resnet18", "efficientnet-lite0", "efficientnet_b0"])
def test_a_graph_learns_what_kernels_one_by_one_learn(architecture: str) -> None:
    """To the bit: dropout, random changes of images and bfloat16 included."""
    compute_repeatably()
    graphed, plain = _learner(architecture), _learner(architecture)
    plain.no_graph = "not to be tried"
    losses = [
        [float(learner.step(batch, 0, step)) for step, batch in enumerate(_batches())] for learner in (graphed, plain)
    ]
    assert not graphed.no_graph and graphed._captured is not None and plain._captured is None
    assert losses[0] == losses[1] and len(set(losses[0])) == len(losses[0])
    weights, expected = (learner.model.state_dict() for learner in (graphed, plain))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whichever_way_is_taken_the_losses_are_those_of_single_kernels(architecture: str) -> None:
    """But for bfloat16's rounding: a graph whose gradients differ is not used."""
    compute_repeatably()
    chosen, plain = _learner(architecture), _learner(architecture)
    plain.no_graph = "not to be tried"
    for step, batch in enumerate(_batches()):
        expected = float(plain.step(batch, 0, step))
        assert float(chosen.step(batch, 0, step)) == pytest.approx(expected, rel=0.02)


def test_a_batch_of_another_size_takes_no_graph_and_harms_none() -> None:
    compute_repeatably()
    mixed, plain = _learner("efficientnet-lite0"), _learner("efficientnet-lite0")
    plain.no_graph = "not to be tried"
    small, *whole = _batches()
    part = Batch(small.images[:5], small.targets[:5], small.image_ids[:5])
    for learner in (mixed, plain):
        for step, batch in enumerate([whole[0], part, whole[1], part]):
            learner.step(batch, 0, step)
    expected = plain.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in mixed.model.state_dict().items())


def test_the_whole_way_on_a_gpu(tmp_path: Path) -> None:
    """Trained, evaluated and scored there; scored on cores as well: every image once, the same answers."""
    _run("samples", "--out", "samples", "--images", "400", "--archive-images", "400", at=tmp_path)
    _run("ingest", "samples", "--out", "manifest", at=tmp_path)
    said = _run(
        "train", "manifest", "--out", "models", "--name", "any", "--use-gpu", "--architecture", "cnn-se", "--weights",
        "none", "--input-size", "64", "--epochs", "3", at=tmp_path,
    )  # fmt: skip
    assert "training on cuda" in said and "no CUDA graph" not in said
    _run("evaluate", "manifest", "--model", "models", "--gpus-per-worker", "0.5", "--out", "report", at=tmp_path)
    tables = []
    for out, options in (("on-gpu", ["--use-gpu", "--workers", "2"]), ("on-cores", ["--workers", "2"])):
        _run("score", "samples-archive", "--model", "models", "--out", out, *options, at=tmp_path)
        [run] = (tmp_path / out).glob("run-*")
        counts = json.loads((run / "run.json").read_text())["counts"]
        assert counts["listed"] == counts["scored"] + counts["quarantined"] == 403
        rows = pq.read_table(run / "predictions").to_pylist()
        tables.append({row["image_id"]: row for row in rows})
    on_gpu, on_cores = tables
    assert on_gpu.keys() == on_cores.keys() and len(on_gpu) == 400
    for number, row in on_gpu.items():
        assert abs(row["probability"] - on_cores[number]["probability"]) < 1e-5
        assert row["is_ood"] == on_cores[number]["is_ood"]


def _run(*arguments: str, at: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments], cwd=at, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _probability(logits: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def _unlike_its_start(model: torch.nn.Module) -> None:
    """Statistics and scales as of a trained network: at 0 and 1 a mistake in them would not show."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)


def _learner(architecture: str) -> Learner:
    settings = training_settings(
        architecture=architecture, input_size=SIZE, batch_size=BATCH, augment=True, amp=True, epochs=2, clip_norm=1.0
    )
    torch.manual_seed(0)
    cuda = torch.device("cuda", 0)
    model, optimizer = begun(settings, None, cuda, 1)
    model.train()
    return Learner(settings, 0, 1, cuda, model, model, optimizer, make_loss(settings, (60, 40), cuda), 100)


def _batches() -> list[Batch]:
    rng = np.random.default_rng(0)
    batches = []
    for number in range(4):
        pixels = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
        ids = np.arange(BATCH, dtype=np.int64) + number * BATCH
        targets = rng.integers(0, 2, BATCH)
        batches.append(batch_of(SIZE, targets, ids, functools.partial(np.copyto, src=pixels)))
    return batches
