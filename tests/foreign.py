"""Images that no model of blood cells should answer, and how well a bundle tells them; docs/evaluate.md has figures.

    python -m tests.foreign MANIFEST --model BUNDLE [--photographs FOLDER] [--cells MANIFEST ...] [--count 120]

Drawn here are blank fields, text and chests as on X-rays; made of the manifest's own test images are other stains and
red-cell fields. Photographs are read from a folder, such as `data` of an installed scikit-image; cells of other
laboratories are test images of their manifests. For each kind: images, the area under the ROC curve of `ood_score`
against the manifest's test images, and the share that is flagged.
"""

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, UnidentifiedImageError
from sklearn.metrics import roc_auc_score

from pipeline.base.errors import ImageRejected
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.model.registry import resolve
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import read_manifest
from tests.images import encoded

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
SIDE = 240
_BATCH = 16
_WORDS = ("blood", "film", "of", "the", "patient", "shows", "report", "sample", "2026", "count", "normal", "page")


def blank(rng: np.random.Generator, number: int) -> Image.Image:
    """Black, white, one colour, a pale field with a little noise, noise alone, a gradient; in turn."""
    shape = (SIDE, SIDE, 3)
    ramp = np.linspace(0, 1, SIDE)[:, None, None]
    made: Callable[[], NDArray[np.floating]] = [
        lambda: np.zeros(shape),
        lambda: np.full(shape, 255.0),
        lambda: np.ones(shape) * rng.integers(0, 256, 3),
        lambda: rng.integers(180, 256, 3) + rng.normal(0, rng.uniform(1, 12), shape),
        lambda: rng.uniform(0, 256, shape),
        lambda: (ramp * rng.integers(0, 256, 3) + (1 - ramp) * rng.integers(0, 256, 3)) * np.ones(shape),
    ][number % 6]
    return Image.fromarray(made().clip(0, 255).astype(np.uint8))


def text(rng: np.random.Generator, _number: int) -> Image.Image:
    """A page of words on a light ground."""
    image = Image.new("RGB", (360, 360), tuple(rng.integers(200, 256, 3).tolist()))
    draw, size = ImageDraw.Draw(image), int(rng.integers(10, 40))
    font, ink = ImageFont.load_default(size), tuple(rng.integers(0, 90, 3).tolist())
    for y in range(4, 360, int(size * 1.3)):
        draw.text((6, y), " ".join(rng.choice(_WORDS, 8)), fill=ink, font=font)
    return image


def chest(rng: np.random.Generator, _number: int) -> Image.Image:
    """What an X-ray of a chest looks like from afar: two dark lungs, ribs, a spine; gray, soft, noisy."""
    image = Image.new("L", (256, 256), int(rng.integers(0, 40)))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 10, 236, 290), fill=int(rng.integers(120, 200)))
    for left in (45, 140):
        draw.ellipse((left + int(rng.integers(-8, 8)), 50, left + 75, 215), fill=int(rng.integers(20, 70)))
    for rib in range(9):
        draw.arc((30, 40 + rib * 22, 226, 120 + rib * 22), 190, 350, fill=int(rng.integers(170, 230)), width=5)
    draw.rectangle((120, 0, 138, 256), fill=220)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(2, 6))), float) + rng.normal(0, 8, (256, 256))
    return Image.fromarray(soft.clip(0, 255).astype(np.uint8)).convert("RGB")


DRAWN: dict[str, Callable[[np.random.Generator, int], Image.Image]] = {
    "blank fields": blank, "text": text, "X-rays, drawn": chest
}  # fmt: skip


def other_stain(image: Image.Image, number: int) -> Image.Image:
    """The same cell with its hues turned by 90, 180 or 270 degrees, inverted, or in gray; in turn."""
    if number % 5 == 3:
        return Image.fromarray(255 - np.asarray(image))
    if number % 5 == 4:
        return image.convert("L").convert("RGB")
    hue, saturation, value = image.convert("HSV").split()
    by = 64 * (number % 5 + 1)
    return Image.merge("HSV", (hue.point([(level + by) % 256 for level in range(256)]), saturation, value)).convert(
        "RGB"
    )


def red_cells(image: Image.Image) -> list[Image.Image]:
    """The third of a field where least is purple: enlarged, and mirrored side by side to the field's own scale.

    None where every third shows some of a nucleus.
    """
    pixels = np.asarray(image).astype(int)
    red, green, blue = (pixels[..., k] for k in range(3))
    nucleus = (green < red - 25) & (green < blue - 35) & (green < 130)
    height, width = (int(side * 0.34) for side in nucleus.shape)
    corners = [
        (int(y), int(x))
        for y in np.linspace(0, nucleus.shape[0] - height, 5)
        for x in np.linspace(0, nucleus.shape[1] - width, 5)
    ]
    share, (y, x) = min((float(nucleus[y : y + height, x : x + width].mean()), (y, x)) for y, x in corners)
    if share > 0.002:
        return []
    part = np.asarray(image)[y : y + height, x : x + width]
    row = np.concatenate([part, part[:, ::-1], part], axis=1)
    return [Image.fromarray(part), Image.fromarray(np.concatenate([row, row[::-1], row], axis=0))]


def photographs(folder: Path, count: int, rng: np.random.Generator) -> Iterator[Image.Image]:
    """Parts of the pictures in a folder, each in turn."""
    pictures = []
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg")):
        try:
            with Image.open(path) as image:
                if min(image.size) >= 100:
                    pictures.append(image.convert("RGB"))
        except (UnidentifiedImageError, OSError):
            continue
    for number in range(count):
        image = pictures[number % len(pictures)]
        width, height = (int(side * rng.uniform(0.35, 1)) for side in image.size)
        x, y = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
        yield image.crop((x, y, x + width, y + height))


def of_test_split(manifest_uri: str, count: int, rng: np.random.Generator) -> list[bytes]:
    """Encoded images of the test split."""
    rows = read_manifest(manifest_uri).split("test")
    chosen = [rows[index] for index in rng.permutation(len(rows))[:count]]
    return [fetched.data for fetched in fetch_rows(chosen) if fetched.data is not None]


def decoded(predictor: Predictor, images: Sequence[bytes]) -> list[Pixels]:
    found = []
    for data in images:
        try:
            found.append(predictor.load(data).pixels)
        except ImageRejected:
            continue
    return found


def said(predictor: Predictor, pixels: Sequence[Pixels]) -> list[Prediction]:
    parts = (predictor.predict_each(pixels[at : at + _BATCH]) for at in range(0, len(pixels), _BATCH))
    return [item for part in parts for item in part if isinstance(item, Prediction)]


def foreign_images(own: Sequence[bytes], count: int, rng: np.random.Generator) -> dict[str, list[bytes]]:
    """Encoded images of each kind that is drawn, or made of a model's own encoded images."""
    found = {name: [encoded(draw(rng, k), "PNG") for k in range(count)] for name, draw in DRAWN.items()}
    fields = [image for data in own if (image := _opened(data)) is not None]
    found["other stains"] = [encoded(other_stain(image, k), "PNG") for k, image in enumerate(fields[:count])]
    red = [encoded(part, "PNG") for image in fields for part in red_cells(image)]
    return found | {"red-cell fields": red[:count]}


def _opened(data: bytes) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except OSError:  # cut short
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--model", required=True)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--cells", nargs="*", default=[])
    parser.add_argument("--count", type=int, default=120)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    predictor = Predictor(resolve(options.model), threads=2)
    own = of_test_split(options.manifest, 4 * options.count, rng)
    kinds = foreign_images(own, options.count, rng)
    if options.photographs:
        kinds["photographs"] = [encoded(image, "PNG") for image in photographs(options.photographs, options.count, rng)]
    kinds |= {
        f"cells of {uri.rstrip('/').rsplit('/', 1)[-1]}": of_test_split(uri, options.count, rng)
        for uri in options.cells
    }
    at_home = said(predictor, decoded(predictor, own))
    scores = [item.ood_score for item in at_home]
    print(f"{predictor.info.ood}\nown test images: {len(at_home)}, flagged {share(at_home)}\n")
    for name, images in kinds.items():
        found = said(predictor, decoded(predictor, images))
        truth = [0] * len(scores) + [1] * len(found)
        area = roc_auc_score(truth, scores + [item.ood_score for item in found])
        print(f"{name:<24}{len(found):>6}  ROC-AUC {area:.3f}  flagged {share(found)}", flush=True)


def share(found: Sequence[Prediction]) -> str:
    return f"{100 * np.mean([bool(item.is_ood) for item in found]):.1f} %"


if __name__ == "__main__":
    main()
