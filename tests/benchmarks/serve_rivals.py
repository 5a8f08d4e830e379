"""Services that answer one posted JPEG with a probability, as small and honest as their documentation advises.

`python -m tests.benchmarks.serve_rivals NAME --bundle FOLDER --port N`. All but `template` decode as the limit does and
run the bundle's graph in ONNX Runtime with one thread; POST /predict, body: a JPEG.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.inputs import INPUT_SIZE
from tests.benchmarks.limit import decode_into, open_session

Answer = Callable[[bytes], dict[str, float]]


def predictor(bundle: str) -> Answer:
    """Decode and one forward pass in the calling thread."""
    session = open_session(f"{bundle}/model.onnx")

    def answer(data: bytes) -> dict[str, float]:
        pixels = np.empty((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        decode_into(data, pixels[0])
        logit = session.run(None, {"images": pixels})[0][0, 0]
        return {"probability": float(1 / (1 + np.exp(-logit)))}

    return answer


def bare(bundle: str, port: int) -> None:
    """Our application, without Ray."""
    import uvicorn

    from serving.engine import Engine
    from serving.model import load_model
    from serving.routes import create_app
    from serving.settings import read_settings

    settings = read_settings({"model": bundle})
    app = create_app(Engine(settings, load_model(settings.model, settings)))
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def fastapi(bundle: str, port: int) -> None:
    """FastAPI on uvicorn: the body is awaited, the work done in its pool of threads."""
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    app, answer = FastAPI(), predictor(bundle)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, float]:
        return await run_in_threadpool(answer, await request.body())

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def _serve(deployment: Any, port: int) -> None:
    import ray
    from ray import serve

    ray.init(log_to_driver=False, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    serve.run(deployment.bind(), route_prefix="/", logging_config={"enable_access_log": False})
    while True:
        time.sleep(3600)


def empty(bundle: str, port: int) -> None:
    """A Ray Serve application that reads the body and does nothing else."""
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(num_replicas=1, max_ongoing_requests=512)
    class Empty:
        async def __call__(self, request: Request) -> dict[str, float]:
            return {"probability": float(len(await request.body()) > 0)}

    _serve(Empty, port)


def template(bundle: str, port: int) -> None:
    """The usual Ray Serve example of image classification: PIL, torchvision's transforms, the eager network."""
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(num_replicas=1, max_ongoing_requests=512)
    class Template:
        def __init__(self) -> None:
            import torch
            from torchvision import transforms

            from tests.benchmarks.eager import MEAN, STD, eager_model

            torch.set_num_threads(os.cpu_count() or 1)
            self.model = eager_model(bundle)
            steps = [
                transforms.Resize((INPUT_SIZE, INPUT_SIZE)),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
            self.preprocess = transforms.Compose(steps)

        def predict(self, data: bytes) -> float:
            import io

            import torch
            from PIL import Image

            pixels = self.preprocess(Image.open(io.BytesIO(data)).convert("RGB"))
            with torch.inference_mode():
                return float(torch.sigmoid(self.model(pixels[None])[0, 0]))

        async def __call__(self, request: Request) -> dict[str, float]:
            data = await request.body()
            return {"probability": await asyncio.to_thread(self.predict, data)}

    _serve(Template, port)


SERVICES: dict[str, Callable[[str, int], None]] = {
    "bare": bare,
    "fastapi": fastapi,
    "empty": empty,
    "template": template,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(SERVICES))
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    SERVICES[options.name](options.bundle, options.port)


if __name__ == "__main__":
    main()
