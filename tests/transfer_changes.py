"""What a transfer check says of a model's own images, of changed ones and of other laboratories'.

Its table stands in docs/another-laboratory.md.

    python -m tests.transfer_changes MANIFEST --model BUNDLE [--cells MANIFEST ...] [--count 150]

Own test images are blurred, compressed, made darker, lighter and noisier, their hues turned, cut larger. For each:
verdict, what lies beyond its limit, the share out of distribution, and the balanced accuracy at the bundle's threshold
(of many classes that of the classes named), which the check does not see. Then how often the check is wrong about its
own: test subjects one by one, and sets of few images.
"""

import argparse
import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.metrics import balanced_accuracy_score

from pipeline.base.errors import ImageRejected
from pipeline.evaluation.drawing import Drawn
from pipeline.evaluation.predict import is_labelled
from pipeline.evaluation.transfer import Inspected, Transfer, measured, statistics_of
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.model.registry import resolve
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import ManifestRow, read_manifest
from tests.images import encoded

Change = Callable[[Image.Image], Image.Image]
_SETS = 100


def blurred(radius: float) -> Change:
    return lambda image: image.filter(ImageFilter.GaussianBlur(radius))


def compressed(quality: int) -> Change:
    return lambda image: Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality))).convert("RGB")


def lighter(factor: float) -> Change:
    return lambda image: Image.fromarray((np.asarray(image) * factor).clip(0, 255).astype(np.uint8))


def noisy(levels: float) -> Change:
    rng = np.random.default_rng(0)
    return lambda image: Image.fromarray(
        (np.asarray(image) + rng.normal(0, levels, np.asarray(image).shape)).clip(0, 255).astype(np.uint8)
    )


def turned(degrees: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        hue, saturation, value = image.convert("HSV").split()
        by = round(degrees / 360 * 256)
        moved = hue.point([(level + by) % 256 for level in range(256)])
        return Image.merge("HSV", (moved, saturation, value)).convert("RGB")

    return change


def zoomed(factor: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        width, height = (int(side / factor) for side in image.size)
        x, y = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((x, y, x + width, y + height)).resize(image.size, Image.Resampling.BICUBIC)

    return change


CHANGES: dict[str, Change] = {
    "as they are": lambda image: image,
    "blurred, 1 pixel": blurred(1),
    "blurred, 2 pixels": blurred(2),
    "blurred, 4 pixels": blurred(4),
    "JPEG of quality 50": compressed(50),
    "JPEG of quality 20": compressed(20),
    "JPEG of quality 8": compressed(8),
    "darker by 10 %": lighter(0.9),
    "darker by 20 %": lighter(0.8),
    "darker by 40 %": lighter(0.6),
    "lighter by 15 %": lighter(1.15),
    "noise of 8 levels": noisy(8),
    "stain turned by 15 degrees": turned(15),
    "stain turned by 35 degrees": turned(35),
    "stain turned by 90 degrees": turned(90),
    "cut 1.25 times larger": zoomed(1.25),
    "cut 1.5 times larger": zoomed(1.5),
    "cut twice as large": zoomed(2),
}


def pictures_of(rows: Sequence[ManifestRow]) -> list[tuple[ManifestRow, Image.Image]]:
    found = []
    for fetched in fetch_rows(rows):
        try:
            with Image.open(io.BytesIO(fetched.data or b"")) as image:
                found.append((fetched.row, image.convert("RGB")))
        except OSError:  # cut short
            continue
    return found


def inspected(predictor: Predictor, pictures: Sequence[tuple[ManifestRow, Image.Image]]) -> list[Inspected]:
    found: list[Inspected] = []
    waiting: list[tuple[ManifestRow, NDArray[np.uint8]]] = []
    for row, image in pictures:
        try:
            waiting.append((row, predictor.load(encoded(image, "BMP")).pixels))
        except ImageRejected:
            continue
    for start in range(0, len(waiting), 16):
        found += measured(predictor, waiting[start : start + 16])
    return found


def judged(predictor: Predictor, found: Sequence[Inspected], subjects: int | None) -> Transfer:
    rows = [item.row for item in found]
    drawn = Drawn(list(rows), [None] * len(rows), len(rows), {}, {})
    return Transfer(predictor.info, statistics_of(predictor.bundle), drawn, found, subjects)


def accuracy(predictor: Predictor, found: Sequence[Inspected]) -> str:
    """Balanced, of labelled images; a dash where there are none of two classes."""
    truth, said, info = list[str](), list[str](), predictor.info
    for item in found:
        if not (isinstance(item.row, ManifestRow) and isinstance(item.result, Prediction)):
            continue
        if not is_labelled(info, item.row) or (info.task == "multiclass" and item.row.class_name not in info.classes):
            continue
        is_binary = info.task == "binary"
        truth.append(info.classes[item.row.label or 0] if is_binary else str(item.row.class_name))
        said.append(info.classes[item.result.probability >= info.threshold] if is_binary else item.result.class_name)
    return f"{balanced_accuracy_score(truth, said):.3f}" if len(set(truth)) > 1 else "–"


def line(name: str, predictor: Predictor, found: Sequence[Inspected], subjects: int | None) -> str:
    result = judged(predictor, found, subjects)
    beyond = ", ".join(
        f"{shift.name} {'+' if shift.here > shift.at_home else '-'} {shift.distance / shift.limit:.1f}"
        for shift in result.shifts
        if shift.is_beyond
    )
    share = 100 * result.flagged / max(1, len(result.usable))
    return f"| {name} | {result.verdict} | {beyond} | {share:.0f} % | {accuracy(predictor, found)} |"


def wrong_about_own(predictor: Predictor, own: Sequence[Inspected]) -> None:
    """Shares of sets of own test images that are not said to look alike."""
    by_subject: dict[str, list[Inspected]] = {}
    for item in own:
        by_subject.setdefault(str(getattr(item.row, "subject_id", None)), []).append(item)
    large = [items for items in by_subject.values() if len(items) >= 20]
    if len(large) > 1:
        print(f"single subjects of 20 images and more: {wrong(predictor, large, 1)}")
    rng = np.random.default_rng(0)
    for size in (10, 20, 50, 100):
        sets = [[own[k] for k in rng.choice(len(own), min(size, len(own)), False)] for _ in range(_SETS)]
        print(f"sets of {size} images, subjects unknown: {wrong(predictor, sets, None)}")


def wrong(predictor: Predictor, sets: Sequence[Sequence[Inspected]], subjects: int | None) -> str:
    said = [judged(predictor, some, subjects).verdict.value for some in sets]
    return ", ".join(f"{said.count(name)} of {len(said)} {name}" for name in sorted(set(said)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--model", required=True)
    parser.add_argument("--cells", nargs="*", default=[])
    parser.add_argument("--count", type=int, default=150)
    options = parser.parse_args()
    predictor, rng = Predictor(resolve(options.model), threads=2), np.random.default_rng(0)
    print(statistics_of(predictor.bundle).rests_on)
    rows = read_manifest(options.manifest).split("test")
    own = pictures_of([rows[index] for index in rng.permutation(len(rows))])
    some = own[: options.count]
    subjects = len({row.subject_id for row, _ in some if row.subject_id}) or None
    print(f"{len(some)} images of {subjects} subjects; as of one subject behind the slash")
    for name, change in CHANGES.items():
        found = inspected(predictor, [(row, change(image)) for row, image in some])
        print(line(name, predictor, found, subjects), flush=True)
        print(line("  as of one", predictor, found, 1), flush=True)
    for uri in options.cells:
        others = read_manifest(uri).split("test")
        found = inspected(predictor, pictures_of([others[k] for k in rng.permutation(len(others))[: options.count]]))
        print(line(f"test images of {uri.rstrip('/').rsplit('/', 1)[-1]}", predictor, found, None), flush=True)
    wrong_about_own(predictor, inspected(predictor, own))


if __name__ == "__main__":
    main()
