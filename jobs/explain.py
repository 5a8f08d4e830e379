"""`leukoray explain`: which places of a few images speak for the class that a model names, as pictures and a table."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from pydantic import Field

from jobs.common import Clock, job, job_stores, refuse_unwritable, show_config, start
from jobs.config import NamingConfig, positional
from jobs.record import Account, recorded
from pipeline.base.csv_text import csv_of
from pipeline.base.errors import ImageRejected, IncompleteError, InputError
from pipeline.base.machine import usable_cores
from pipeline.evaluation.own_files import pictures_of, refuse_foreign_explanation, refuse_foreign_pictures
from pipeline.evaluation.report.words import NOT_A_DEVICE
from pipeline.images.load import load_image
from pipeline.model.overlay import WHAT_IT_IS, overlaid
from pipeline.model.prediction import Prediction, mapped_class
from pipeline.model.predictor import Predictor
from pipeline.model.registry import resolve
from pipeline.sources.archives import Entry
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.listing import Tally, entry_row, list_sources
from pipeline.sources.pseudonyms import names_of
from pipeline.sources.rows import Access, ListingRow
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join, short_name

TABLE = "explained.csv"
SIDE = 320  # pixels of each of the two pictures
_BATCH = 16
_SHOWN = 12  # lines for a person; the table has all
_COLUMNS = (
    "picture", "uri", "member", "class", "probability", "decision", "ood_score", "is_ood", "map_of", "peak", "why_not",
)  # fmt: skip

EXAMPLES = """examples:
  leukoray explain out/samples/leukemia --model out/demo/models --out out/explained --images 12
  leukoray explain cell.jpg --model models/leukoray --out out/explained
  leukoray explain cell.jpg --model models/types --of MONOCYTE --out out/explained

Research software, not a medical device."""


class ExplainConfig(NamingConfig):
    """Draw a class-activation map over each of a few images, on CPUs, and tell what the model says of them."""

    sources: list[str] = positional(description="images, folders, archives, tables, s3:// prefixes", min_length=1)
    model: str = Field(description="bundle or registry folder, local or s3://")
    out: str = Field("explained", description=f"folder for a picture an image and {TABLE}")
    of: str | None = Field(
        None, description="class that maps are of (default: of two classes the second, of more the one named)"
    )
    images: int = Field(50, ge=1, le=1000, description="at most so many images, the first that are found")


@dataclass(frozen=True)
class _Explained:
    """A line of the table, and the picture that it names; none where the image could not be read."""

    line: dict[str, Any]
    picture: bytes | None = None


def main(config: ExplainConfig) -> None:
    clock, stores = Clock(), job_stores(config)
    show_config(config, names_of(stores))
    with recorded("explain", config, stores) as kept:
        _write(config, stores, clock, kept)


def _write(config: ExplainConfig, stores: Stores, clock: Clock, kept: Account) -> None:
    refuse_foreign_explanation(config.out, TABLE, stores)
    predictor = Predictor(resolve(config.model, stores).verify(), engine="onnx", threads=usable_cores())
    blank = np.zeros((predictor.size, predictor.size, 3), np.uint8)
    predictor.maps([blank], [config.of or predictor.info.classes[-1]])  # there is a map, and one of that class
    rows, problems = _listed(config, stores)
    lines = list(problems)
    names = [_picture_name(number, row) for number, row in enumerate(rows, len(lines) + 1)]
    refuse_foreign_pictures(config.out, names, stores)
    out, store = absolute(config.out), stores.of(absolute(config.out))
    refuse_unwritable(out)
    earlier = pictures_of(out, TABLE, stores)
    kept.keep(out, {}, model=predictor.info.identity())  # pictures go over those of an earlier run one by one
    for first in range(0, len(rows), _BATCH):
        for explained in _explain(rows[first : first + _BATCH], predictor, config.of, stores):
            if explained.picture is not None:
                explained.line["picture"] = names[len(lines) - len(problems)]
                store.write(join(out, explained.line["picture"]), explained.picture)
            lines.append(explained.line)
    drawn = {line["picture"] for line in lines if line["picture"]}
    kept.keep(out, {"images": len(lines), "pictures": len(drawn)}, model=predictor.info.identity())
    store.write(join(out, TABLE), _table(lines).encode("utf-8", "backslashreplace"))
    for name in earlier - drawn:  # which no table names any more
        store.delete(join(out, name))
    _account(config, predictor, lines, clock)


def _picture_name(number: int, row: ListingRow) -> str:
    """Of the image of this line; short enough for a disk in any script."""
    name = short_name(str(row.member or row.uri)).rpartition("/")[2]
    stem = (name.rpartition(".")[0] or name)[:80]
    return f"{number:04d}_{stem.encode(errors='replace')[:160].decode(errors='ignore')}.png"


def _listed(config: ExplainConfig, stores: Stores) -> tuple[list[ListingRow], list[dict[str, Any]]]:
    """Images to explain, those of one archive together; and a line for each that could not even be listed.

    Raises InputError where there is none.
    """
    tally, names = Tally(), names_of(stores)
    found = [names.found(item) for item in list_sources(config.sources, tally, stores=stores, limit=config.images + 1)]
    if not found:
        left_out = ", ".join(f"{count} left out: {reason}" for reason, count in tally.left_out.items())
        raise InputError(f"{' '.join(config.sources)}: no image ({left_out or 'nothing there'}); give another source")
    if len(found) > config.images:
        print(f"note: there are more; the first {config.images} that were found are explained (--images)")
    found = sorted(found[: config.images], key=lambda item: (item.uri, item.member or ""))
    rows = [entry_row(item) for item in found if isinstance(item, Entry)]
    problems = [item for item in found if not isinstance(item, Entry)]
    lines = [_line(item.uri, item.member, why_not=f"{item.code.value}: {item.message}") for item in problems]
    return sorted(rows, key=lambda row: (row.access is Access.STREAM, row.place)), lines


def _explain(rows: Sequence[ListingRow], predictor: Predictor, of: str | None, stores: Stores) -> Iterator[_Explained]:
    """One each, in the order of the rows."""
    fetched = {one.row.image_id: one for one in fetch_rows(rows, stores)}
    found: dict[int, _Explained] = {}
    seen: list[tuple[int, bytes, NDArray[np.uint8]]] = []
    for at, row in enumerate(rows):
        try:
            data = fetched[row.image_id].bytes_or_raise()
            seen.append((at, data, predictor.load(data).pixels))
        except ImageRejected as error:
            found[at] = _unexplained(row, error)
    pixels = [image for _, _, image in seen]
    said = predictor.predict_each(pixels) if seen else []
    mapped = [_map_of(predictor, answer, of) for answer in said]
    maps, peaks = predictor.maps(pixels, mapped) if seen else ((), np.zeros(0))
    for (at, data, _), answer, map_of, map_, peak in zip(seen, said, mapped, maps, peaks.tolist(), strict=True):
        if isinstance(answer, ImageRejected):
            found[at] = _unexplained(rows[at], answer)
            continue
        fields = {name: getattr(answer, name) for name in ("probability", "decision", "ood_score", "is_ood")}
        fields |= {"class": answer.class_name, "map_of": map_of, "peak": round(peak, 6)}
        shown = load_image(data, SIDE, bit_depth=predictor.info.bit_depth).pixels
        found[at] = _Explained(_line(rows[at].uri, rows[at].member, **fields), _picture(shown, map_))
    yield from (found[at] for at in range(len(rows)))


def _unexplained(row: ListingRow, error: ImageRejected) -> _Explained:
    return _Explained(_line(row.uri, row.member, why_not=f"{error.code.value}: {error.message}"))


def _map_of(predictor: Predictor, answer: Prediction | ImageRejected, of: str | None) -> str:
    if of is not None:
        return of
    return mapped_class(predictor.info, answer) if isinstance(answer, Prediction) else predictor.info.classes[-1]


def _line(uri: str, member: str | None, **known: Any) -> dict[str, Any]:
    return {**dict.fromkeys(_COLUMNS), "uri": uri, "member": member, **known}


def _picture(pixels: NDArray[np.uint8], map_: NDArray[np.float32]) -> bytes:
    """PNG: the image, and beside it the same with its map."""
    gap = np.full((len(pixels), 8, 3), 255, np.uint8)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", NOT_A_DEVICE)
    buffer = io.BytesIO()
    Image.fromarray(np.hstack([pixels, gap, overlaid(pixels, map_)])).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def _table(lines: Sequence[dict[str, Any]]) -> str:
    return csv_of([_COLUMNS, *([line[name] for name in _COLUMNS] for line in lines)])


def _account(config: ExplainConfig, predictor: Predictor, lines: Sequence[dict[str, Any]], clock: Clock) -> None:
    """Say what the pictures are; raise IncompleteError where an image has none."""
    drawn = [line for line in lines if line["picture"]]
    for line in drawn[:_SHOWN]:
        flag = ", unlike the images of training" if line["is_ood"] else ""
        said = f"{line['decision'] or line['class']} {line['probability']:.3f}{flag}"
        silent = "" if line["peak"] else "; no place speaks for it"
        print(f"  {line['picture']:<40} {said}; map of {line['map_of']}{silent}")
    if len(drawn) > _SHOWN:
        print(f"  and {len(drawn) - _SHOWN} more, see {TABLE}")
    print(WHAT_IT_IS)
    if predictor.info.outputs == 1:
        name = predictor.info.classes[1]
        print(f"Of an image that is not called {name} as well, the map shows what speaks for {name}, not against it.")
    print(f"\n{len(drawn)} pictures and {TABLE} in {absolute(config.out)}, {clock.seconds:.1f} s")
    print(NOT_A_DEVICE)
    if len(drawn) < len(lines):
        raise IncompleteError(
            f"{len(lines) - len(drawn)} of {len(lines)} images could not be read; {TABLE} says why (why_not)"
        )


command = job("explain", ExplainConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
