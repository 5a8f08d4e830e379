"""Networks by name, the bundle and its registry, the ONNX graph, and the one way from pixels to a probability.

Nothing here lists sources or writes results. What imports torch (`architectures`,
`trainable`, `export`, `torch_engine`) is for training and GPUs.
"""
