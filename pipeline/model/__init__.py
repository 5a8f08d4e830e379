"""Networks by name, the bundle and its registry, the ONNX graph, and the one way from pixels to a probability.

Nothing here lists sources or writes results. `predictor`, `bundle` and `registry` import no torch; what
makes, loads and exports networks does.
"""
