"""The Open Inference Protocol, version 2: what stock clients of KServe, Triton and MLServer speak.

https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md), with the binary tensor
extension as KServe and Triton have it. `schemas` is the JSON, `tensors` turns tensors into images and predictions into
tensors, `answering` is what is answered, `routes` over REST, `rpc` over gRPC, `elsewhere` by another application.
"""
