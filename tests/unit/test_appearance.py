"""The figures of an image's look: each moves with what it is named after, and stays with what it is not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.images.appearance import FIGURES, NAMES, appearance, appearances
from tests.images import encoded

SIDE = 144


def cell(seed: int = 0, radius: float = 26.0) -> np.ndarray:
    """A purple nucleus with structure in pale cytoplasm on a pink ground with some grain; uint8 (SIDE, SIDE, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    away = np.hypot(x, y)[..., None]
    pixels = np.where(away < 2 * radius, [190.0, 180.0, 215.0], [235.0, 222.0, 228.0])
    chromatin = rng.normal(0, 14, (SIDE // 3, SIDE // 3))
    coarse = np.asarray(Image.fromarray(chromatin.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    pixels = np.where(away < radius, np.array([110.0, 50.0, 140.0]) + coarse[..., None], pixels)
    return (pixels + rng.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8)


def looks(pixels: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, appearance(pixels), strict=True))


def blur(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5)))


def jpeg(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(pixels), "JPEG", quality=8))))


def darker(pixels: np.ndarray) -> np.ndarray:
    return (pixels * 0.75).astype(np.uint8)


def redder(pixels: np.ndarray) -> np.ndarray:
    return (pixels * [1.0, 0.85, 0.95]).astype(np.uint8)


def noisier(pixels: np.ndarray) -> np.ndarray:
    return (pixels + np.random.default_rng(1).normal(0, 9, pixels.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "change", "least"),
    [
        ("sharpness", blur, -0.4), ("grain", jpeg, -1.0), ("grain", noisier, 1.0), ("brightness", darker, -10.0),
        ("white_share", darker, -0.3), ("redness", redder, 5.0),
    ],
)  # fmt: skip
def test_a_figure_moves_with_what_it_is_named_after(
    name: str, change: Callable[[np.ndarray], np.ndarray], least: float
) -> None:
    moved = looks(change(cell()))[name] - looks(cell())[name]
    assert moved / least >= 1


def test_sharpness_is_of_the_focus_neither_of_light_nor_of_contrast() -> None:
    own = looks(cell())["sharpness"]
    assert abs(looks(darker(cell()))["sharpness"] - own) < 0.1 < own - looks(blur(cell()))["sharpness"]


@pytest.mark.parametrize("factor", [0.8, 1.5])
def test_size_is_the_logarithm_of_the_nucleus_and_light_does_not_move_it(factor: float) -> None:
    own, other = looks(cell(radius=20))["size"], looks(cell(radius=20 * factor))["size"]
    assert other - own == pytest.approx(np.log2(factor), abs=0.1)
    assert own == pytest.approx(np.log2(np.sqrt(np.pi) * 20 / SIDE), abs=0.1)
    assert looks(darker(cell(radius=20)))["size"] == pytest.approx(own, abs=0.1)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_field_is_neither_sharp_nor_blurred_and_has_no_size(level: int) -> None:
    blank = looks(np.full((SIDE, SIDE, 3), level, np.uint8))
    assert np.isnan(blank["sharpness"]) and np.isnan(blank["size"])
    assert np.isfinite([blank[name] for name in NAMES if name not in ("sharpness", "size")]).all()


def test_a_batch_has_a_row_an_image_and_an_empty_one_none() -> None:
    batch = np.stack([cell(0), cell(1)])
    assert np.array_equal(appearances(batch), np.float32([appearance(cell(0)), appearance(cell(1))]))
    assert appearances(batch[:0]).shape == (0, len(FIGURES))
