"""Sheets of images for people: what random changes make of training images, and what the model got most wrong.

Images are read anew from their source: a handful, whatever holds all others.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.base.errors import ImageRejected
from pipeline.images.load import load_image
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.rows import read_rows
from pipeline.storage.stores import Stores
from pipeline.training.augment import augmented
from pipeline.training.rows import TargetRow
from pipeline.training.settings import Settings

_TILE = 144  # pixels a side on a sheet, whatever the network's size
_GAP, _LINE = 6, 15
_FONT_SIZE = 12
_INK, _PAPER = (32, 32, 32), (255, 255, 255)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """An image, uint8 (S, S, 3) RGB, with lines of words below it."""

    pixels: Pixels
    words: tuple[str, ...] = ()


def read_images(rows: pa.Table, settings: Settings, stores: Stores) -> list[tuple[TargetRow, Pixels]]:
    """Rows of ROW_SCHEMA with their images as the network gets them; damaged ones are left out."""
    found = []
    for fetched in fetch_rows(read_rows(rows, TargetRow), stores):
        if fetched.data is None:
            continue
        try:
            image = load_image(fetched.data, settings.input_size, bit_depth=settings.bit_depth)
        except ImageRejected:
            continue
        found.append((fetched.row, image.pixels))
    return found


def some_of_each_class(rows: pa.Table, count: int, seed: int) -> pa.Table:
    """`count` rows, of every class as many as there are of the others, where it has them."""
    targets = rows["target"].to_numpy()
    order = np.random.default_rng(seed).permutation(rows.num_rows)
    turn = np.zeros(rows.num_rows, np.int64)  # the how-manieth of its class, in this order
    for target in np.unique(targets):
        own = order[targets[order] == target]
        turn[own] = np.arange(len(own))
    chosen = order[np.lexsort((targets[order], turn[order]))][:count]
    return rows.take(pa.array(chosen[np.lexsort((chosen, targets[chosen]))]))


def changes(images: Sequence[Pixels], image_ids: Sequence[int], settings: Settings, times: int) -> list[list[Pixels]]:
    """Each image as the network sees it in the first `times` epochs."""
    whole, ids = torch.from_numpy(np.stack(images)), np.array(image_ids, np.int64)  # uint8 (B, S, S, 3)
    epochs = range(times) if settings.augment else ()
    seen = [augmented(whole, ids, settings.seed, epoch, settings.seen).numpy() for epoch in epochs]
    return [[epoch[number] for epoch in seen] for number in range(len(images))]


def augmentation_sheet(
    rows: pa.Table, settings: Settings, stores: Stores, images: int = 8, times: int = 7
) -> Pixels | None:
    """Some training images, each beside its random changes; uint8 (H, W, 3). None where none of them can be read."""
    read = read_images(some_of_each_class(rows, images, settings.seed), settings, stores)
    if not read:
        return None
    changed = changes([pixels for _, pixels in read], [row.image_id for row, _ in read], settings, times)
    lines = [
        [Tile(pixels, (settings.classes[row.target],)), *(Tile(each) for each in of_one)]
        for (row, pixels), of_one in zip(read, changed, strict=True)
    ]
    return sheet(lines, f"left: images as they are; right of them: as training sees them, {settings.seen} px")


def sheet(lines: Sequence[Sequence[Tile]], title: str) -> Pixels:
    """Tiles in rows below a title; uint8 (H, W, 3) RGB."""
    font = ImageFont.load_default(_FONT_SIZE)
    heights = [_TILE + _LINE * max((len(tile.words) for tile in line), default=0) + _GAP for line in lines]
    columns = max((len(line) for line in lines), default=0)
    width = max(columns * (_TILE + _GAP) + _GAP, int(font.getlength(title)) + 2 * _GAP)
    canvas = Image.new("RGB", (width, sum(heights) + _LINE + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _GAP), title, _INK, font)
    top = _LINE + 2 * _GAP
    for line, height in zip(lines, heights, strict=True):
        for column, tile in enumerate(line):
            left = _GAP + column * (_TILE + _GAP)
            canvas.paste(_fitted(tile.pixels), (left, top))
            for number, words in enumerate(tile.words):
                draw.text((left, top + _TILE + number * _LINE), _shortened(words, font), _INK, font)
        top += height
    return np.asarray(canvas)


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _fitted(pixels: Pixels) -> Image.Image:
    """Small images keep hard pixels, so that what the network gets is seen."""
    how = Image.Resampling.NEAREST if len(pixels) < _TILE else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((_TILE, _TILE), how)


def _shortened(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while font.getlength(words) > _TILE:
        words = words[:-2] + "…"
    return words
