"""Which bundles may teach a network, what they are shown, and what is told of them afterwards."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.base.errors import InputError, UsageError
from pipeline.evaluation.provenance import basis, caveats
from pipeline.evaluation.recognized import NO_SKETCH, Recognized
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.bundle import GRAPH, WEIGHTS, Bundle, BundleInfo, write_bundle
from pipeline.model.export import to_safetensors
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from pipeline.training.rows import labelled_rows
from pipeline.training.teacher import Teacher, open_teacher
from tests.training_data import cell_images, manifest_of
from tests.training_settings import training_settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("cells")
    return manifest_of(cell_images(folder / "images", 12), folder / "manifest")


def bundle(folder: Path, **changes: Any) -> Bundle:
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "name": "large", "version": "1", "architecture": "cnn", "task": "binary", "classes": ("negative", "positive"),
        "positive_classes": ("positive",), "input_size": 48, "weights_sha256": "", "graph_sha256": "",
        "preprocessing_digest": Preprocessing(48, bit_depth=changes.get("bit_depth")).digest(),
    } | changes  # fmt: skip
    info = BundleInfo(**fields)
    files = {WEIGHTS: to_safetensors(build("cnn", info.outputs)), GRAPH: b"not asked for"}
    return write_bundle(str(folder), info, files)


def opened(uri: str | Path, manifest: Manifest) -> Teacher:
    return open_teacher(str(uri), labelled_rows(manifest), manifest, None, Stores())


def test_a_teacher_sees_the_images_at_its_own_size(tmp_path: Path, manifest: Manifest) -> None:
    answers = opened(bundle(tmp_path).uri, manifest).on(CPU)

    def ramp(size: int) -> torch.Tensor:
        across = (torch.arange(size) + 0.5) / size * 250.0
        return across.round().to(torch.uint8).view(1, 1, size, 1).expand(1, size, size, 3).contiguous()

    own = answers(ramp(48))
    assert own.shape == (1, 1)
    for size in (24, 96, 131):
        assert torch.allclose(answers(ramp(size)), own, atol=1e-3)
    assert not torch.allclose(answers(255 - ramp(48)), own, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("healthy", "positive")}, "tells healthy, positive apart, this manifest negative, positive"),
        ({"task": "multiclass", "classes": ("a", "b", "c"), "positive_classes": ()}, "tells a, b, c apart"),
        ({"positive_classes": ()}, "same meaning of disease"),
        ({"architecture": "cnn-se"}, "its weights do not fit cnn-se"),
        ({"bit_depth": 12}, "with --bit-depth 12; give the same here"),
    ],
)
def test_who_cannot_teach_is_refused(changes: dict[str, Any], words: str, tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises((InputError, UsageError), match=words):
        opened(bundle(tmp_path, **changes).uri, manifest)


def test_a_missing_or_damaged_teacher_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(InputError, match="neither a bundle"):
        opened(tmp_path / "nothing", manifest)
    damaged = bundle(tmp_path)
    Path(damaged.uri, WEIGHTS).write_bytes(damaged.file(WEIGHTS)[:-1])
    with pytest.raises(InputError, match="not the file that was published"):
        opened(damaged.uri, manifest)


def test_a_teacher_of_samples_says_nothing_of_real_images(tmp_path: Path, manifest: Manifest) -> None:
    real = Manifest(manifest.uri, manifest.table, manifest.info.model_copy(update={"synthetic": False}))
    with pytest.raises(InputError, match="synthetic images only"):
        opened(bundle(tmp_path, synthetic=True).uri, real)


def test_a_run_with_another_teacher_is_another_run(tmp_path: Path, manifest: Manifest) -> None:
    one = opened(bundle(tmp_path / "one").uri, manifest)
    two = opened(bundle(tmp_path / "two", temperature=2.0).uri, manifest)
    digests = {training_settings(teacher=each).digest() for each in (None, one.identity, two.identity)}
    assert len(digests) == 3


def test_what_a_teacher_may_have_seen_stands_beside_the_figures(tmp_path: Path, manifest: Manifest) -> None:
    """A teacher of another manifest may know its test images, however many teachers ago."""
    outcomes: Any = SimpleNamespace(rejections=[], all=[], is_ood=None)
    digest = manifest.info.digest
    same = opened(bundle(tmp_path / "same", manifest_digest=digest).uri, manifest).account()
    other = opened(bundle(tmp_path / "other", manifest_digest="other").uri, manifest).account()
    taught = bundle(tmp_path / "taught", manifest_digest=digest, training={"teacher": other})
    again = opened(taught.uri, manifest).account()
    not_asked = Recognized(NO_SKETCH)
    for teacher, is_told in ((None, False), (same, False), (other, True), (again, True)):
        student = bundle(tmp_path / "student", manifest_digest=digest, training={"teacher": teacher})
        told = any(
            "learnt from the answers" in note
            for note in caveats("test", student, manifest, outcomes, Recognized(NO_SKETCH))
        )
        assert told is is_told
        assert ("not known" in basis("test", student, manifest, not_asked)) is is_told
