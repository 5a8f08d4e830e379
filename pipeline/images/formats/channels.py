"""What an ImageDescription says of the pages of a TIFF: OME-XML (OME 2016-06), ImageJ's lines, tifffile's JSON.

Three pages that are the red, green and blue of one field are an image; other stacks (depth, time, fluorescence, other
numbers of channels) are none that a model of stained cells was trained on.
"""

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.formats.tiff import Page

_COLORS = ("red", "green", "blue")
_SHORT = {"r": "red", "g": "green", "b": "blue"}
_NAMELESS = re.compile(r"(channel|ch|c)?[\s:_#-]*\d*([:_]\d+)?", re.IGNORECASE)  # `Channel:0:1`, `ch2`, `C3`
# Of channels that are not taken in white light.
_FLUORESCENCE = re.compile(
    r"\b(?:EmissionWavelength|ExcitationWavelength|Fluor)=|=\s*[\"'](?:Fluorescence|Epifluorescence)[\"']"
)
_LUT_BYTES = 768  # 256 levels of red, then of green, then of blue


@dataclass(frozen=True)
class Stack:
    """What the pages of a file are. `names` and `colors` in the order of its channels; empty where not said."""

    software: str
    channels: int = 1
    depth: int = 1
    times: int = 1
    significant_bits: int | None = None  # of a sample
    names: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()  # `red`, `green`, `blue`, or another as a person reads it
    is_fluorescence: bool = False
    is_gray: bool = False  # each channel is shown for itself


def read_stack(page: Page) -> Stack | None:
    """What the file says of its pages, None where it says nothing that is understood."""
    text = page.description.rstrip(b"\0").decode("utf-8", "replace").strip()
    if "<OME" in text[:2000]:
        return _ome(text)
    if text.startswith("ImageJ="):
        return _imagej(text, page)
    return _shaped(text) if text.startswith("{") else None


def colour_pages(stack: Stack, page: Page, pages: int) -> tuple[int, int, int] | None:
    """Which pages are red, green and blue; None where one page is the whole image. Raises ImageRejected for stacks.

    `page`: the first of the file's `pages`.
    """
    if stack.depth > 1 or stack.times > 1:
        what = f"{stack.depth} planes of depth" if stack.depth > 1 else f"{stack.times} points in time"
        raise _refused(stack, f"{what}; save the plane that counts, or a projection, as one RGB image")
    if stack.channels == 1 or (stack.channels == page.samples and pages == 1):
        return None
    if stack.is_fluorescence:
        raise _refused(stack, "fluorescence channels; models are trained on stained cells in white light")
    if stack.channels != 3:
        raise _refused(stack, f"{stack.channels} channels, which are no RGB; save the field as one RGB image")
    if pages != 3:
        raise _refused(stack, f"3 channels, but {pages} of their pages are in the file; save it as one RGB image")
    if stack.is_gray:
        raise _refused(stack, "3 channels that are shown in gray, one by one; save the field as one RGB image")
    return _order(stack)


def _order(stack: Stack) -> tuple[int, int, int]:
    named = [_SHORT.get(name.strip().casefold(), name.strip().casefold()) for name in stack.names]
    for found in (stack.colors, named):
        if sorted(found) == sorted(_COLORS):
            red, green, blue = (list(found).index(color) for color in _COLORS)
            return red, green, blue
    if stack.colors or not all(_NAMELESS.fullmatch(name) for name in named):
        which = ", ".join(stack.colors or stack.names)
        raise _refused(stack, f"channels {which}, not red, green and blue; save the field as one RGB image")
    return 0, 1, 2


def _refused(stack: Stack, what: str) -> ImageRejected:
    return ImageRejected(Code.UNSUPPORTED_FORMAT, f"a stack of {stack.software} with {what}")


def _ome(text: str) -> Stack:
    """By its first `Pixels`; not with an XML parser, which entities can keep busy for ever."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b([^<>]*)>", text)
    attributes = _attributes(pixels[1]) if pixels else {}
    body = text[pixels.end() :].split("Pixels>", 1)[0] if pixels else ""
    elements = re.findall(r"<(?:\w+:)?Channel\b([^<>]*)>", body)
    found = [_attributes(element) for element in elements]
    in_a_pixel = max((_number(channel.get("SamplesPerPixel")) for channel in found), default=1)
    colors = tuple(_color_of(channel["Color"]) for channel in found if "Color" in channel)
    is_plain = len(set(colors)) < 2  # white, or all alike: the default of writers
    return Stack(
        "OME",
        max(1, _number(attributes.get("SizeC")) // in_a_pixel),
        _number(attributes.get("SizeZ")),
        _number(attributes.get("SizeT")),
        _number(attributes["SignificantBits"]) if "SignificantBits" in attributes else None,
        tuple(channel.get("Name", "") for channel in found),
        () if is_plain or len(colors) < len(found) else colors,
        _FLUORESCENCE.search(" ".join(elements)) is not None,
    )


def _attributes(element: str) -> dict[str, str]:
    return {name: first or second for name, first, second in re.findall(r"\b(\w+)=(?:\"([^\"]*)\"|'([^']*)')", element)}


def _number(text: str | None) -> int:
    """1 where there is none that counts."""
    return max(1, int(text)) if text is not None and re.fullmatch(r"\d{1,9}", text) else 1


def _color_of(text: str) -> str:
    """OME's Color, a signed 32-bit RGBA."""
    try:
        value = int(text) & 0xFFFFFFFF
    except ValueError:
        return text
    return _name_of((value >> 24 & 255, value >> 16 & 255, value >> 8 & 255))


def _name_of(rgb: tuple[int, int, int]) -> str:
    primaries = {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue", (255, 255, 255): "white"}
    return primaries.get(rgb, "#{:02x}{:02x}{:02x}".format(*rgb))


def _imagej(text: str, page: Page) -> Stack:
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    images, slices = _number(found.get("images")), _number(found.get("slices"))
    channels, frames = _number(found.get("channels")), _number(found.get("frames"))
    is_counted = {"channels", "slices", "frames"} & found.keys()
    return Stack(
        "ImageJ",
        channels,
        slices if is_counted else images,  # a plain stack says how many images it has
        frames,
        colors=_luts(page),
        is_gray=found.get("mode") == "grayscale",
    )


def _luts(page: Page) -> tuple[str, ...]:
    """The colour of each channel at its brightest, from ImageJ's own metadata: `IJIJ`, kinds, then their values."""
    data, sizes = page.imagej_data, page.imagej_counts
    for magic, order in ((b"IJIJ", ">"), (b"JIJI", "<")):
        if sizes and data.startswith(magic) and 4 <= sizes[0] <= len(data):
            kinds = struct.unpack(f"{order}{(sizes[0] - 4) // 4}I", data[4 : 4 + (sizes[0] - 4) // 4 * 4])
            return _luts_among(kinds, data, sizes)
    return ()


def _luts_among(kinds: Sequence[int], data: bytes, sizes: Sequence[int]) -> tuple[str, ...]:
    at, block, colors = sizes[0], 1, list[str]()
    for kind, number in zip(kinds[::2], kinds[1::2], strict=False):
        for size in sizes[block : block + number]:
            if kind == int.from_bytes(b"luts", "big") and size == _LUT_BYTES and at + size <= len(data):
                colors.append(_name_of((data[at + 255], data[at + 511], data[at + 767])))
            at, block = at + size, block + 1
    return tuple(colors)


def _shaped(text: str) -> Stack | None:
    """tifffile's own, where it names its axes: {"shape": [3, 480, 640], "axes": "CYX"}."""
    try:
        found = json.loads(text)
        axes, shape = found["axes"], found["shape"]
        sizes = {axis: int(size) for axis, size in zip(axes, shape, strict=True)}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return Stack("tifffile", sizes.get("C", 1), sizes.get("Z", 1), sizes.get("T", 1))
