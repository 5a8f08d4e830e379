"""The protocol over gRPC, service inference.GRPCInferenceService: what stock gRPC clients of Triton and KServe speak.

https://github.com/kserve/open-inference-protocol (specification/protocol/inference_grpc.md). `messages` are its
messages, `wire` looks at one before it is parsed, `tensors` turns messages into images and predictions into messages,
`service` answers, `ingress` is it in a replica, `server` are Ray Serve's gRPC servers.
"""
