"""What people read about a model: one self-contained HTML report, and the model card beside the weights.

`curves` turns labels and probabilities into points, `plots` points into SVG, `html` and `card` fill the templates. Each
is imported from where it lies, so that a card waits for no drawing.
"""
