"""What people read about a model: one self-contained HTML report, and the model card beside the weights.

`curves` turns labels and probabilities into points, `plots` points into SVG, `html` and `card` fill the templates.
"""

from pipeline.evaluation.report.card import render_card
from pipeline.evaluation.report.curves import binary_curves, multiclass_curves
from pipeline.evaluation.report.html import Kept, render_report

__all__ = ["Kept", "binary_curves", "multiclass_curves", "render_card", "render_report"]
