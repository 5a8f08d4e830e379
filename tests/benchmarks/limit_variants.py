"""What else the limit could be made of: decoders and batch sizes on one core, each beside whether its pixels are ours.

python -m tests.benchmarks.limit_variants
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.load import load_image
from tests.benchmarks.inputs import DEFAULT_WORK, INPUT_SIZE, bundle_of, folder_of
from tests.benchmarks.limit import decode_into, open_session
from tests.benchmarks.measure import markdown_table

BATCHES = (1, 4, 8, 16, 32, 64)
_ROUNDS = 5
Decoder = Callable[[bytes], NDArray[np.uint8]]


def limit_decoder(data: bytes) -> NDArray[np.uint8]:
    target = np.empty((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    decode_into(data, target)
    return target


def rough_turbo(data: bytes) -> NDArray[np.uint8]:
    options = {"min_height": INPUT_SIZE, "min_width": INPUT_SIZE, "fastdct": True, "fastupsample": True}
    return _bilinear(simplejpeg.decode_jpeg(data, "RGB", **options))


def opencv(data: bytes) -> NDArray[np.uint8]:
    return _bilinear(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)[:, :, ::-1])


def torchvision_decoder(data: bytes) -> NDArray[np.uint8]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return _bilinear(pixels.permute(1, 2, 0).numpy())


def pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((INPUT_SIZE, INPUT_SIZE)))


def pillow_draft(data: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (INPUT_SIZE, INPUT_SIZE))
    return np.asarray(image.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BILINEAR))


def _bilinear(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = (INPUT_SIZE, INPUT_SIZE)
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_LINEAR_EXACT))


DECODERS: dict[str, Decoder] = {
    "simplejpeg, DCT scaling, OpenCV bilinear (the limit)": limit_decoder,
    "pipeline.images.load (ours: the same with header guards)": lambda data: load_image(data, INPUT_SIZE).pixels,
    "simplejpeg with fast DCT and upsampling": rough_turbo,
    "OpenCV, reduced by 2": opencv,
    "torchvision, full size": torchvision_decoder,
    "Pillow with draft": pillow_draft,
    "Pillow": pillow,
}


def decoder_rates(images: list[bytes]) -> dict[str, float]:
    """Images/s on one core: median of interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in DECODERS}
    for _ in range(_ROUNDS):
        for name, decode in DECODERS.items():
            begin = time.perf_counter()
            for data in images:
                decode(data)
            seconds[name].append(time.perf_counter() - begin)
    return {name: len(images) / median(values) for name, values in seconds.items()}


def batch_rates(graph: str, images: int = 64) -> dict[int, float]:
    """Images/s of the forward pass alone on one core, by batch size: median of interleaved rounds."""
    session = open_session(graph)
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCHES), INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
    seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for each in range(_ROUNDS + 1):
        for batch in BATCHES:
            begin = time.perf_counter()
            for start in range(0, images, batch):
                session.run(None, {"images": pixels[start : start + batch]})
            if each:  # the first round sets the graph up
                seconds[batch].append(time.perf_counter() - begin)
    return {batch: images / median(values) for batch, values in seconds.items()}


def best_batch(graph: str) -> int:
    rates = batch_rates(graph, images=64)
    return max(rates, key=lambda batch: rates[batch])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mobilenet_v3_small", "resnet18"])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    files = sorted(folder_of(options.work, 100).glob("*.jpg"))
    images = [path.read_bytes() for path in files]
    expected = [load_image(data, INPUT_SIZE).pixels for data in images]
    rows = []
    for name, rate in decoder_rates(images).items():
        found = [DECODERS[name](data).astype(int) for data in images]
        worst = np.mean([np.abs(a - b).mean() for a, b in zip(found, expected, strict=True)])
        rows.append([name, f"{rate:.0f}", "same" if worst == 0 else f"{worst:.2f}"])
    print(markdown_table(["decoder, one core", "images/s", "mean difference, levels"], rows))
    for model in options.models:
        rates = batch_rates(f"{bundle_of(options.work, model)}/model.onnx")
        rows = [[str(batch), f"{rate:.0f}"] for batch, rate in rates.items()]
        print(f"\n{markdown_table([f'{model}, ONNX Runtime on one core: batch', 'images/s'], rows)}")


if __name__ == "__main__":
    main()
