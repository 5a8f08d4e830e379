"""What decoders say is kept with its image and never printed."""

import logging
import os
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import ImageRejected
from pipeline.images import noise
from pipeline.images.load import load_image
from pipeline.images.noise import decoder_remarks, heard
from pipeline.images.remarks import count_kinds, joined, remark
from tests.images import encoded, scene, tiff

SIZE = 48
FAX = encoded(scene().convert("1"), "TIFF", compression="group4")


def flipped(data: bytes, at: float) -> bytes:
    changed = bytearray(data)
    changed[int(at * len(data))] ^= 0x5A
    return bytes(changed)


def pillow_warns() -> None:
    warnings.warn_explicit("Truncated File Read", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")


def test_a_damage_that_libtiff_decodes_over_is_a_remark_of_its_image(capfd: pytest.CaptureFixture[str]) -> None:
    assert load_image(FAX, SIZE).remarks == ()
    [said] = load_image(flipped(FAX, 0.3), SIZE).remarks
    assert said.startswith("decoder warned: Fax4Decode: ") and "more)" in said
    assert load_image(FAX, SIZE).remarks == ()
    assert capfd.readouterr().err == ""


def test_a_refusal_says_what_the_decoder_said(capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(scene(), "TIFF", compression="tiff_adobe_deflate")
    with pytest.raises(ImageRejected, match=r"\(ZIPDecode: Decoding error at scanline 0"):
        load_image(flipped(data, 0.5), SIZE)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "say", [pillow_warns, lambda: logging.getLogger("PIL.TiffImagePlugin").error("Truncated File Read")]
)
def test_warnings_and_log_records_of_pillow_are_heard_each_time(
    say: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with heard() as lines:
            say()
        assert decoder_remarks(lines) == ("decoder warned: Truncated File Read",)
    assert capfd.readouterr().err == ""


def test_what_others_warn_of_and_print_passes_on(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="of another"), heard(from_libtiff=True) as lines:
        os.write(2, b"(raylet) a line of another thread\nLZWDecode: Corrupted scanline.\n")
        thread = threading.Thread(target=lambda: warnings.warn("of another thread", UserWarning, stacklevel=1))
        thread.start()
        thread.join()
    assert lines == ["LZWDecode: Corrupted scanline."]
    assert capfd.readouterr().err == "(raylet) a line of another thread\n"


def test_a_harmless_warning_of_libjpeg_is_a_remark() -> None:
    plain = encoded(scene(), "JPEG")
    assert load_image(plain, SIZE).remarks == ()
    [said] = load_image(plain.replace(b"\xff\xdb", b"\0\0\xff\xdb", 1), SIZE).remarks
    assert said.startswith("decoder warned: ") and "extraneous bytes" in said


def test_a_caught_warning_of_others_leaves_later_ones_to_be_shown() -> None:
    load_image(FAX, SIZE)
    with warnings.catch_warnings(record=True) as inside:
        warnings.simplefilter("always")
        load_image(FAX, SIZE)
        warnings.warn("while caught", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="afterwards"):
        warnings.warn("afterwards", UserWarning, stacklevel=1)
    assert [str(item.message) for item in inside] == ["while caught"]


def test_images_decoded_side_by_side_keep_their_own_remarks(capfd: pytest.CaptureFixture[str]) -> None:
    bad = flipped(FAX, 0.3)
    images = [bad if number % 3 == 0 else FAX for number in range(60)]
    found: list[bool] = [False] * len(images)

    def decode(first: int) -> None:
        for number in range(first, len(images), 4):
            found[number] = bool(load_image(images[number], SIZE).remarks)

    threads = [threading.Thread(target=decode, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [number % 3 == 0 for number in range(60)]
    assert capfd.readouterr().err == ""


def test_a_closed_stderr_costs_no_image() -> None:
    kept = os.dup(2)
    os.close(2)
    try:
        assert load_image(FAX, SIZE).pixels.shape == (SIZE, SIZE, 3)
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_remarks_are_counted_by_kind_an_image_at_a_time() -> None:
    texts = [
        joined([remark("first of several frames used", "3 frames"), remark("depth guessed as 12 bits")]),
        joined([remark("first of several frames used", "9 frames")]),
        joined([remark("decoder warned", "a; b:  c\n")] * 2),
    ]
    assert texts[2] == "decoder warned: a, b: c; decoder warned: a, b: c"
    assert count_kinds(text for text in texts if text) == {
        "first of several frames used": 2, "depth guessed as 12 bits": 1, "decoder warned": 1,
    }  # fmt: skip
    assert joined([]) is None


def test_an_uncompressed_tiff_and_other_formats_leave_stderr_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_read_stderr", None)
    for data in (tiff(np.asarray(scene())), *(encoded(scene(), kind) for kind in ("JPEG", "PNG", "BMP", "WEBP"))):
        assert load_image(data, SIZE).remarks == ()
    assert load_image(encoded(Image.new("L", (9, 9)), "GIF"), SIZE).remarks == ()
