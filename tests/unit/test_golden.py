"""Golden images: a bundle answers them as at publication, or is refused with how far it is off."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.model.bundle import GOLDEN, GRAPH, WEIGHTS, Bundle, read_bundle, write_bundle
from pipeline.model.golden import Golden
from pipeline.model.migration import Change
from pipeline.model.migration import publish as migrated
from pipeline.model.predictor import Predictor
from pipeline.training.golden_images import golden_file, golden_images
from tests.bundles import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A linear model of four classes with golden images."""
    plain = make_bundle(tmp_path / "m", size=32, task="multiclass", temperature=2.0)
    files = {name: plain.file(name) for name in (WEIGHTS, GRAPH)}
    return write_bundle(plain.uri, plain.info, files | {GOLDEN: golden_file(plain.info, files)})


def with_golden(bundle: Bundle, data: bytes) -> Bundle:
    bundle.write(GOLDEN, data)
    return bundle.update(golden_sha256=hashlib.sha256(data).hexdigest())


def test_the_images_are_small_drawn_and_told_apart(bundle: Bundle) -> None:
    images = golden_images()
    assert images == golden_images() and sum(map(len, images)) < 100_000
    golden = Golden.unpacked(bundle.file(GOLDEN), "m")
    assert golden.images == images and golden.logits.shape == (3, 4)
    assert len({tuple(np.round(row, 2)) for row in golden.logits}) == 3


def test_a_bundle_proves_itself_by_its_logits_whatever_its_decision_rule(bundle: Bundle) -> None:
    for same in (bundle, read_bundle(bundle.uri), bundle.with_threshold(0.9), bundle.hold()):
        Predictor(same, engine="onnx").prove()
    old = make_bundle(Path(bundle.uri).parent / "old", size=32)  # of a version that had none
    Predictor(old, engine="onnx").prove()


def test_one_that_answers_otherwise_is_refused_with_the_difference(bundle: Bundle) -> None:
    other = make_bundle(Path(bundle.uri).parent / "other", size=32, task="multiclass", seed=1)
    swapped = with_golden(other, bundle.file(GOLDEN))
    with pytest.raises(InputError, match=r"golden images as it did .*image \d of 3: logits are off by"):
        Predictor(swapped, engine="onnx").prove()
    binary = make_bundle(Path(bundle.uri).parent / "binary", size=32)
    with pytest.raises(InputError, match=r"shape \(3, 1\) instead of \(3, 4\)"):
        Predictor(with_golden(binary, bundle.file(GOLDEN)), engine="onnx").prove()


@pytest.mark.parametrize("off", [0.0, 0.009, 0.011, float("nan")])
def test_the_limit_is_a_hundredth_of_the_largest_logit(off: float) -> None:
    golden = Golden((b"a", b"b"), np.array([[0.5, -0.2], [40.0, 3.0]], np.float32))
    found = golden.logits.copy()
    found[0, 1] += off
    found[1, 1] += 40 * off
    assert (golden.difference(found) is None) == (off < 0.01)


@pytest.mark.parametrize("damage", [b"{}", b"no", b"[]", json.dumps({"golden_version": 9}).encode()])
def test_a_damaged_file_is_named(bundle: Bundle, damage: bytes) -> None:
    with pytest.raises(InputError, match=r"golden\.json"):
        Predictor(with_golden(bundle, damage), engine="onnx").prove()
    bundle.write(GOLDEN, b"altered")
    with pytest.raises(InputError, match=r"golden\.json is not the file that was published"):
        Predictor(read_bundle(bundle.uri).hold(), engine="onnx").prove()


def test_a_version_for_other_pixel_rules_has_its_own_answers(bundle: Bundle) -> None:
    of_old_rules = bundle.update(preprocessing_digest="0" * 64)
    new = migrated(of_old_rules, Change(images=1, mean=0.0, largest=0.0, decisions=0))
    assert new.info.golden_sha256 and Golden.unpacked(new.file(GOLDEN), "new").images == golden_images()
    Predictor(new, engine="onnx").prove()
