"""Pages that are colours of one field, and pages that are none: OME-XML, ImageJ, tifffile."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.formats import tiff as tiff_format
from pipeline.images.formats.channels import colour_pages, read_stack
from pipeline.images.load import LoadedImage, load_image
from tests.images import encoded, pages, scene, tiff
from tests.searches import search

SIZE = 48
RGB = np.asarray(scene())
PLANES = [RGB[..., channel] for channel in range(3)]


def stack(description: str, planes: list[NDArray[np.uint8]] = PLANES) -> bytes:
    return pages([Image.fromarray(plane) for plane in planes], description.encode())


def ome(pixels: str, *channels: str) -> str:
    inner = "".join(f"<Channel ID='Channel:0:{index}' {channel}/>" for index, channel in enumerate(channels))
    return f'<?xml version="1.0"?><OME xmlns="x"><Image ID="Image:0"><Pixels {pixels}>{inner}</Pixels></Image></OME>'


CYX = 'SizeC="3" SizeZ="1" SizeT="1" SizeX="160" SizeY="120" Type="uint8" DimensionOrder="XYCZT"'
IMAGEJ = "ImageJ=1.54f\nimages=3\nchannels=3\nmode=composite\n"


def assert_is_the_scene(found: LoadedImage) -> None:
    wanted = load_image(encoded(scene(), "PNG"), SIZE).pixels
    assert np.abs(found.pixels.astype(int) - wanted).max() <= 1
    assert found.remarks == ()


def refusal(data: bytes) -> str:
    with pytest.raises(ImageRejected) as caught:
        load_image(data, SIZE)
    assert caught.value.code is Code.UNSUPPORTED_FORMAT
    return caught.value.message


@pytest.mark.parametrize(
    "description",
    [
        ome(CYX, 'Name="Red"', 'Name="Green"', 'Name="Blue"'),
        ome(CYX, 'Name="R"', 'Name="G"', 'Name="B"'),
        ome(CYX, 'Color="-16776961"', 'Color="16711935"', 'Color="65535"'),
        ome(CYX, 'Color="-1"', 'Color="-1"', 'Color="-1"'),
        ome(CYX, "SamplesPerPixel='1'", "SamplesPerPixel='1'", "SamplesPerPixel='1'"),
        ome(CYX),
        IMAGEJ,
        IMAGEJ + "hyperstack=true\nslices=1\nframes=1\n",
        json.dumps({"shape": [3, 120, 160], "axes": "CYX"}),
    ],
)
def test_three_pages_called_channels_are_the_colours_of_one_image(description: str) -> None:
    assert_is_the_scene(load_image(stack(description), SIZE))


def test_channels_in_another_order_are_put_in_order_by_name_or_colour() -> None:
    turned = [PLANES[2], PLANES[0], PLANES[1]]
    for channels in (
        ('Name="blue"', 'Name="red"', 'Name="green"'),
        ('Color="65535"', 'Color="-16776961"', 'Color="16711935"'),
    ):
        assert_is_the_scene(load_image(stack(ome(CYX, *channels), turned), SIZE))


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (ome('SizeC="1" SizeZ="3" SizeT="1"'), "3 planes of depth"),
        (ome('SizeC="1" SizeZ="1" SizeT="3"'), "3 points in time"),
        (ome('SizeC="2" SizeZ="1" SizeT="1"'), "2 channels"),
        (ome('SizeC="4" SizeZ="1" SizeT="1"'), "4 channels"),
        (ome(CYX, 'Name="DAPI"', 'Name="FITC"', 'Name="TRITC"'), "channels DAPI, FITC, TRITC"),
        (ome(CYX, 'EmissionWavelength="461"', 'EmissionWavelength="519"', ""), "fluorescence"),
        (ome(CYX, 'Fluor="DAPI"', "", ""), "fluorescence"),
        (ome(CYX, 'IlluminationType="Epifluorescence"', "", ""), "fluorescence"),
        (ome(CYX, 'Color="16711935"', 'Color="-16776961"', 'Color="16777215"'), "channels green, red, #00ffff"),
        ("ImageJ=1.54f\nimages=3\nslices=3\n", "3 planes of depth"),
        ("ImageJ=1.54f\nimages=3\nframes=3\n", "3 points in time"),
        ("ImageJ=1.54f\nimages=3\n", "3 planes of depth"),
        ("ImageJ=1.54f\nimages=3\nchannels=3\nmode=grayscale\n", "shown in gray"),
        ("ImageJ=1.54f\nimages=2\nchannels=2\nmode=composite\n", "2 channels"),
        (json.dumps({"shape": [3, 120, 160], "axes": "ZYX"}), "3 planes of depth"),
    ],
)
def test_other_stacks_are_refused_by_name(description: str, words: str) -> None:
    message = refusal(stack(description))
    assert words in message and "a stack of" in message


def test_channels_that_lie_in_other_files_are_missed() -> None:
    assert "but 1 of their pages" in refusal(stack(ome(CYX), PLANES[:1]))


def test_channels_of_unlike_pages_are_refused() -> None:
    assert "unlike pages" in refusal(stack(ome(CYX), [PLANES[0], PLANES[1], PLANES[2][:50]]))


def test_pages_of_which_nothing_is_said_stay_pages_of_which_the_first_counts() -> None:
    for description in ("", "a slide of 2026", json.dumps({"shape": [3, 120, 160]}), "{", "[]"):
        found = load_image(stack(description), SIZE)
        assert (found.pixels[..., 0] == found.pixels[..., 1]).all()
        assert found.remarks == ("first of several frames used: 3 frames",)


def test_one_page_of_an_ome_file_is_an_image() -> None:
    one = 'SizeC="3" SizeZ="1" SizeT="1"'
    for description in (ome(one, 'SamplesPerPixel="3"'), json.dumps({"shape": [120, 160, 3], "axes": "YXC"})):
        assert_is_the_scene(load_image(tiff(RGB, description=description.encode()), SIZE))


def luts(*colors: tuple[int, int, int]) -> tuple[bytes, list[int]]:
    """ImageJ's MetaData and MetaDataByteCounts with the colour table of each channel."""
    head = b"IJIJ" + b"luts" + struct.pack(">I", len(colors))
    tables = [np.outer(color, np.arange(256)).clip(0, 255).astype(np.uint8).tobytes() for color in colors]
    return head + b"".join(tables), [len(head), *(len(table) for table in tables)]


def test_an_imagej_composite_is_read_by_the_colours_it_is_shown_in() -> None:
    turned = [Image.fromarray(plane) for plane in (PLANES[2], PLANES[0], PLANES[1])]
    known = pages(turned, IMAGEJ.encode(), luts((0, 0, 1), (1, 0, 0), (0, 1, 0)))
    assert_is_the_scene(load_image(known, SIZE))
    cyan = pages(turned, IMAGEJ.encode(), luts((0, 1, 1), (1, 0, 0), (0, 1, 0)))
    assert "channels #00ffff, red, green" in refusal(cyan)


@pytest.mark.parametrize("bits", [12, 16])
def test_channels_of_16_bits_share_one_depth(bits: int) -> None:
    top = (1 << bits) - 1
    planes = [Image.fromarray(np.rint(plane / 255.0 * top).astype(np.uint16)) for plane in PLANES]
    data = pages(planes, ome(CYX.replace("uint8", "uint16") + f' SignificantBits="{bits}"').encode())
    found = load_image(data, SIZE)
    assert np.abs(found.pixels.astype(int) - load_image(encoded(scene(), "PNG"), SIZE).pixels).max() <= 2
    unsaid = pages(planes, ome(CYX).encode())
    if bits == 12:
        assert "--bit-depth 12" in refusal(unsaid)
        assert (load_image(unsaid, SIZE, bit_depth=12).pixels == found.pixels).all()


@given(text=st.text(alphabet="<OMEPixelsChannel SizeZCT='\"=/>123:ImageJ\n{}[]axesp,", max_size=300))
@search(300)
def test_no_description_breaks_its_reader(text: str) -> None:
    for start in ("<OME", "ImageJ=", "{", ""):
        page = tiff_format.first_page(tiff(RGB, description=(start + text).encode()))
        assert page is not None
        found = read_stack(page)
        if found is not None:
            try:
                assert colour_pages(found, page, 3) in (None, *(tuple(order) for order in _orders()))
            except ImageRejected as refused:
                assert refused.code is Code.UNSUPPORTED_FORMAT


def _orders() -> list[tuple[int, ...]]:
    return [(a, b, 3 - a - b) for a in range(3) for b in range(3) if a != b]


@pytest.mark.parametrize(
    "text", ["<OME" + "<Pixels " * 60_000, "<OME<Pixels " + "a" * 500_000, "<OME<Pixels>" + "<Channel a='" * 50_000]
)
@pytest.mark.timeout(20)
def test_a_long_description_costs_no_more_than_its_length(text: str) -> None:
    page = tiff_format.first_page(tiff(RGB, description=text.encode()))
    assert page is not None
    read_stack(page)
