"""Where the images went, as a diagram (SVG): listed, left out, labelled, in each part, measured. Pure.

Boxes from above to below; what leaves stands to the right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import pyarrow.compute as pc

from pipeline.evaluation.result import Evaluation
from pipeline.sources.manifest import SPLITS, Manifest

_WIDTH, _COLUMN, _LINE, _PAD, _GAP = 760, 226, 18, 12, 34
_INK, _SOFT, _LINE_COLOUR = "#1b2430", "#f6f8fa", "#9aa5b1"


@dataclass(frozen=True)
class Flow:
    """Numbers of images, but for `not_listed`: files."""

    not_listed: dict[str, int]  # reason to files that are no images, were filtered, or could not be listed
    listed: int
    unlabelled: int
    other_without_part: dict[str, int]  # reason to labelled images in no part
    labelled: int  # in a part
    parts: dict[str, tuple[int, int]]  # part to labelled images, subjects
    units: str  # what subjects are called
    measured: str  # name of the part that was measured
    unread: dict[str, int]  # code, or 'by the other model', to its images without an answer
    scored: int


def flow_of(found: Evaluation, left_out: int = 0) -> Flow:
    """Every listed image is in exactly one of: unlabelled, without a part, a part.

    `left_out`: images of the measured part that a comparison leaves out, also those that another model alone lost.
    """
    manifest = found.manifest
    info = manifest.info
    parts = {split: part_size(manifest, split) for split in SPLITS}
    unlabelled, reasons = _of_manifest(manifest) if found.external is None else _of_match(found.external)
    codes: dict[str, int] = {}
    for error in found.outcomes.rejections:
        codes[error.code.value] = codes.get(error.code.value, 0) + 1
    if (by_others := left_out - sum(codes.values())) > 0:
        codes["by the other model"] = by_others
    return Flow(
        not_listed=dict(info.left_out) | {f"not listed: {code}": count for code, count in info.problems.items()},
        listed=info.images,
        unlabelled=unlabelled,
        other_without_part={why: count for why, count in reasons.items() if count},
        labelled=sum(images for images, _ in parts.values()),
        parts=parts,
        units=info.units,
        measured=found.split,
        unread=codes,
        scored=len(found.outcomes.scored),
    )


def _of_manifest(manifest: Manifest) -> tuple[int, dict[str, int]]:
    """Images without a class, and labelled ones in no part by reason."""
    table, info = manifest.table, manifest.info
    named = table.filter(pc.or_(pc.is_valid(table["class_name"]), pc.is_valid(table["label"])))
    without = named.filter(pc.is_null(named["split"]))
    ignored = sum(without["class_name"].to_pylist().count(name) for name in info.ignored)
    rest = without.num_rows - ignored
    contradicted = min(info.contradictions, rest)
    return table.num_rows - named.num_rows, {
        "of classes left out": ignored,
        "under two labels": contradicted,
        "for other reasons": rest - contradicted,
    }


def _of_match(external: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    """The same of images elsewhere: matching took their class and part, and counted those without a label too."""
    unknown = sum(external["unmatched"].values())
    return 0, {"of classes the model does not know": unknown} | dict(external["left_out"])


def part_size(manifest: Manifest, split: str) -> tuple[int, int]:
    """Images with a class or label, and their subjects."""
    rows = [row for row in manifest.split(split) if row.class_name is not None or row.label is not None]
    return len(rows), len({row.subject_id for row in rows} - {None})


def draw(flow: Flow) -> str:
    """The diagram as SVG text, 760 units wide."""
    out: list[str] = []
    top = 10
    top = _step(out, top, [f"Listed: {flow.listed:,} images"], _reasons("Not listed", flow.not_listed))
    gone = ({"without a class": flow.unlabelled} if flow.unlabelled else {}) | flow.other_without_part
    top = _step(out, top, [f"With a class, in a part: {flow.labelled:,} images"], _reasons("In no part", gone))
    heights = []
    for column, (split, (images, subjects)) in enumerate(flow.parts.items()):
        known = f"{subjects:,} {flow.units}" if subjects else "subjects not known"
        told = [split.capitalize(), f"{images:,} images", known]
        heights.append(_box(out, _left(column), top, _COLUMN, told, is_strong=split == flow.measured))
    column, below = list(flow.parts).index(flow.measured), top + max(heights)
    middle = _left(column) + _COLUMN // 2
    out.append(_line(middle, below, middle, below + _GAP - 4))
    top = below + _GAP
    height = _box(out, _left(column), top, _COLUMN, [f"Measured: {flow.scored:,} images"], is_strong=True)
    if unread := _reasons("Could not be read", flow.unread):
        beside = column - 1 if column else 1
        height = max(height, _box(out, _left(beside), top, _COLUMN, unread))
        first = min(column, beside)
        out.append(_line(_left(first) + _COLUMN, top + 20, _left(first + 1), top + 20))
    top += height + 10
    text = f"{flow.listed} listed, {flow.labelled} labelled and in a part, {flow.scored} measured"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" role="img" aria-label="{text}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{_INK}">'
        f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>{"".join(out)}</svg>'
    )


def _reasons(title: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    return [f"{title}: {sum(counts.values()):,}", *(f"{count:,} {why}" for why, count in counts.items())]


def _step(out: list[str], top: int, told: Sequence[str], gone: Sequence[str]) -> int:
    """A box, what leaves beside it, and a line to the next; where the next begins."""
    height = _box(out, 10, top, 350, told)
    beside = _box(out, 430, top, 320, gone) if gone else 0
    if gone:
        out.append(_line(360, top + 20, 430, top + 20))
    below = top + max(height, beside)
    out.append(_line(185, top + height, 185, below + _GAP - 4))
    return below + _GAP


def _left(column: int) -> int:
    return 10 + (_COLUMN + 21) * column


def _box(out: list[str], left: int, top: int, width: int, told: Sequence[str], is_strong: bool = False) -> int:
    height = 2 * _PAD + _LINE * len(told) - 4
    stroke, thick = (_INK, 2) if is_strong else (_LINE_COLOUR, 1)
    out.append(
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="3" fill="{_SOFT}" stroke="{stroke}" '
        f'stroke-width="{thick}"/>'
    )
    for k, text in enumerate(told):
        weight = ' font-weight="600"' if k == 0 else ""
        shown = text if len(text) <= width // 7 else text[: width // 7 - 1] + "…"
        out.append(f'<text x="{left + _PAD}" y="{top + _PAD + 10 + _LINE * k}"{weight}>{escape(shown)}</text>')
    return height


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{_LINE_COLOUR}" stroke-width="1.5"/>'
