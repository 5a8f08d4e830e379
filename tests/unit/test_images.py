"""The zoo of awkward images: what the one decoder makes of each, and that damage ends in a code, never in a crash."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from pipeline.base.errors import Code, ImageRejected
from pipeline.images import samples
from pipeline.images.load import Limits, Preprocessing, load_image, read_header
from tests.images import deep_png, encoded, png_chunk, scene, tiff, with_jpeg_frame, with_png_chunk
from tests.searches import search

SIZE = 48


def reference(image: Image.Image | None = None) -> NDArray[np.uint8]:
    return load_image(encoded(image or scene(), "PNG"), SIZE).pixels


def off_by(data: bytes, wanted: NDArray[np.uint8]) -> float:
    """Mean difference in levels."""
    return float(np.abs(load_image(data, SIZE).pixels.astype(int) - wanted.astype(int)).mean())


def code_of(data: bytes, limits: Limits = Limits()) -> Code | None:
    try:
        loaded = load_image(data, SIZE, limits)
    except ImageRejected as error:
        assert error.message
        return error.code
    assert loaded.pixels.shape == (SIZE, SIZE, 3)
    assert loaded.pixels.dtype == np.uint8
    return None


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_header(width: int, height: int) -> bytes:
    """A small JPEG whose frame header announces another size."""
    data = bytearray(encoded(scene(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def sixteen_bit(kind: str) -> bytes:
    levels = np.asarray(scene().convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(levels), kind)


# ---- good images of every kind -----------------------------------------------------------------------------

GRAY = scene().convert("L")
_JPEG, _PNG, _BMP = encoded(scene(), "JPEG", quality=95), encoded(scene(), "PNG"), encoded(scene(), "BMP")
GOOD: dict[str, tuple[Callable[[], bytes], Image.Image, float]] = {  # bytes, what it shows, levels it may be off
    "jpeg": (lambda: encoded(scene(), "JPEG", quality=95), scene(), 2),
    "progressive jpeg": (lambda: encoded(scene(), "JPEG", quality=95, progressive=True), scene(), 2),
    "gray jpeg": (lambda: encoded(GRAY, "JPEG", quality=95), GRAY, 2),
    "cmyk jpeg": (lambda: encoded(scene().convert("CMYK"), "JPEG", quality=95), scene(), 3),
    "jpeg with icc profile": (lambda: encoded(scene(), "JPEG", quality=95, icc_profile=srgb()), scene(), 2),
    "png": (lambda: encoded(scene(), "PNG"), scene(), 0),
    "png with icc profile": (lambda: encoded(scene(), "PNG", icc_profile=srgb()), scene(), 0),
    "palette png": (lambda: encoded(scene().quantize(256), "PNG"), scene(), 6),
    "16-bit png": (lambda: sixteen_bit("PNG"), GRAY, 1),
    "16-bit tiff": (lambda: sixteen_bit("TIFF"), GRAY, 1),
    "opaque alpha": (lambda: encoded(scene().convert("RGBA"), "PNG"), scene(), 0),
    "1-bit png": (lambda: encoded(Image.new("1", (160, 120), 1), "PNG"), Image.new("RGB", (160, 120), "white"), 0),
    "tiff": (lambda: encoded(scene(), "TIFF"), scene(), 0),
    "lzw tiff": (lambda: encoded(scene(), "TIFF", compression="tiff_lzw"), scene(), 0),
    "float tiff": (lambda: encoded(Image.fromarray(np.asarray(GRAY).astype(np.float32) / 255), "TIFF"), GRAY, 1),
    "multi-page tiff": (
        lambda: encoded(scene(), "TIFF", save_all=True, append_images=[Image.new("RGB", (160, 120), "red")]),
        scene(),
        0,
    ),
    "bmp": (lambda: encoded(scene(), "BMP"), scene(), 0),
    "webp": (lambda: encoded(scene(), "WEBP", lossless=True), scene(), 1),
    "animated webp": (
        lambda: encoded(
            scene(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (160, 120), "red")]
        ),
        scene(),
        1,
    ),
    "gif": (lambda: encoded(scene(), "GIF"), scene(), 8),
    "animated gif": (
        lambda: encoded(scene(), "GIF", save_all=True, append_images=[Image.new("RGB", (160, 120), "red")]),
        scene(),
        8,
    ),
    "12 bits in a 16-bit tiff": (lambda: tiff(np.asarray(GRAY).astype(np.uint16) * 16), GRAY, 1),
    "16-bit tiff, 0 is white": (lambda: tiff(65535 - np.asarray(GRAY).astype(np.uint16) * 257, tags={262: 0}), GRAY, 1),
    "16-bit colour tiff": (lambda: tiff(np.asarray(scene()).astype(np.uint16) * 257), scene(), 1),
    "planar tiff": (lambda: tiff(np.asarray(scene()), planar=True), scene(), 0),
    "big-endian tiff": (lambda: tiff(np.asarray(scene()), order=">"), scene(), 0),
    "bigtiff": (lambda: tiff(np.asarray(scene()), big=True), scene(), 0),
    "big-endian bigtiff": (lambda: tiff(np.asarray(scene()), big=True, order=">"), scene(), 0),
    "big-endian bigtiff in planes": (lambda: tiff(np.asarray(scene()), big=True, order=">", planar=True), scene(), 0),
    "jpeg with bytes between segments": (lambda: _JPEG.replace(b"\xff\xdb", b"\0\0\xff\xdb", 1), scene(), 2),
    "jpeg of an unknown JFIF revision": (lambda: _JPEG.replace(b"JFIF\0\1\1", b"JFIF\0\2\5", 1), scene(), 2),
    "png with megabytes of text": (
        lambda: with_png_chunk(_PNG, png_chunk(b"zTXt", b"xmp\0\0" + zlib.compress(b"x" * (3 << 20)))),
        scene(),
        0,
    ),
    "png with a wrong check sum in a text": (
        lambda: with_png_chunk(_PNG, png_chunk(b"tEXt", b"a\0b")[:-1] + b"?"),
        scene(),
        0,
    ),
    "png with a gamma cut short": (lambda: with_png_chunk(_PNG, png_chunk(b"gAMA", b"\0")), scene(), 0),
    "bmp that leaves its length open": (lambda: _BMP[:2] + b"\0\0\0\0" + _BMP[6:], scene(), 0),
    "trailing bytes": (lambda: encoded(scene(), "JPEG", quality=95) + b"\0" * 100, scene(), 2),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_image_gives_the_pixels_it_shows(name: str) -> None:
    make, shown, tolerance = GOOD[name]
    assert off_by(make(), reference(shown.convert("RGB"))) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(scene(), kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert off_by(data, reference(upright)) <= 2


def xmp(orientation: int, spelling: str) -> bytes:
    said = {
        "attribute": f'<rdf:Description tiff:Orientation="{orientation}"/>',
        "single quotes": f"<rdf:Description tiff:Orientation = '{orientation}'/>",
        "element": f"<tiff:Orientation>{orientation}</tiff:Orientation>",
    }[spelling]
    return f"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF>{said}</rdf:RDF></x:xmpmeta>".encode()


def with_xmp(kind: str, packet: bytes, **options: Any) -> bytes:
    if kind == "PNG":
        return with_png_chunk(encoded(scene(), kind), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet))
    return encoded(scene(), kind, xmp=packet, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("spelling", ["attribute", "single quotes", "element"])
def test_an_orientation_that_only_xmp_tells_is_applied(kind: str, orientation: int, spelling: str) -> None:
    options: dict[str, Any] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    exif = Image.Exif()
    exif[0x0112] = orientation
    wanted = load_image(encoded(scene(), kind, exif=exif, **options), SIZE).pixels
    assert off_by(with_xmp(kind, xmp(orientation, spelling), **options), wanted) == 0


def test_an_exif_orientation_of_0_says_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 0
    both = encoded(scene(), "JPEG", quality=95, exif=exif, xmp=xmp(6, "attribute"))
    alone = encoded(scene(), "JPEG", quality=95, xmp=xmp(6, "attribute"))
    assert (load_image(both, SIZE).pixels == load_image(alone, SIZE).pixels).all()


def test_exif_is_believed_before_xmp() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    alone = encoded(scene(), "JPEG", quality=95, exif=exif)
    assert (
        off_by(encoded(scene(), "JPEG", quality=95, exif=exif, xmp=xmp(3, "attribute")), load_image(alone, SIZE).pixels)
        == 0
    )


def test_xmp_turns_a_png_whose_other_text_is_damaged() -> None:
    turned = with_xmp("PNG", xmp(6, "attribute"))
    damaged = with_png_chunk(turned, png_chunk(b"tEXt", b"a\0b")[:-1] + b"?")
    assert off_by(damaged, load_image(turned, SIZE).pixels) == 0


def test_ycck_reads_like_cmyk() -> None:
    data = encoded(scene().convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"Adobe") + 11  # the transform byte: 0 CMYK, 2 YCCK
    ycck = data[:at] + b"\x02" + data[at + 1 :]
    assert code_of(ycck) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_one_pixel_is_an_image(kind: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (200, 30, 90)), kind)
    assert code_of(data) is None
    header = read_header(data)
    assert (header.width, header.height, header.format) == (1, 1, kind.lower())


@pytest.mark.parametrize(("width", "height"), [(1, 5000), (5000, 1), (47, 49), (48, 48), (2000, 30)])
def test_any_shape_is_brought_to_the_model_size(width: int, height: int) -> None:
    for kind in ("JPEG", "PNG"):
        assert code_of(encoded(Image.new("RGB", (width, height), "pink"), kind)) is None


# ---- refused images ----------------------------------------------------------------------------------------

_DEEP = np.asarray(scene()).astype(np.uint16)


REFUSED: dict[str, tuple[Callable[[], bytes], Code]] = {
    "no bytes": (lambda: b"", Code.EMPTY),
    "one byte": (lambda: b"\xff", Code.UNSUPPORTED_FORMAT),
    "text": (lambda: b"this is no image", Code.UNSUPPORTED_FORMAT),
    "zeros": (lambda: b"\0" * 5000, Code.UNSUPPORTED_FORMAT),
    "pdf": (lambda: b"%PDF-1.7\n" + b"x" * 500, Code.UNSUPPORTED_FORMAT),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", Code.UNSUPPORTED_FORMAT),
    "30000x30000 png": (lambda: png_header(30_000, 30_000), Code.TOO_MANY_PIXELS),
    "30000x30000 jpeg": (lambda: jpeg_header(30_000, 30_000), Code.TOO_MANY_PIXELS),
    "png without pixels": (lambda: png_header(64, 64), Code.TRUNCATED),
    "lossless jpeg": (lambda: with_jpeg_frame(_JPEG, marker=0xC3), Code.UNSUPPORTED_FORMAT),
    "hierarchical jpeg": (lambda: with_jpeg_frame(_JPEG, marker=0xC5), Code.UNSUPPORTED_FORMAT),
    "jpeg-ls": (lambda: with_jpeg_frame(_JPEG, marker=0xF7), Code.UNSUPPORTED_FORMAT),
    "12-bit jpeg": (lambda: with_jpeg_frame(_JPEG, precision=12), Code.UNSUPPORTED_FORMAT),
    "jpeg without a frame": (lambda: b"\xff\xd8\xff\xd9", Code.CORRUPT),
    "jpeg of endless scans": (lambda: jpeg_header(10_000, 10_000)[:-2] + b"\xff\xda\0\2" * 200, Code.TOO_MANY_PIXELS),
    "16-bit tiff in planes": (lambda: tiff(_DEEP * 257, planar=True), Code.UNSUPPORTED_FORMAT),
    "12 bits in a 16-bit colour tiff": (lambda: tiff(_DEEP * 16), Code.UNSUPPORTED_FORMAT),
    "12 bits in a 16-bit colour png": (lambda: deep_png(_DEEP * 16), Code.UNSUPPORTED_FORMAT),
    "32-bit tiff": (lambda: tiff(_DEEP[..., 0].astype(np.uint32)), Code.UNSUPPORTED_FORMAT),
    "signed tiff": (lambda: tiff(_DEEP[..., 0].astype(np.int16)), Code.UNSUPPORTED_FORMAT),
    "float colour tiff": (lambda: tiff(_DEEP.astype(np.float32) / 255), Code.UNSUPPORTED_FORMAT),
    "double tiff": (lambda: tiff(_DEEP[..., 0] / 255), Code.UNSUPPORTED_FORMAT),
    "tiff of jpeg 2000": (lambda: tiff(_DEEP.astype(np.uint8), tags={259: 34712}), Code.UNSUPPORTED_FORMAT),
    "tiff of a huge tile": (
        lambda: tiff(_DEEP.astype(np.uint8), tags={322: 1 << 20, 323: 1 << 20}),
        Code.TOO_MANY_PIXELS,
    ),
    "30000x30000 tiff": (lambda: tiff(_DEEP.astype(np.uint8), tags={256: 30_000, 257: 30_000}), Code.TOO_MANY_PIXELS),
    "30000x30000 bmp": (
        lambda: _BMP[:18] + struct.pack("<ii", 30_000, 30_000) + _BMP[26:],
        Code.TOO_MANY_PIXELS,
    ),
    "float tiff out of range": (
        lambda: encoded(Image.fromarray(np.full((9, 9), 7.5, np.float32)), "TIFF"),
        Code.UNSUPPORTED_FORMAT,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_image_has_its_code(name: str) -> None:
    make, code = REFUSED[name]
    found = code_of(make())
    assert found == code or (name == "png without pixels" and found == Code.CORRUPT)


def test_too_many_bytes_are_refused_before_decoding() -> None:
    assert code_of(encoded(scene(), "PNG"), Limits(max_bytes=100)) == Code.TOO_LARGE


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_films_and_stacks_are_refused_by_their_number_of_frames(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), (20 * index, 30, 90)) for index in range(12)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert read_header(data).frames == 12
    assert code_of(data) is None
    assert code_of(data, Limits(max_frames=11)) == Code.TOO_MANY_FRAMES


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_image_of_which_nothing_is_to_be_seen_is_refused(mode: str) -> None:
    image = scene().convert(mode)
    image.putalpha(0)
    assert code_of(encoded(image, "PNG")) is Code.UNSUPPORTED_FORMAT
    image.putpixel((3, 3), (9, 9, 9, 255) if mode == "RGBA" else (9, 255))
    assert code_of(encoded(image, "PNG")) is Code.UNSUPPORTED_FORMAT
    image.putalpha(3)  # on white it is white all the same
    assert code_of(encoded(image, "PNG")) is Code.UNSUPPORTED_FORMAT
    image.putalpha(0)
    image.paste(scene().crop((0, 0, 16, 16)).convert(mode), (0, 0))
    assert code_of(encoded(image, "PNG")) is None


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_of_which_nothing_is_to_be_seen_is_refused(kind: str) -> None:
    image = Image.new("P", (40, 30), 3)
    image.putpalette(list(range(48)))
    assert code_of(encoded(image, kind, transparency=3)) is Code.UNSUPPORTED_FORMAT
    image.paste(5, (0, 0, 9, 9))
    assert code_of(encoded(image, kind, transparency=3)) is None


def test_a_directory_that_leads_back_to_itself_ends() -> None:
    data = bytearray(encoded(scene(), "TIFF"))
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    data[start + 2 + 12 * count : start + 6 + 12 * count] = struct.pack("<I", start)
    assert read_header(bytes(data)).frames == 1
    assert code_of(bytes(data)) is None


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "RGB", "CMYK"])
def test_large_images_are_converted_in_strips_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = scene() if mode != "I;16" else Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        image.putalpha(GRAY)
    image = image if mode == "I;16" else image.convert(mode)
    data = encoded(image, "TIFF" if mode in ("I;16", "CMYK") else "PNG", **({"transparency": 9} if mode == "P" else {}))
    whole = load_image(data, SIZE).pixels
    monkeypatch.setattr(samples, "_STRIP_PIXELS", 160 * 7)
    assert (load_image(data, SIZE).pixels == whole).all()


def test_orientation_far_behind_the_start_is_found() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(scene(), "JPEG", quality=95, exif=exif)
    padding = b"\xff\xe2" + struct.pack(">H", 60_000) + b"\0" * 59_998
    late = data[:2] + padding + data[2:]
    assert (load_image(late, SIZE).pixels == load_image(data, SIZE).pixels).all()
    assert off_by(late, reference(scene())) > 5


def orientation_entry(kind: int, count: int, value: bytes) -> bytes:
    """EXIF of one entry, the orientation."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 0x0112, kind, count, value) + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"no TIFF at all",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\x09\0cut",
        orientation_entry(3, 1, b"\0\0\0\0"),
        orientation_entry(3, 1, b"\x09\0\0\0"),
        orientation_entry(2, 4, b"six\0"),
        orientation_entry(3, 0xFFFFFFFF, b"\x06\0\0\0"),
        orientation_entry(99, 1, b"\x06\0\0\0"),
    ],
    ids=["empty", "text", "offset", "cut", "0", "9", "a word", "endless", "type"],
)
def test_a_damaged_orientation_costs_no_image(exif: bytes) -> None:
    plain = encoded(scene(), "JPEG")
    body = b"Exif\0\0" + exif
    jpeg = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    assert off_by(jpeg, load_image(plain, SIZE).pixels) == 0
    png = encoded(scene(), "PNG")
    assert off_by(with_png_chunk(png, png_chunk(b"eXIf", exif)), load_image(png, SIZE).pixels) == 0


@pytest.mark.parametrize("before", [b"\xff\xff\xff", b"\xff\xd0", b"\xff\x01"], ids=["fill", "restart", "TEM"])
def test_the_frame_is_found_behind_marks_that_have_no_length(before: bytes) -> None:
    plain = encoded(scene(), "JPEG")
    at = plain.index(b"\xff\xc0")
    header = read_header(plain[:at] + before + plain[at:])
    assert (header.width, header.height) == scene().size


@pytest.mark.parametrize("orientation", [6, 8])
def test_size_is_told_as_stored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        header = read_header(encoded(scene(), kind, exif=exif))
        assert (header.width, header.height) == (160, 120), kind


def test_the_ends_of_a_float_image_are_black_and_white() -> None:
    levels = np.zeros((SIZE, SIZE), np.float32)
    levels[:, SIZE // 2 :] = 1.0
    pixels = load_image(encoded(Image.fromarray(levels), "TIFF"), SIZE).pixels
    assert (pixels[:, 0].max(), pixels[:, -1].min()) == (0, 255)


@pytest.mark.parametrize("size", [(5, 4), (64, 48), (2, 1)])
def test_a_bmp_that_leaves_its_length_open_is_cut_where_its_pixels_are_missing(size: tuple[int, int]) -> None:
    data = encoded(scene(*size), "BMP")
    open_end = data[:2] + bytes(4) + data[6:]
    assert code_of(open_end) is None
    assert code_of(open_end[:-4]) == code_of(data[:-4]) == Code.TRUNCATED  # up to 3 bytes only fill a row


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("percent", range(5, 100, 5))
def test_a_bigtiff_of_either_byte_order_cut_anywhere_is_truncated(order: str, percent: int) -> None:
    data = tiff(np.asarray(scene()), big=True, order=order)
    assert code_of(data[: len(data) * percent // 100]) == Code.TRUNCATED


def test_the_pages_of_a_big_endian_bigtiff_are_counted_and_turned() -> None:
    data = tiff(np.asarray(scene()), big=True, order=">", tags={274: 3})
    assert read_header(data).frames == 1
    upright = Image.fromarray(np.asarray(scene())[::-1, ::-1])
    assert off_by(data, reference(upright)) == 0


@given(
    order=st.sampled_from(["<", ">"]),
    first=st.integers(0, (1 << 64) - 1) | st.integers((1 << 63) - 9, (1 << 63) + 9),
    entries=st.binary(max_size=60),
)
@search(300)
def test_no_offset_of_64_bits_breaks_the_reader_of_directories(order: str, first: int, entries: bytes) -> None:
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, first)
    assert code_of(head + entries) in (Code.TRUNCATED, Code.CORRUPT, Code.UNSUPPORTED_FORMAT)


@given(
    order=st.sampled_from(["<", ">"]),
    tag=st.sampled_from([256, 258, 270, 273, 279, 281, 341, 50838, 50839, 60000]),
    kind=st.integers(0, 20),
    number=st.integers(0, (1 << 64) - 1) | st.integers(0, 9),
    value=st.integers(0, (1 << 64) - 1),
)
@search(300)
def test_no_entry_of_64_bits_breaks_the_reader_of_directories(
    order: str, tag: int, kind: int, number: int, value: int
) -> None:
    data = tiff(np.asarray(scene(16, 12)), big=True, order=order, tags={tag: 7})
    at = data.rindex(struct.pack(order + "HH", tag, 4))
    entry = struct.pack(order + "HHQQ", tag, kind, number, value)
    code_of(data[:at] + entry + data[at + 20 :], Limits(max_pixels=4_000_000))


KINDS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")


@pytest.mark.parametrize("percent", range(0, 100, 5))
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_anywhere_is_refused(kind: str, percent: int) -> None:
    options: dict[str, Any] = {"quality": 90} if kind == "JPEG" else {}
    data = encoded(scene(), kind, **options)
    cut = data[: len(data) * percent // 100]
    allowed = {Code.EMPTY} if not cut else {Code.TRUNCATED}
    if 0 < len(cut) < 16:
        allowed |= {Code.UNSUPPORTED_FORMAT}
    assert code_of(cut) in allowed


@pytest.mark.parametrize("kind", KINDS)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8))
@search(60)
def test_flipped_bytes_give_pixels_or_a_code(kind: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(scene(64, 48), kind))
    for place, mask in flips:
        data[int(len(data) * place)] ^= mask
    code_of(bytes(data), Limits(max_pixels=4_000_000))


@given(
    data=st.binary(max_size=200),
    magic=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"GIF89a", b"BM"]),
)
@search(200)
def test_noise_behind_a_magic_number_gives_a_code(magic: bytes, data: bytes) -> None:
    assert code_of(magic + data, Limits(max_pixels=4_000_000)) is not None or len(data) > 30


def test_the_same_rules_have_the_same_digest() -> None:
    assert Preprocessing(SIZE).digest() == Preprocessing(SIZE).digest() != Preprocessing(SIZE + 1).digest()
