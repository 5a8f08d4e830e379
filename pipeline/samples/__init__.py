"""Synthetic stained blood smears, so that everything runs without real patients, network or account.

Every image is computer-generated from a seed and says 'synthetic' in its own metadata. Subjects differ in stain,
light, focus, noise and JPEG quality whatever their class; only the white cells tell the class. Read in this order:
style (one subject's slide and microscope) -> cells (single cells) -> field (a whole view) -> files (folders, archives).
"""

from pipeline.samples.field import render_field
from pipeline.samples.files import ArchiveSet, SampleSet, generate, generate_archive
from pipeline.samples.style import SubjectStyle, draw_style

__all__ = [
    "ArchiveSet",
    "SampleSet",
    "SubjectStyle",
    "draw_style",
    "generate",
    "generate_archive",
    "render_field",
]
