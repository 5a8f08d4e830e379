"""LitServe with its batching, a worker a core; a module of its own, because its workers import it anew."""

import argparse
import os
from typing import Any

import litserve
import numpy as np
from fastapi import UploadFile

from tests.benchmarks.inputs import INPUT_SIZE
from tests.benchmarks.limit import decode_into, open_session


class Cells(litserve.LitAPI):
    """The bundle's graph, fed with decoded JPEGs."""

    def __init__(self, bundle: str) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.002)
        self.bundle = bundle

    def setup(self, device: str) -> None:
        self.session = open_session(f"{self.bundle}/model.onnx")

    def decode_request(self, request: UploadFile) -> Any:
        pixels = np.empty((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        decode_into(request.file.read(), pixels)
        return pixels

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, pixels: Any) -> Any:
        return self.session.run(None, {"images": pixels})[0][:, 0]

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, logit: Any) -> dict[str, float]:
        return {"probability": float(1 / (1 + np.exp(-logit)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    server = litserve.LitServer(Cells(options.bundle), accelerator="cpu", workers_per_device=os.cpu_count() or 1)
    server.run(port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
