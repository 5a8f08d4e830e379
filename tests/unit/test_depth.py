"""Bits that count in 16-bit samples: what is fixed, stated, guessed or refused, and that the same field is the same."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.depth import count_levels, depth_of, highest
from pipeline.images.formats import png
from pipeline.images.load import LoadedImage, Preprocessing, load_image
from tests.bundles import make_bundle, said_of
from tests.images import deep_png, encoded, png_chunk, scene, tiff, with_png_chunk
from tests.searches import search

SIZE = 48
GRAY = np.asarray(scene().convert("L")).astype(np.uint16)
RGB = np.asarray(scene()).astype(np.uint16)
MAX_SAMPLE, SMAX_SAMPLE = 281, 341


def of_bits(levels: NDArray[np.uint16], bits: int) -> NDArray[np.uint16]:
    """8-bit levels as a converter of so many bits gives them."""
    return np.rint(levels / 255 * ((1 << bits) - 1)).astype(np.uint16)


def loaded(data: bytes, bit_depth: int | None = None) -> LoadedImage:
    return load_image(data, SIZE, bit_depth=bit_depth)


def off_by(found: LoadedImage, levels: NDArray[np.uint16]) -> int:
    """Levels at most from the 8-bit image."""
    wanted = loaded(encoded(Image.fromarray(levels.astype(np.uint8)), "PNG")).pixels
    return int(np.abs(found.pixels.astype(int) - wanted).max())


def refusal(data: bytes, bit_depth: int | None = None) -> str:
    with pytest.raises(ImageRejected) as caught:
        loaded(data, bit_depth)
    assert caught.value.code is Code.UNSUPPORTED_FORMAT
    return caught.value.message


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["tiff", "png"])
def test_a_gray_field_of_any_depth_is_as_bright_as_its_8_bit_copy(kind: str, bits: int) -> None:
    samples = of_bits(GRAY, bits)
    found = loaded(tiff(samples) if kind == "tiff" else encoded(Image.fromarray(samples), "PNG"))
    assert off_by(found, GRAY) <= 1
    assert found.remarks == (() if bits == 16 else (f"depth guessed as {bits} bits",))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_model_says_of_a_field_of_any_depth_what_it_says_of_its_8_bit_copy(bits: int, tmp_path: Any) -> None:
    bundle = make_bundle(tmp_path, size=SIZE)
    plain, deep = said_of(bundle, encoded(Image.fromarray(GRAY.astype(np.uint8)), "PNG"), tiff(of_bits(GRAY, bits)))
    assert deep.probability == pytest.approx(plain.probability, abs=0.005)


def test_hot_pixels_do_not_flip_the_guess() -> None:
    samples = of_bits(GRAY, 12)
    samples[::40, ::40] = 65535
    found = loaded(tiff(samples))
    assert found.remarks == ("depth guessed as 12 bits",)
    samples[::40, ::40] = 40000
    assert loaded(tiff(samples)).remarks == found.remarks


def test_a_scale_bar_drawn_in_white_does_not_flip_the_guess() -> None:
    samples = of_bits(GRAY, 12)
    samples[100:108, 20:100] = 65535  # 3 % of the field
    assert loaded(tiff(samples)).remarks == ("depth guessed as 12 bits",)


@pytest.mark.parametrize("size", [10, 16, 28])
@pytest.mark.parametrize("white", [65535, 65280])  # of 8 bits, by 257 or by 256
def test_a_caption_with_smooth_edges_does_not_flip_the_guess(size: int, white: int) -> None:
    field = np.tile(GRAY, (4, 4))
    drawn = Image.new("L", field.shape[::-1])
    ImageDraw.Draw(drawn).text((20, 20), "50 µm 40x", 255, font=ImageFont.load_default(size))
    share = np.asarray(drawn) / 255
    assert ((share > 0.1) & (share < 0.9)).sum() > 100
    captioned = (of_bits(field, 12) * (1 - share) + white * share).astype(np.uint16)
    assert loaded(tiff(captioned)).remarks == ("depth guessed as 12 bits",)
    assert loaded(tiff(captioned, tags={MAX_SAMPLE: 4095})).remarks == ()


def test_black_is_black_at_any_depth() -> None:
    for samples in (np.zeros((40, 40), np.uint16), np.zeros((40, 40, 3), np.uint16)):
        found = loaded(tiff(samples))
        assert not found.pixels.any() and not found.remarks


@pytest.mark.parametrize(("tag", "bits"), [(MAX_SAMPLE, 10), (SMAX_SAMPLE, 12), (MAX_SAMPLE, 14), (SMAX_SAMPLE, 11)])
def test_a_dark_field_is_scaled_by_what_its_tiff_states(tag: int, bits: int) -> None:
    dark = GRAY // 5
    found = loaded(tiff(of_bits(dark, bits), tags={tag: (1 << bits) - 1}))
    assert off_by(found, dark) <= 1 and not found.remarks


def test_a_maximum_that_is_no_full_scale_or_all_16_bits_states_nothing() -> None:
    samples = of_bits(GRAY, 12)
    for highest_value in (int(samples.max()), 65535, 1):
        found = loaded(tiff(samples, tags={SMAX_SAMPLE: highest_value}))
        assert found.remarks == ("depth guessed as 12 bits",)


def test_a_statement_that_the_samples_contradict_is_not_believed() -> None:
    found = loaded(tiff(of_bits(GRAY, 14), tags={SMAX_SAMPLE: 1023}))
    assert off_by(found, GRAY) <= 1 and found.remarks == ("depth guessed as 14 bits",)


def test_ome_states_significant_bits() -> None:
    ome = b'<?xml version="1.0"?><OME><Image><Pixels SizeC="1" SizeZ="1" SizeT="1" SignificantBits="%d"/></Image></OME>'
    dark = GRAY // 5
    assert off_by(loaded(tiff(of_bits(dark, 12), description=ome % 12)), dark) <= 1
    assert loaded(tiff(of_bits(GRAY, 12), description=ome % 16)).remarks == ("depth guessed as 12 bits",)


def sbit(bits: int, channels: int = 1) -> bytes:
    return png_chunk(b"sBIT", bytes([bits]) * channels)


def test_a_png_states_its_bits_in_sbit_however_they_are_aligned() -> None:
    dark = GRAY // 5
    low = with_png_chunk(encoded(Image.fromarray(of_bits(dark, 12)), "PNG"), sbit(12))
    assert off_by(loaded(low), dark) <= 1 and not loaded(low).remarks
    as_specified = with_png_chunk(encoded(Image.fromarray(GRAY * 257), "PNG"), sbit(12))  # scaled up to all 16
    assert off_by(loaded(as_specified), GRAY) <= 1


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_colour_that_nothing_anchors_is_refused_until_its_depth_is_fixed(bits: int) -> None:
    for data in (tiff(of_bits(RGB, bits)), deep_png(of_bits(RGB, bits))):
        assert f"--bit-depth {bits}" in refusal(data)
        found = loaded(data, bits)
        assert off_by(found, RGB) <= 1 and not found.remarks


def test_colour_of_a_stated_depth_is_scaled_by_it() -> None:
    for data in (
        tiff(of_bits(RGB, 12), tags={SMAX_SAMPLE: [4095] * 3}),
        tiff(of_bits(RGB, 12), tags={SMAX_SAMPLE: [4095] * 3}, order=">"),
        tiff(of_bits(RGB, 12), tags={SMAX_SAMPLE: [4095] * 3}, order=">", big=True),
        with_png_chunk(deep_png(of_bits(RGB, 12)), sbit(12, 3)),
    ):
        assert off_by(loaded(data), RGB) <= 1 and not loaded(data).remarks


def test_a_chunk_that_announces_gigabytes_is_not_handed_on() -> None:
    data = deep_png(of_bits(RGB, 12))
    at = data.index(b"IDAT") - 4
    endless = data[:at] + struct.pack(">I", 0xCB0DAEFF) + b"tEXt" + data[at:]
    assert png.bare(endless) is None and png.bare(data) == data, "OpenCV would take it for what is announced"
    with pytest.raises(ImageRejected):
        loaded(endless, 12)


def test_a_hot_pixel_does_not_make_dark_colour_pass_for_16_bits() -> None:
    samples = of_bits(RGB, 12)
    samples[50, 50] = 65535
    assert "--bit-depth 12" in refusal(tiff(samples))


def test_opaque_alpha_does_not_make_dark_colour_pass_for_16_bits() -> None:
    alpha = np.full((*RGB.shape[:2], 1), 65535, np.uint16)
    data = tiff(np.concatenate([of_bits(RGB, 12), alpha], 2), tags={262: 2, 338: 2})
    assert "save it as RGB of 8 bits" in refusal(data) and "save it as RGB" in refusal(data, 12)


def test_what_is_fixed_is_the_last_word_and_a_contradiction_is_remarked_on() -> None:
    data = tiff(of_bits(GRAY, 12), tags={SMAX_SAMPLE: 16383})
    assert off_by(loaded(data, 12), GRAY) <= 1
    assert loaded(data, 12).remarks == ("depth fixed at 12 bits, the file states 14",)
    assert loaded(data, 16).pixels.max() < 20
    assert "--bit-depth" in refusal(tiff(of_bits(GRAY, 14)), 12)


def test_a_fixed_depth_leaves_8_bit_images_alone() -> None:
    for kind in ("PNG", "JPEG", "TIFF", "BMP"):
        data = encoded(scene(), kind)
        assert (loaded(data, 12).pixels == loaded(data).pixels).all()


def test_samples_of_which_0_is_white_are_not_guessed() -> None:
    samples = 4095 - of_bits(GRAY, 12)
    assert "--bit-depth 12" in refusal(tiff(samples, tags={262: 0}))
    assert off_by(loaded(tiff(samples, tags={262: 0}), 12), GRAY) <= 1
    assert off_by(loaded(tiff(samples, tags={262: 0, SMAX_SAMPLE: 4095})), GRAY) <= 1


def test_packed_12_bit_samples_are_scaled_by_their_12_bits() -> None:
    width, height = 160, 120
    dark = of_bits(GRAY // 5, 12).reshape(-1, 2).astype(np.uint32)
    packed = (dark[:, 0] << 12 | dark[:, 1])[:, None] >> np.array([16, 8, 0]) & 255
    data = bytearray(tiff(np.zeros((height, width * 3 // 2), np.uint8), tags={256: width}))
    data[8 : 8 + packed.size] = packed.astype(np.uint8).tobytes()
    at = data.index(struct.pack("<HHI", 258, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 12)
    assert off_by(loaded(bytes(data)), GRAY // 5) <= 1


def test_a_depth_is_part_of_the_rules_that_a_digest_stands_for() -> None:
    assert Preprocessing(SIZE, bit_depth=12).digest() != Preprocessing(SIZE).digest()


@given(bits=st.integers(9, 16), share=st.floats(0, 0.0009), seed=st.integers(0, 99))
@search(80)
def test_whatever_few_pixels_are_hot_bright_samples_are_never_taken_for_fewer_or_many_more_bits(
    bits: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 1 << bits, 20_000).astype(np.uint16)
    samples[: int(share * len(samples))] = rng.integers(0, 65536)
    depth = depth_of(count_levels([samples]))
    assert bits <= depth.bits <= bits + 1 + bits % 2
    assert highest(count_levels([samples])) <= depth.top
