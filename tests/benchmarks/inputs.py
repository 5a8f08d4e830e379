"""What every contender gets: the same synthetic JPEGs (640x480), tar archives of them, and bundles of random weights.

All of it is cached in a work folder, because 20,000 images take minutes to draw. A few fields are rendered in full and
varied cheaply (flip, roll, gain, another encoding), so that no two files are the same bytes.
"""

import argparse
import io
import multiprocessing
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

WIDTH, HEIGHT, QUALITY = 640, 480, 90
FIELDS = 150  # rendered in full
INPUT_SIZE = 224
TARS = 4
ROOT = Path(__file__).resolve().parents[2]
DEFAULT_WORK = ROOT / "out" / "bench"
_NOTICE = "SYNTHETIC images: computer-generated, of no real patient. Research software, not a medical device.\n"


def file_name(number: int) -> str:
    return f"field-{number:06d}.jpg"


def pool_of_images(work: Path, images: int) -> Path:
    """Folder with at least `images` distinct JPEGs; draws only what is missing."""
    folder = work / "images"
    folder.mkdir(parents=True, exist_ok=True)
    (work / "SYNTHETIC.txt").write_text(_NOTICE)
    missing = sorted({n % FIELDS for n in range(images) if not (folder / file_name(n)).exists()})
    if missing:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as processes:
            list(processes.map(partial(_draw_variants, folder=folder, images=images), missing))
    return folder


def _draw_variants(field: int, folder: Path, images: int) -> None:
    from pipeline.samples import draw_style, render_field

    rng = np.random.default_rng([7, field])
    pixels = render_field(rng, draw_style(rng), bool(field % 2), WIDTH, HEIGHT)
    for number in range(field, images, FIELDS):
        data = simplejpeg.encode_jpeg(_vary(pixels, number), quality=QUALITY, colorspace="RGB", colorsubsampling="420")
        temporary = folder / f".{file_name(number)}"
        temporary.write_bytes(data)
        temporary.rename(folder / file_name(number))


def _vary(pixels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """Another view of the same field, uint8 (H, W, 3): mirrored, moved along the slide, under another lamp."""
    rng = np.random.default_rng([8, number])
    view = pixels[:: rng.choice([1, -1]), :: rng.choice([1, -1])]
    view = np.roll(view, (int(rng.integers(HEIGHT)), int(rng.integers(WIDTH))), axis=(0, 1))
    levels = np.arange(256) * rng.uniform(0.85, 1.05)
    return np.ascontiguousarray(np.clip(levels, 0, 255).astype(np.uint8)[view])


def folder_of(work: Path, images: int, distinct: int | None = None) -> Path:
    """Folder with exactly `images` files: hard links to `distinct` files (default: all distinct), repeated in turn."""
    distinct = min(images, distinct or images)
    source = pool_of_images(work, distinct)
    folder = work / f"disk-{images}"
    if not (folder.exists() and sum(1 for _ in folder.iterdir()) == images):
        folder.mkdir(exist_ok=True)
        for number in range(images):
            link = folder / file_name(number)
            if not link.exists():
                link.hardlink_to(source / file_name(number % distinct))
    return folder


def tars_of(work: Path, images: int) -> Path:
    """Folder with the same images in a few plain tar archives."""
    source = pool_of_images(work, images)
    folder = work / f"tar-{images}"
    folder.mkdir(parents=True, exist_ok=True)
    for index, numbers in enumerate(np.array_split(np.arange(images), TARS)):
        target = folder / f"fields-{index}.tar"
        if target.exists():
            continue
        temporary = folder / f"fields-{index}.partial"
        with tarfile.open(temporary, "w") as archive:
            for number in numbers:
                data = (source / file_name(number)).read_bytes()
                member = tarfile.TarInfo(file_name(number))
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        temporary.rename(target)
    return folder


def bundle_of(work: Path, architecture: str) -> Path:
    """A bundle with seeded random weights: as fast as a trained one, and its probabilities spread over 0..1."""
    folder = work / "models" / architecture
    if not _is_current(folder):
        context = multiprocessing.get_context("spawn")  # torch stays out of the process that measures
        with ProcessPoolExecutor(1, mp_context=context) as process:
            process.submit(_write_bundle, folder, architecture, pool_of_images(work, 64)).result()
    return folder


def _is_current(folder: Path) -> bool:
    """Whether there is a bundle that this version takes: preprocessing may have changed since it was made."""
    from pipeline.base.errors import InputError
    from pipeline.model.bundle import read_bundle

    try:
        read_bundle(str(folder))
    except InputError:
        return False
    return True


def _write_bundle(folder: Path, architecture: str, images: Path) -> None:
    import torch

    from pipeline.images.load import Preprocessing, load_image
    from pipeline.model.architectures import build
    from pipeline.model.bundle import CARD, GRAPH, WEIGHTS, BundleInfo, write_bundle
    from pipeline.model.export import to_onnx, to_safetensors

    torch.manual_seed(0)
    model = build(architecture, 1)
    sample = [load_image((images / file_name(n)).read_bytes(), INPUT_SIZE).pixels for n in range(64)]
    pixels = torch.from_numpy(np.stack(sample))  # uint8 (64, S, S, 3)
    # Fresh BatchNorm statistics let the signal die out over the layers; those of real images keep it alive, and a head
    # spread over 0..1 makes results comparable image by image.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # plain average
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        model.train()(pixels)
        logits = model.eval()(pixels)
        factor = 1.5 / logits.std()
        head.bias.copy_((head.bias - logits.mean()) * factor)
        head.weight *= factor
    info = BundleInfo(
        name=architecture,
        version="benchmark-random-weights",
        architecture=architecture,
        task="binary",
        classes=("negative", "positive"),
        positive_classes=("positive",),
        input_size=INPUT_SIZE,
        preprocessing_digest=Preprocessing(INPUT_SIZE).digest(),
        weights_sha256="",
        graph_sha256="",
        synthetic=True,
    )
    card = f"# {architecture}\n\nRandom weights, for measuring speed only. Not a medical device.\n"
    write_bundle(
        str(folder),
        info,
        {WEIGHTS: to_safetensors(model), GRAPH: to_onnx(model, INPUT_SIZE), CARD: card.encode()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v3_small", "resnet18"])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    options = parser.parse_args()
    folder = folder_of(options.work, options.images)
    sizes = [path.stat().st_size for path in folder.iterdir()]
    print(f"{len(sizes)} JPEGs in {folder}, {np.mean(sizes) / 1e3:.0f} kB on average")
    for architecture in options.models:
        print(f"bundle {bundle_of(options.work, architecture)}")


if __name__ == "__main__":
    main()
