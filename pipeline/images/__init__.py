"""Encoded bytes to the model's pixels, within limits, and nothing else: no I/O, no Ray, no model.

`load.load_image` is the one way; batch, training, evaluation and serving all take it.
"""
