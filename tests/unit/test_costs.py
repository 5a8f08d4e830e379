"""Sound images that look like costly ones are read, and what an image may cost is known from its header."""

import numpy as np
import pytest

from pipeline.base.errors import ImageRejected
from pipeline.images.cost import worst_seconds
from pipeline.images.load import load_image, read_header
from serving.decoding import SMALL_S
from serving.settings import ServingSettings
from tests.bombs import sound_jpeg_of_scans
from tests.images import deflated_planes, encoded, scene

LIMITS = ServingSettings(model="m").limits


@pytest.mark.parametrize("progressive", [False, True])
def test_a_film_behind_a_photo_costs_it_nothing(progressive: bool) -> None:
    photo = encoded(scene(4000, 3000), "JPEG", progressive=progressive)
    film = np.random.default_rng(0).integers(0, 256, 8 << 20, np.uint8).tobytes()  # holds marks of 128 scans
    assert read_header(photo + film, LIMITS) == read_header(photo, LIMITS)
    assert np.array_equal(load_image(photo + film, 64).pixels, load_image(photo, 64).pixels)


def test_a_harmless_warning_of_a_photo_with_a_film_behind_it_is_harmless() -> None:
    photo = encoded(scene(), "JPEG").replace(b"\xff\xdb", b"\0\0\xff\xdb", 1)
    assert np.array_equal(load_image(photo + b"ftypmp42" * 99, 64).pixels, load_image(photo, 64).pixels)


def test_planes_of_many_rows_that_are_strips_of_their_own_are_read() -> None:
    samples = np.asarray(scene(1200, 7000))
    expected = load_image(encoded(scene(1200, 7000), "PNG"), 64).pixels
    assert np.array_equal(load_image(deflated_planes(samples), 64).pixels, expected)
    with pytest.raises(ImageRejected, match="more pieces"):
        load_image(deflated_planes(np.asarray(scene(120, 7000))), 64)


def test_scans_are_part_of_what_an_image_may_cost() -> None:
    plain = encoded(scene(1000, 1000), "JPEG")
    assert worst_seconds(read_header(plain), len(plain)) < SMALL_S
    scanned = sound_jpeg_of_scans(1000, 238, 480)
    assert worst_seconds(read_header(scanned), len(scanned)) > 1.5  # it takes 1.7 s
    of_nothing = sound_jpeg_of_scans(1000, 1, 700)
    assert worst_seconds(read_header(of_nothing), len(of_nothing)) > SMALL_S
