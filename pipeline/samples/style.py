"""What one subject's slide and microscope look like: stain, illumination, focus, noise, JPEG quality.

A style is drawn without knowing the subject's class, so nothing in it can tell the class. Colour follows
the Beer-Lambert law used for stain separation (Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 2001):
intensity = background * exp(-concentrations @ optical_density), one row of `optical_density` per stain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EOSIN, AZURE, BLUE = 0, 1, 2
"""Channels of a concentration map: eosin (haemoglobin, granules), azure B on chromatin, azure B on RNA."""

# Optical density per channel (R, G, B) at concentration 1, read off Giemsa-stained cells: -ln(rgb / background).
_OPTICAL_DENSITY = np.array(
    [
        [0.12, 0.31, 0.26],  # red cell: pinkish grey
        [0.88, 1.36, 0.36],  # chromatin: purple
        [0.46, 0.32, 0.06],  # basophilic cytoplasm: blue
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class SubjectStyle:
    """How one subject's slide was stained and photographed. Lengths named `_um` are micrometres on the slide."""

    optical_density: NDArray[np.float32]  # (3 stains, 3 RGB), natural-log units
    background: NDArray[np.float32]  # (3,), RGB of empty glass, 0..255
    field_height_um: float
    tilt: tuple[float, float]  # relative brightness change across the field, (y, x)
    vignette: float  # relative darkening at the corners
    focus_um: float  # sigma of the defocus blur
    noise: float  # sigma of the sensor noise, in 8-bit steps
    jpeg_quality: int
    red_cell_cover: float  # share of the free glass that red cells try to fill
    red_cell_um: float  # mean radius
    anisocytosis: float  # relative spread of red cell radii
    pallor: float  # depth of the central pallor, 0..1
    platelets: float  # mean number a field
    neutrophil_share: float  # of the white cells that are not blasts
    nuclear_area_um2: float  # mean nucleus area a field, all white cells together
    chromatin: float  # strength of the nuclear stain


def draw_style(rng: np.random.Generator) -> SubjectStyle:
    """Draw one subject's style; the class is no argument, so it cannot leak in."""
    strength = np.exp(rng.normal(0.0, [[0.22], [0.17], [0.25]]))  # (3, 1): how long each stain acted
    hue = np.exp(rng.normal(0.0, 0.11, (3, 3)))  # buffer pH and dye batch shift the colour of each stain
    warmth = rng.normal(0.0, 0.03)
    glass = rng.uniform(218, 244) * np.array([1 + warmth, 1 + rng.normal(0, 0.012), 1 - warmth])
    return SubjectStyle(
        optical_density=(_OPTICAL_DENSITY * strength * hue).astype(np.float32),
        background=np.clip(glass, 190, 252).astype(np.float32),
        field_height_um=float(rng.uniform(40.0, 46.0)),
        tilt=(float(rng.normal(0, 0.03)), float(rng.normal(0, 0.03))),
        vignette=float(rng.uniform(0.0, 0.12)),
        focus_um=float(rng.uniform(0.06, 0.26)),
        noise=float(rng.uniform(0.8, 3.2)),
        jpeg_quality=int(rng.integers(72, 96)),
        red_cell_cover=float(rng.uniform(0.45, 0.9)),
        red_cell_um=float(rng.uniform(3.3, 3.8)),
        anisocytosis=float(rng.uniform(0.04, 0.11)),
        pallor=float(rng.uniform(0.45, 0.85)),
        platelets=float(rng.uniform(1.0, 5.0)),
        neutrophil_share=float(rng.uniform(0.25, 0.6)),
        nuclear_area_um2=float(rng.uniform(210.0, 300.0)),
        chromatin=float(np.exp(rng.normal(0.0, 0.1))),
    )
