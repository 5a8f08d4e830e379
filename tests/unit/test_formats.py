"""Formats beside the common ones: each gives the pixels it shows, and whatever is not read is refused by its name."""

import builtins
import functools
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.formats import heic, jpeg2000
from pipeline.images.load import Limits, load_image, read_header
from tests.images import encoded, jpeg_tiff, scene, tiff
from tests.searches import search

SIZE = 48
GRAY = scene().convert("L")


def refusal(data: bytes, limits: Limits = Limits()) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        load_image(data, SIZE, limits)
    return caught.value


def off_by(data: bytes, shown: Image.Image) -> float:
    """Mean difference in levels."""
    wanted = load_image(encoded(shown.convert("RGB"), "PNG"), SIZE).pixels.astype(int)
    return float(np.abs(load_image(data, SIZE).pixels.astype(int) - wanted).mean())


def heif(image: Image.Image, **options: Any) -> bytes:
    heic.enable()
    return encoded(image, "HEIF", **options)


def plain(image: Image.Image, top: int = 255) -> bytes:
    samples = np.asarray(image).astype(int) * top // 255
    kind = "P3" if samples.ndim == 3 else "P2"
    body = "\n".join(" ".join(map(str, row.ravel())) for row in samples)
    return f"{kind}\n# made by hand\n{image.width} {image.height}\n{top}\n{body}\n".encode()


def raw_pnm(samples: NDArray[np.uint16], top: int) -> bytes:
    kind = "P6" if samples.ndim == 3 else "P5"
    return f"{kind} {samples.shape[1]} {samples.shape[0]} {top}\n".encode() + samples.astype(">u2").tobytes()


BITS = GRAY.point(lambda level: 255 * (level > 140)).convert("1")
DEEP = np.asarray(GRAY).astype(np.uint16)

GOOD: dict[str, tuple[Callable[[], bytes], Image.Image, float]] = {  # bytes, what it shows, levels it may be off
    "jpeg 2000": (lambda: encoded(scene(), "JPEG2000"), scene(), 0),
    "jpeg 2000 codestream": (lambda: encoded(scene(), "JPEG2000", no_jp2=True), scene(), 0),
    "lossy jpeg 2000": (lambda: encoded(scene(), "JPEG2000", quality_layers=[20], irreversible=True), scene(), 2),
    "gray jpeg 2000": (lambda: encoded(GRAY, "JPEG2000"), GRAY, 0),
    "16-bit jpeg 2000": (lambda: encoded(Image.fromarray(DEEP * 257), "JPEG2000"), GRAY, 1),
    "jpeg 2000 with alpha": (lambda: encoded(scene().convert("RGBA"), "JPEG2000"), scene(), 0),
    "avif": (lambda: encoded(scene(), "AVIF", quality=95), scene(), 3),
    "heic": (lambda: heif(scene(), quality=95), scene(), 3),
    "tiff of jpeg tiles": (lambda: jpeg_tiff(scene()), scene(), 2),
    "tiff of old-style jpeg": (lambda: jpeg_tiff(scene(), old=True), scene(), 2),
    "ppm": (lambda: encoded(scene(), "PPM"), scene(), 0),
    "pgm": (lambda: encoded(GRAY, "PPM"), GRAY, 0),
    "pbm": (lambda: encoded(BITS, "PPM"), BITS, 0),
    "plain ppm": (lambda: plain(scene()), scene(), 0),
    "plain pgm of 100 levels": (lambda: plain(GRAY, 100), GRAY, 3),
    "plain pbm": (lambda: b"P1 4 2 1010\n0101", Image.fromarray(np.array([[0, 255] * 2, [255, 0] * 2], np.uint8)), 0),
    "pgm of 12 bits": (lambda: raw_pnm(DEEP * 16, 4095), GRAY, 1),
    "ppm of 16 bits": (lambda: raw_pnm(np.asarray(scene()).astype(np.uint16) * 257, 65535), scene(), 0),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_image_of_another_format_gives_the_pixels_it_shows(name: str) -> None:
    make, shown, tolerance = GOOD[name]
    assert off_by(make(), shown) <= tolerance


@pytest.mark.parametrize(
    ("data", "name"),
    [(encoded(scene(), "JPEG2000"), "jp2"), (encoded(scene(), "AVIF"), "avif"), (heif(scene()), "heic"),
     (encoded(scene(), "PPM"), "pnm")],
)  # fmt: skip
def test_format_and_size_are_told(data: bytes, name: str) -> None:
    header = read_header(data)
    assert (header.format, header.width, header.height) == (name, 160, 120)


@pytest.mark.parametrize("make", [functools.partial(encoded, kind="AVIF"), heif], ids=["avif", "heic"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_orientation_is_applied_once(make: Callable[..., bytes], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encoded(scene(), "PNG", exif=exif)
    wanted = load_image(turned, SIZE).pixels.astype(int)
    found = load_image(make(scene(), exif=exif.tobytes(), quality=95), SIZE).pixels.astype(int)
    assert np.abs(found - wanted).mean() <= 3


def test_dark_gray_jpeg_2000_of_12_bits_is_measured_by_its_depth() -> None:
    level = 200 + (1 << 15) - (1 << 11)  # samples are stored less half of what their depth holds
    data = bytearray(encoded(Image.fromarray(np.full((64, 64), level, np.uint16)), "JPEG2000", no_jp2=True))
    assert data[42] == 15  # Ssiz: 16 bits, less one
    data[42] = 11
    frame = jpeg2000.read_frame(bytes(data))
    assert frame is not None and frame.bits == 12
    assert 8 <= load_image(bytes(data), SIZE).pixels.mean() <= 16  # of 4095, not of 65535 nor of the brightest


# ---- damage ------------------------------------------------------------------------------------------------

WHOLE = {
    "jpeg 2000": encoded(scene(64, 48), "JPEG2000"),
    "codestream": encoded(scene(64, 48), "JPEG2000", no_jp2=True),
    "avif": encoded(scene(64, 48), "AVIF"),
    "heic": heif(scene(64, 48)),
    "ppm": encoded(scene(64, 48), "PPM"),
    "plain pgm": plain(scene(64, 48).convert("L")),
}


@pytest.mark.parametrize("percent", range(5, 100, 5))
@pytest.mark.parametrize("name", WHOLE)
def test_an_image_of_another_format_cut_anywhere_is_truncated(name: str, percent: int) -> None:
    assert refusal(WHOLE[name][: len(WHOLE[name]) * percent // 100]).code is Code.TRUNCATED


@pytest.mark.parametrize("name", WHOLE)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8))
@search(60)
def test_flipped_bytes_of_another_format_give_pixels_or_a_code(name: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(WHOLE[name])
    for place, mask in flips:
        data[int(len(data) * place)] ^= mask
    try:
        assert load_image(bytes(data), SIZE, Limits(max_pixels=4_000_000)).pixels.shape == (SIZE, SIZE, 3)
    except ImageRejected as error:
        assert error.message


def siz(width: int, height: int, tile: int) -> bytes:
    """A codestream that announces such a size."""
    data = bytearray(WHOLE["codestream"])
    data[8:16] = struct.pack(">II", width, height)
    data[24:32] = struct.pack(">II", tile, tile)
    return bytes(data)


def hidden(width: int, height: int) -> bytes:
    """A JPEG 2000 file whose header says 64x48, and whose codestream another size."""
    data = WHOLE["jpeg 2000"]
    at = data.index(jpeg2000.CODESTREAM)
    return data[:at] + siz(width, height, max(width, height))


def test_a_jpeg_2000_whose_header_says_another_size_than_its_codestream_is_corrupt() -> None:
    data = bytearray(WHOLE["jpeg 2000"])
    at = data.index(b"ihdr") + 4
    data[at : at + 4] = b"IIRS"
    assert refusal(bytes(data)).code is Code.CORRUPT
    assert refusal(hidden(30_000, 30_000)).code is Code.CORRUPT


@pytest.mark.parametrize(
    "data",
    [siz(30_000, 30_000, 30_000), b"P6 30000 30000 255\n", b"P1 99999 99999\n1"],
)
def test_more_pixels_than_the_limit_are_refused_before_decoding(data: bytes) -> None:
    assert refusal(data).code is Code.TOO_MANY_PIXELS


def test_a_pnm_of_all_16_bits_is_measured_by_its_samples() -> None:
    found = load_image(raw_pnm(DEEP * 16, 65535), SIZE)
    assert found.remarks == ("depth guessed as 12 bits",)
    assert (load_image(raw_pnm(DEEP * 16, 65535), SIZE, bit_depth=12).pixels == found.pixels).all()
    with pytest.raises(ImageRejected, match="--bit-depth 12"):
        load_image(raw_pnm(np.asarray(scene()).astype(np.uint16) * 16, 65535), SIZE)


def test_a_plain_pnm_without_samples_is_truncated_and_not_black() -> None:
    assert refusal(b"P2 1 1 255\n  \n").code is Code.TRUNCATED


@pytest.mark.parametrize("data", [b"P5 0 4 255\n", b"P5 4 4 70000\n" + b"\0" * 64, b"P2 2 2 255\n1 2 x 4"])
def test_a_pnm_that_makes_no_sense_is_corrupt(data: bytes) -> None:
    assert refusal(data).code is Code.CORRUPT


def test_films_in_avif_are_refused_by_their_number_of_frames() -> None:
    frames = [Image.new("RGB", (64, 64), (20 * index, 30, 90)) for index in range(5)]
    data = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert read_header(data).frames == 5
    assert refusal(data, Limits(max_frames=4)).code is Code.TOO_MANY_FRAMES


def test_heic_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heif(scene())
    heic.enable.cache_clear()
    load = builtins.__import__

    def refusing(name: str, *arguments: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refusing)
    error = refusal(data)
    assert (error.code, error.message) == (Code.UNSUPPORTED_FORMAT, "HEIC: pip install leukoray[heic]")


# ---- what is no image, or none that is read ----------------------------------------------------------------

NAMED = {
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "git-annex pointer": b"/annex/objects/SHA256E-s12--ab.jpg\n",
    "HTML": b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
    "an HTML page": b"\xef\xbb\xbf<HTML><body>404</body></HTML>",
    "store's error": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
    "XML": b"<?xml version='1.0'?><annotation><folder>a</folder></annotation>",
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "JSON": b'{"message": "rate limit exceeded"}',
    "zero bytes": b"\0" * 5000,
    "PDF": b"%PDF-1.7\n",
    "Zeiss": b"ZISRAWFILE\0\0\0\0\0\0" + b"\0" * 64,
    "Leica": b"\x70\0\0\0\x10\0\0\0*",
    "Nikon": b"\xda\xce\xbe\x0a" + b"\0" * 12,
    "Photoshop": b"8BPS\0\1" + b"\0" * 30,
    "GIMP": b"gimp xcf file\0",
    "raw data of a camera": b"FUJIFILMCCD-RAW 0201",
    "JPEG XL": b"\xff\x0a" + b"\0" * 30,
    "film (MP4)": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
    "gzip": b"\x1f\x8b\x08\0" + b"\0" * 30,
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_no_image_is_refused_by_its_name(name: str) -> None:
    error = refusal(NAMED[name])
    assert error.code is Code.UNSUPPORTED_FORMAT
    assert name in error.message


def slide(**options: Any) -> bytes:
    return encoded(scene(), "TIFF", save_all=True, append_images=[scene(40, 30)], **options)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: slide(description="Aperio Image Library v12\n160x120"), "Aperio"),
        (lambda: slide(description='<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'), "Leica"),
        (lambda: slide(tiffinfo={65420: 1}), "Hamamatsu"),
        (lambda: tiff(np.asarray(scene()), tags={34412: 1}), "Zeiss"),
        (lambda: tiff(np.asarray(scene()), tags={50706: 1}), "raw data of a camera"),
    ],
    ids=["svs", "scn", "ndpi", "lsm", "dng"],
)
def test_a_whole_slide_saved_as_tif_is_refused_by_its_name(make: Callable[[], bytes], name: str) -> None:
    error = refusal(make())
    assert error.code is Code.UNSUPPORTED_FORMAT and name in error.message


def test_a_field_cut_out_of_a_slide_by_its_makers_program_is_an_image() -> None:
    assert off_by(encoded(scene(), "TIFF", description="Aperio Image Library v12\n160x120"), scene()) == 0


def test_no_text_of_a_file_that_is_no_image_reaches_the_message() -> None:
    for data in (b"<html>Erika Mustermann</html>", b'{"name": "Erika Mustermann"}', b"Erika Mustermann, born 1950"):
        assert "Muster" not in refusal(data).message
