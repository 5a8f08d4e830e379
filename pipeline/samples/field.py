"""A whole field of view: which cells it holds, where they lie, and how the camera sees them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from pipeline.samples.cells import Array, WhiteCell, draw_patch, draw_platelet, draw_red_cells, draw_white_cell
from pipeline.samples.style import EOSIN, SubjectStyle


def render_field(
    rng: np.random.Generator, subject: SubjectStyle, positive: bool, width: int, height: int
) -> NDArray[np.uint8]:
    """Render one field, uint8 (height, width, 3) RGB.

    The height always shows `subject.field_height_um`, so a larger picture is the same scene in more pixels. A positive
    field holds at least one blast, a negative one none; both hold white cells with the same total nucleus area.
    """
    scale = height / subject.field_height_um  # pixels a micrometre
    extent_um = (subject.field_height_um, width / scale)
    cells = _white_cells(rng, subject, positive)
    placed = _place_white_cells(rng, cells, extent_um)
    stain = np.zeros((3, height, width), np.float32)
    _add_red_cells(rng, subject, placed, extent_um, scale, stain[EOSIN])
    for _ in range(rng.poisson(subject.platelets)):
        at = (rng.uniform(0, extent_um[0]), rng.uniform(0, extent_um[1]))
        if all(np.hypot(at[0] - y, at[1] - x) > cell.radius_um + 1.0 for cell, y, x in placed):
            patch = draw_platelet(rng, scale)
            _blend(stain, patch.stain, patch.cover, at, scale)
    for cell, y, x in placed:
        patch = draw_patch(rng, cell, scale, subject.chromatin)
        _blend(stain, patch.stain, patch.cover, (y, x), scale)
    return _photograph(rng, subject, stain, scale)


def _white_cells(rng: np.random.Generator, subject: SubjectStyle, positive: bool) -> list[WhiteCell]:
    """Choose cells until their nuclei fill an area drawn from the same distribution for both classes.

    Without this rule the amount of purple alone would tell a blast, whose nucleus is two to three times larger.
    """
    budget = max(subject.nuclear_area_um2 * float(np.exp(rng.normal(0.0, 0.28))), 110.0)
    cells: list[WhiteCell] = []
    if positive:
        cells.append(draw_white_cell(rng, "blast"))
        budget -= cells[0].nuclear_area_um2
    while len(cells) < 9:
        if positive and budget > 130.0 and rng.random() < 0.5:
            kind = "blast"
        else:
            kind = "neutrophil" if rng.random() < subject.neutrophil_share else "lymphocyte"
        cell = draw_white_cell(rng, kind)
        if cells and budget < 0.5 * cell.nuclear_area_um2:
            break
        cells.append(cell)
        budget -= cell.nuclear_area_um2
    return cells


def _place_white_cells(
    rng: np.random.Generator, cells: list[WhiteCell], extent_um: tuple[float, float]
) -> list[tuple[WhiteCell, float, float]]:
    """Give each cell a (y, x) in micrometres, apart from the others; cells without room are left out.

    The first lies whole inside the central square, so that a centre crop cannot lose the evidence.
    """
    high, wide = extent_um
    placed: list[tuple[WhiteCell, float, float]] = []
    for i, cell in enumerate(cells):
        margin = cell.radius_um if i == 0 else 0.55 * cell.radius_um
        side = min(high, wide) if i == 0 else wide
        for _ in range(40):
            y = rng.uniform(margin, high - margin)
            x = wide / 2 + rng.uniform(-1, 1) * (side / 2 - margin)
            if all(np.hypot(y - b, x - c) > 0.98 * (cell.radius_um + a.radius_um) for a, b, c in placed):
                placed.append((cell, y, x))
                break
    return placed


def _add_red_cells(
    rng: np.random.Generator,
    subject: SubjectStyle,
    white: list[tuple[WhiteCell, float, float]],
    extent_um: tuple[float, float],
    scale: float,
    eosin: Array,
) -> None:
    """Throw red cells on the glass around the white ones; neighbours may touch and overlap a little."""
    high, wide = extent_um
    radius = subject.red_cell_um
    wanted = int(subject.red_cell_cover * (high + 2 * radius) * (wide + 2 * radius) / (np.pi * radius**2))
    tries = rng.uniform([-radius, -radius], [high + radius, wide + radius], (wanted * 5, 2))
    gap = np.where(rng.random(len(tries)) < 0.25, 1.2, 1.85) * radius  # one in four may overlap a neighbour
    clear = np.ones(len(tries), bool)
    for cell, y, x in white:
        clear &= np.hypot(tries[:, 0] - y, tries[:, 1] - x) > cell.radius_um + 0.80 * radius
    centres = np.empty((0, 2))
    for at, apart in zip(tries[clear], gap[clear], strict=True):
        offset = centres - at
        if not len(centres) or (offset * offset).sum(axis=1).min() > apart * apart:
            centres = np.vstack([centres, at])
            if len(centres) == wanted:
                break
    if not len(centres):
        return
    radii = (radius * np.exp(rng.normal(0, subject.anisocytosis, len(centres)))).astype(np.float32)
    batch = 16  # small enough for the processor's cache: twice as fast as all at once
    for first in range(0, len(centres), batch):
        bodies = draw_red_cells(rng, radii[first : first + batch], scale, subject.pallor)
        for (y, x), body in zip(centres[first : first + batch], bodies, strict=True):
            target, source = _overlap(eosin.shape, body.shape[-1], (y, x), scale)
            eosin[target] += body[source]


def _overlap(
    shape: tuple[int, ...], size: int, at_um: tuple[float, float], scale: float
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch of `size` pixels centred on `at_um` meets the field: slices of the field, slices of the patch."""
    target, source = [], []
    for centre, limit in zip(at_um, shape[-2:], strict=True):
        start = round(centre * scale) - size // 2
        low, high = max(start, 0), min(start + size, limit)
        high = max(high, low)
        target.append(slice(low, high))
        source.append(slice(low - start, high - start))
    return (target[0], target[1]), (source[0], source[1])


def _blend(stain: Array, patch: Array, cover: Array, at_um: tuple[float, float], scale: float) -> None:
    """Lay a cell over the field, hiding what is below by its cover."""
    (ty, tx), (sy, sx) = _overlap(stain.shape, cover.shape[0], at_um, scale)
    stain[:, ty, tx] *= 1 - cover[sy, sx]
    stain[:, ty, tx] += patch[:, sy, sx]


def _photograph(rng: np.random.Generator, subject: SubjectStyle, stain: Array, scale: float) -> NDArray[np.uint8]:
    """Concentrations (3, H, W) to a photograph, uint8 (H, W, 3): absorption, light, focus, sensor noise."""
    _, height, width = stain.shape
    light = np.exp(-subject.optical_density.T @ stain.reshape(3, -1)).reshape(3, height, width)
    sigma = subject.focus_um * scale * float(np.exp(rng.normal(0, 0.15)))
    for axis in (1, 2):
        light = gaussian_filter1d(light, sigma, axis=axis, mode="nearest", truncate=2.5)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    lamp = 1 + np.float32(subject.tilt[0]) * y + np.float32(subject.tilt[1]) * x
    lamp -= np.float32(subject.vignette / 2) * (y * y + x * x)
    light *= lamp
    light *= subject.background[:, None, None]
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    noise *= np.float32(subject.noise)
    light += noise
    light += np.float32(0.5)  # the cast below cuts: this makes it round
    return np.ascontiguousarray(np.clip(light, 0, 255, out=light).astype(np.uint8).transpose(1, 2, 0))
