"""What a person looks at beside the manifest: the pairs of near copies as a table, and some of them as pictures.

The pictures are one HTML file that fetches nothing; their captions are the names of the files.
"""

import base64
import html
from collections.abc import Sequence

import cv2
import pyarrow as pa

from pipeline.base.csv_text import csv_of
from pipeline.base.errors import ImageRejected
from pipeline.images.load import load_image
from pipeline.ingest.near_copies import Pair
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.rows import ListingRow, places_of, read_rows
from pipeline.storage.stores import Stores

NEAR_COPIES_TABLE, NEAR_COPIES_SHEET = "near_copies.csv", "near_copies.html"
_SHOWN = 24  # pairs
_SIDE = 160  # pixels
_COLUMNS = ("class_name", "subject_id", "split")
_PAIR = ("first", "second", "agreement")  # the first columns
_TITLE = '<!doctype html><meta charset="utf-8"><title>Near copies</title>\n'
_STYLE = """<style>
body{font:14px sans-serif;margin:2em} figure{display:inline-block;margin:.5em;vertical-align:top;width:335px}
figcaption{font-size:12px;overflow-wrap:anywhere} img,.none{width:160px;height:160px;display:inline-block;margin:1px}
.none{background:#ddd}
</style>
"""


def table_of_pairs(pairs: Sequence[Pair], manifest: pa.Table) -> str:
    """CSV: both paths of each pair with class, subject and split, and how well they agree, 1 where bytes do."""
    sides = _PAIR[:2]
    lines: list[list[object]] = [[*_PAIR, *(f"{side}_{name}" for name in _COLUMNS for side in sides)]]
    places = places_of(manifest)
    columns = {name: manifest[name].to_pylist() for name in _COLUMNS}
    for pair in pairs:
        both = (pair.first, pair.second)
        said = [columns[name][row] for name in _COLUMNS for row in both]
        lines.append([*(places[row] for row in both), f"{pair.agreement:.2f}", *said])
    return csv_of(lines)


def sheet_of_pairs(pairs: Sequence[Pair], manifest: pa.Table, stores: Stores = Stores()) -> str:
    """HTML with the first pairs, each two pictures side by side over their names; `pairs` in the order of interest."""
    shown = pairs[:_SHOWN]
    numbers = list(dict.fromkeys(row for pair in shown for row in (pair.first, pair.second)))
    chosen = manifest.take(pa.array(numbers, pa.int64()))
    rows = dict(zip(numbers, read_rows(chosen, ListingRow), strict=True))
    splits = dict(zip(numbers, chosen["split"].to_pylist(), strict=True))
    pictures = _pictures(list(rows.values()), stores)
    title = f"{len(pairs):,} pairs of images that show the same" + (f", {_SHOWN} of them" if pairs[_SHOWN:] else "")
    parts = [_TITLE, _STYLE, f"<h1>{title}</h1>\n"]
    for pair in shown:
        both = (pair.first, pair.second)
        captions = (f"{rows[row].place} ({splits[row] or 'no split'})" for row in both)
        images = "".join(pictures.get(rows[row].image_id, '<span class="none"></span>') for row in both)
        caption = "<br>".join(html.escape(caption) for caption in captions)
        parts.append(f"<figure>{images}<figcaption>{caption}</figcaption></figure>\n")
    return "".join(parts)


def is_table(data: bytes) -> bool:
    """Whether a file is such a table, by its first columns."""
    return data.startswith(",".join(_PAIR).encode())


def is_sheet(data: bytes) -> bool:
    """Whether a file is such a page, by its title."""
    return data.startswith(_TITLE.encode())


def _pictures(rows: Sequence[ListingRow], stores: Stores) -> dict[int, str]:
    """An <img> by image id, of those that can be read."""
    found = {}
    for item in fetch_rows(rows, stores):
        try:
            pixels = load_image(item.data, _SIDE).pixels if item.data is not None else None
        except ImageRejected:
            continue
        if pixels is not None:
            data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[
                1
            ].tobytes()
            found[item.row.image_id] = f'<img src="data:image/jpeg;base64,{base64.b64encode(data).decode()}" alt="">'
    return found
