"""Single cells as small patches of stain concentration, from measurements in micrometres.

Every function takes a generator and `scale` (pixels a micrometre) and gives a `Patch`. Sizes, nucleus-to-cytoplasm
ratios and chromatin follow the descriptions of peripheral blood cells in Bain, 'Blood Cells: A Practical Guide'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.samples.style import AZURE, BLUE, EOSIN

Array = NDArray[np.floating]  # float32 throughout; numpy's stubs lose the width in mixed arithmetic


@dataclass(frozen=True)
class Patch:
    """Stain concentrations of one cell and how much of what lies below it hides."""

    stain: Array  # float32 (3, P, P): eosin, azure, blue
    cover: Array  # float32 (P, P), 0..1


@dataclass(frozen=True)
class WhiteCell:
    """What is decided about a white cell before it is drawn: kind and sizes in micrometres."""

    kind: str  # 'blast' | 'lymphocyte' | 'neutrophil'
    radius_um: float
    nucleus_um: float  # radius of a disc with the nucleus' area

    @property
    def nuclear_area_um2(self) -> float:
        return float(np.pi * self.nucleus_um**2)


def draw_white_cell(rng: np.random.Generator, kind: str) -> WhiteCell:
    """Sizes of one white cell. Blasts: 13-16 um across, nucleus 74-88 % of the area; lymphocytes: 8-16 um."""
    if kind == "blast":
        radius = rng.uniform(6.4, 8.2)
        return WhiteCell(kind, radius, radius * float(np.sqrt(rng.uniform(0.74, 0.88))))
    if kind == "lymphocyte":
        nucleus = rng.uniform(3.4, 4.7)
        # Most have a thin rim of cytoplasm; one in three is a large lymphocyte with plenty of pale blue.
        rim = rng.uniform(2.0, 3.2) if rng.random() < 0.35 else rng.uniform(0.5, 1.0)
        return WhiteCell(kind, nucleus + rim, nucleus)
    radius = rng.uniform(6.0, 7.2)
    return WhiteCell(kind, radius, radius * float(np.sqrt(rng.uniform(0.30, 0.38))))


def draw_patch(rng: np.random.Generator, cell: WhiteCell, scale: float, chromatin: float) -> Patch:
    """Render one white cell at `scale` pixels a micrometre; `chromatin` scales its nuclear stain."""
    half = int(np.ceil(cell.radius_um * 1.2 * scale)) + 2
    painter = {"blast": _blast, "lymphocyte": _lymphocyte, "neutrophil": _neutrophil}[cell.kind]
    return painter(rng, cell, half, scale, np.float32(chromatin * np.exp(rng.normal(0, 0.1))))


def _axes(half: int, scale: float, centre: tuple[float, float] = (0.0, 0.0)) -> tuple[Array, Array]:
    """Coordinates in micrometres from `centre` (y, x), shapes (P, 1) and (1, P), P = 2 * half + 1."""
    line = np.arange(-half, half + 1, dtype=np.float32) / np.float32(scale)
    return (line - np.float32(centre[0]))[:, None], (line - np.float32(centre[1]))[None, :]


def texture(rng: np.random.Generator, size: int, sigma_px: float) -> Array:
    """Smooth random texture, float32 (size, size), mean 0, deviation 1, grain `sigma_px`."""
    noise: Array = gaussian_filter(
        rng.standard_normal((size, size), dtype=np.float32), sigma_px, mode="wrap", truncate=2.5
    )
    noise -= noise.mean()
    noise /= noise.std() + np.float32(1e-6)
    return noise


def _edge(distance_um: Array, softness_um: float) -> Array:
    """1 inside (negative distance), 0 outside, a smooth step of the given width between."""
    t: Array = np.clip(np.float32(0.5) - distance_um / np.float32(softness_um), 0.0, 1.0)
    step: Array = t * t * (3 - 2 * t)
    return step


def _outline(
    rng: np.random.Generator,
    half: int,
    scale: float,
    radius: float,
    wobble: float,
    centre: tuple[float, float] = (0.0, 0.0),
) -> Array:
    """Signed distance (um, negative inside) to a wobbly circle: harmonics 2 to 5 with falling amplitude."""
    y, x = _axes(half, scale, centre)
    distance = np.sqrt(y * y + x * x) + np.float32(1e-6)
    cosine, sine = x / distance, y / distance
    c, s = cosine, sine  # cos(k t) and sin(k t), raised by the addition theorem: cheaper than arctan2 and cos
    distance -= np.float32(radius)
    for k in (2, 3, 4, 5):
        c, s = c * cosine - s * sine, s * cosine + c * sine
        amplitude, phase = radius * wobble * rng.normal() / k, rng.uniform(0, 2 * np.pi)
        distance -= np.float32(amplitude * np.cos(phase)) * c - np.float32(amplitude * np.sin(phase)) * s
    return distance


def _off_centre(rng: np.random.Generator, room_um: float) -> tuple[float, float]:
    """A random shift that uses up to `room_um`, the play a nucleus has inside its cell."""
    angle, reach = rng.uniform(0, 2 * np.pi), room_um * np.sqrt(rng.random())
    return float(reach * np.sin(angle)), float(reach * np.cos(angle))


def _blast(rng: np.random.Generator, cell: WhiteCell, half: int, scale: float, chromatin: np.float32) -> Patch:
    """Large irregular nucleus, fine open chromatin, one to three pale nucleoli, scant deep-blue cytoplasm."""
    size = 2 * half + 1
    cover = _edge(_outline(rng, half, scale, cell.radius_um, 0.09), 0.5)
    shift = _off_centre(rng, 0.8 * (cell.radius_um - cell.nucleus_um))
    distance = _outline(rng, half, scale, cell.nucleus_um, 0.13, shift)
    if rng.random() < 0.45:
        cleft = _cleft(rng, half, scale, cell.nucleus_um, shift)
        gap = distance - cleft
        distance = (distance + cleft + np.sqrt(gap * gap + np.float32(0.25))) / 2  # maximum with rounded corners
    nucleus = _edge(distance, 0.45) * cover
    fine = texture(rng, size, 0.22 * scale) + np.float32(0.4) * texture(rng, size, 0.7 * scale)
    density = np.float32(0.80) + np.float32(0.085) * fine
    density += np.float32(0.20) * np.exp(-((distance + np.float32(0.25)) ** 2) / np.float32(0.12))  # membrane
    nucleoli = np.zeros_like(density)
    for _ in range(int(rng.integers(1, 4))):
        at = _off_centre(rng, 0.6 * cell.nucleus_um)
        spot = _outline(rng, half, scale, rng.uniform(0.9, 1.45), 0.2, (shift[0] + at[0], shift[1] + at[1]))
        inside = _edge(spot, 0.9)
        nucleoli = np.maximum(nucleoli, inside)
        density += np.float32(0.22) * np.exp(-((spot - np.float32(0.25)) ** 2) / np.float32(0.10))  # chromatin rim
    density *= 1 - np.float32(0.58) * nucleoli
    cytoplasm = (cover - nucleus) * (
        np.float32(rng.uniform(0.85, 1.3)) + np.float32(0.09) * texture(rng, size, 0.45 * scale)
    )
    stain = np.zeros((3, size, size), np.float32)
    stain[AZURE] = nucleus * density * chromatin
    stain[BLUE] = cytoplasm + np.float32(0.55) * nucleus * nucleoli
    return Patch(stain, cover)


def _cleft(rng: np.random.Generator, half: int, scale: float, nucleus_um: float, centre: tuple[float, float]) -> Array:
    """Signed distance, positive inside a bent wedge from the rim inwards, as in folded or convoluted nuclei."""
    angle = rng.uniform(0, 2 * np.pi)
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    y, x = _axes(half, scale, centre)
    along = (y * sine + x * cosine) / np.float32(nucleus_um)  # 1 at the rim
    inwards = 1 - along
    across = x * sine - y * cosine + np.float32(rng.normal(0, 1.2)) * inwards * inwards
    open_um = np.float32(rng.uniform(1.6, 2.6)) * (along - np.float32(rng.uniform(0.35, 0.6)))
    return open_um - np.abs(across)


def _lymphocyte(rng: np.random.Generator, cell: WhiteCell, half: int, scale: float, chromatin: np.float32) -> Patch:
    """Dense, round, clumped nucleus, no nucleolus; a thin rim, or in large cells a pale apron, of blue."""
    size = 2 * half + 1
    room = cell.radius_um - cell.nucleus_um
    cover = _edge(_outline(rng, half, scale, cell.radius_um, 0.05 + 0.03 * room), 0.5)
    distance = _outline(rng, half, scale, cell.nucleus_um, 0.04, _off_centre(rng, 0.75 * room))
    nucleus = _edge(distance, 0.45) * cover
    clumps = np.tanh(np.float32(1.4) * texture(rng, size, 0.55 * scale))
    density = np.float32(1.0) + np.float32(0.19) * clumps
    density += np.float32(0.10) * np.exp(-((distance + np.float32(0.3)) ** 2) / np.float32(0.2))
    paleness = 1.0 if room < 1.5 else 0.55
    blue = np.float32(paleness * rng.uniform(0.7, 1.2)) + np.float32(0.06) * texture(rng, size, 0.5 * scale)
    stain = np.zeros((3, size, size), np.float32)
    stain[AZURE] = nucleus * density * chromatin
    stain[BLUE] = (cover - nucleus) * blue
    return Patch(stain, cover)


def _neutrophil(rng: np.random.Generator, cell: WhiteCell, half: int, scale: float, chromatin: np.float32) -> Patch:
    """Three to five clumped lobes on an arc joined by thin bridges; pale pink cytoplasm with fine granules."""
    size = 2 * half + 1
    cover = _edge(_outline(rng, half, scale, cell.radius_um, 0.05), 0.5)
    lobes = int(rng.integers(3, 6))
    radius = 0.96 * cell.nucleus_um / np.sqrt(lobes)
    arc = 0.52 * cell.radius_um
    start, turn = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0]) * min(2.15 * radius / arc, 5.2 / lobes)
    angles = start + turn * (np.arange(lobes) + rng.normal(0, 0.08, lobes))
    reach = arc * (1 + rng.normal(0, 0.10, lobes))
    centres = np.stack([reach * np.sin(angles), reach * np.cos(angles)], axis=1)
    centres -= 0.5 * centres.mean(axis=0)  # an arc that is not full would leave the nucleus on one side
    distance = np.full((size, size), np.float32(1e3))
    for i, centre in enumerate(centres):
        lobe = _outline(rng, half, scale, radius * rng.uniform(0.85, 1.15), 0.16, (centre[0], centre[1]))
        distance = np.minimum(distance, lobe)
        if i:
            distance = np.minimum(distance, _segment(half, scale, centres[i - 1], centre) - np.float32(0.28))
    nucleus = _edge(distance, 0.45) * cover
    density = np.float32(1.0) + np.float32(0.16) * np.tanh(np.float32(1.4) * texture(rng, size, 0.45 * scale))
    granules = np.maximum(texture(rng, size, 0.16 * scale) - np.float32(0.9), 0)
    stain = np.zeros((3, size, size), np.float32)
    stain[EOSIN] = (cover - nucleus) * (np.float32(rng.uniform(0.30, 0.45)) + np.float32(0.25) * granules)
    stain[AZURE] = nucleus * density * chromatin + (cover - nucleus) * (np.float32(0.045) + np.float32(0.09) * granules)
    stain[BLUE] = (cover - nucleus) * np.float32(0.08)
    return Patch(stain, cover)


def _segment(half: int, scale: float, start: NDArray[np.float64], end: NDArray[np.float64]) -> Array:
    """Distance (um) of every pixel to the line from `start` to `end`, both (y, x)."""
    y, x = _axes(half, scale, (start[0], start[1]))
    step = (end - start).astype(np.float32)
    t = np.clip((y * step[0] + x * step[1]) / (step @ step + np.float32(1e-6)), 0.0, 1.0)
    distance: Array = np.hypot(y - t * step[0], x - t * step[1])
    return distance


def draw_platelet(rng: np.random.Generator, scale: float) -> Patch:
    """A platelet: 2-3 um, granular purple centre in a pale blue-grey body."""
    radius = rng.uniform(0.9, 1.5)
    half = int(np.ceil(radius * 1.5 * scale)) + 2
    size = 2 * half + 1
    distance = _outline(rng, half, scale, radius, 0.22)
    cover = _edge(distance, 0.5)
    core = _edge(distance + np.float32(0.35), 0.8) * np.maximum(
        1 + np.float32(0.5) * texture(rng, size, 0.2 * scale), 0
    )
    stain = np.zeros((3, size, size), np.float32)
    stain[AZURE] = np.float32(rng.uniform(0.28, 0.5)) * core + np.float32(0.08) * cover
    stain[BLUE] = np.float32(0.22) * cover
    return Patch(stain, np.float32(0.5) * cover)


_STEPS = 96  # table steps a cell radius
_RHO: Array = np.arange(int(_STEPS * 1.3), dtype=np.float32) / _STEPS
_BODY = _edge((_RHO - 1) * np.float32(3.5), 0.45)  # 3.5 um: the edge of a red cell of usual size
_RIM = np.exp(-(((_RHO - np.float32(0.86)) / np.float32(0.10)) ** 2))
_DISC: Array = _BODY * (1 + np.float32(0.14) * _RIM)
_DIMPLE: Array = _BODY * np.exp(-((_RHO / np.float32(0.46)) ** 4))


def draw_red_cells(rng: np.random.Generator, radii_um: Array, scale: float, pallor: float) -> Array:
    """Eosin of N red cells at once, float32 (N, P, P): biconcave discs, thin in the middle, a few misshapen.

    Thickness comes from a table over the relative radius, because a field holds dozens of them.
    """
    n = len(radii_um)
    half = int(np.ceil(float(radii_um.max()) * 1.28 * scale)) + 1
    y, x = _axes(half, scale)
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1)).astype(np.float32)
    stretch = np.exp(np.abs(rng.normal(0, 0.055, (n, 1, 1)))).astype(np.float32)
    radius = radii_um[:, None, None]
    turned_y, turned_x = np.sin(angle), np.cos(angle)
    u = x * (turned_x / (radius * stretch)) + y * (turned_y / (radius * stretch))
    v = y * (turned_x * stretch / radius) - x * (turned_y * stretch / radius)
    square = u * u
    v *= v
    v += square
    rho = np.sqrt(v)
    # Third harmonic as a polynomial: rho^3 cos 3t = 4 u^3 - 3 u rho^2; it fades towards the middle.
    square *= 4
    square -= 3 * v
    square *= u
    square *= rng.normal(0, 0.018, (n, 1, 1)).astype(np.float32)
    rho += square
    rho *= np.float32(_STEPS)
    step = np.clip(rho, 0, len(_RHO) - 1).astype(np.int32)
    strength = rng.normal(1.0, 0.07, (n, 1, 1)).astype(np.float32)
    depth = np.clip(rng.normal(pallor, 0.13, (n, 1, 1)), 0.1, 0.92).astype(np.float32)
    eosin: Array = strength * _DISC[step] - (strength * depth) * _DIMPLE[step]
    return eosin
