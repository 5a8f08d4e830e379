"""Networks by name, the bundle and its registry, the ONNX graph, and the one way from pixels to a probability.

Nothing here lists sources or writes results. Only `architectures`, `export` and `torch_engine` import torch.
"""
