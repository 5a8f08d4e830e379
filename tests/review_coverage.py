"""Whether the review band keeps its promise, by simulation: `python -m tests.review_coverage [--reps 400]`.

Images of a class have a score about the class's mean, normal; `alike` of its variance is shared within a subject. A
band is found on some subjects, and its error is that of very many new ones, known in closed form. Subjects have equal
or log-normal numbers of images (sigma 0.8), or the fewer of them the nearer to the other class their scores lie.

Printed, in per cent: the mean error over calibrations in the worst setting / in all, which the promise is about, and
the error that a tenth of the calibrations exceed, in the mean of settings. Beside ours: each image as a unit of its
own, images pooled by subject without the one subject more, and one image drawn of each subject.

With `--scores BUNDLE/report/out_of_fold.parquet --manifest MANIFEST` on real cells: a band is found on some of the
subjects, drawn at random, and its errors are those of the others.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import norm

from pipeline.evaluation.abstention import by_subject, fewest_units, review_rule
from pipeline.evaluation.definitions import Floats, Ints
from pipeline.evaluation.intervals import subject_codes
from pipeline.sources.manifest import read_manifest

SUBJECTS = (10, 20, 50, 200)  # of each class
ERRORS = (0.02, 0.05, 0.1)
IMAGES = (5, 30)  # of a subject, in the median
ALIKE = (0.0, 0.3, 0.6, 0.9)
SIZES = ("equal", "uneven", "by score")
_APART = 2.0  # means of the classes, in standard deviations
_SPREAD = 0.8


@dataclass(frozen=True)
class Setting:
    subjects: int
    images: int
    alike: float
    sizes: str


@dataclass(frozen=True)
class Drawn:
    """Images of both classes, and whose they are."""

    labels: Ints  # (N,)
    values: Floats  # (N,) in 0..1
    codes: Ints  # (N,)


def settings(subjects: int) -> Iterator[Setting]:
    for images, alike, sizes in product(IMAGES, ALIKE, SIZES):
        yield Setting(subjects, images, alike, sizes)


def drawn(setting: Setting, rng: np.random.Generator) -> Drawn:
    """One set to calibrate on: subjects of one class each, half of them of either."""
    units = 2 * setting.subjects
    sick = np.arange(units) % 2
    common = rng.normal(size=units)
    away = np.where(sick, common, -common)  # from the other class
    spread = {"equal": np.zeros(units), "uneven": rng.normal(size=units), "by score": away}[setting.sizes]
    sizes = np.maximum(1, (setting.images * np.exp(_SPREAD * spread)).round()).astype(np.int64)
    codes = np.repeat(np.arange(units), sizes)
    noise = np.sqrt(setting.alike) * common[codes] + np.sqrt(1 - setting.alike) * rng.normal(size=len(codes))
    labels = sick[codes].astype(np.int64)
    return Drawn(labels, norm.cdf(noise + _APART * (labels - 0.5)), codes)


def missed(low: float) -> float:
    """Of the positive images of new subjects, the share below a cut; subjects count alike."""
    return float(norm.cdf(norm.ppf(low) - _APART / 2))


def ours(data: Drawn, error: float, rng: np.random.Generator) -> float:
    names = [str(code) for code in data.codes]
    return review_rule(data.labels, data.values, names, error).low


def of_images(data: Drawn, error: float, rng: np.random.Generator) -> float:
    """Split conformal prediction with each image as a unit."""
    scores = np.sort(data.values[data.labels == 1])
    rank = int(error * (len(scores) + 1))
    return 0.0 if rank < 1 else float(scores[rank - 1])


def pooled(data: Drawn, error: float, rng: np.random.Generator) -> float:
    """The quantile of the mean of the subjects' distributions, as if these were all there are."""
    is_sick = data.labels == 1
    scores, weights = data.values[is_sick], by_subject(data.codes[is_sick])
    order = np.argsort(scores)
    below = np.cumsum(weights[order]) - weights[order]
    return float(scores[order][np.flatnonzero(below <= error * weights.sum() + 1e-9)[-1]])


def one_of_each(data: Drawn, error: float, rng: np.random.Generator) -> float:
    """Split conformal prediction on one image drawn of each subject."""
    is_sick = data.labels == 1
    shuffled = rng.permutation(np.flatnonzero(is_sick))
    _, first = np.unique(data.codes[shuffled], return_index=True)
    kept = Drawn(np.ones(len(first), np.int64), data.values[shuffled[first]], np.arange(len(first)))
    return of_images(kept, error, rng)


METHODS: dict[str, Callable[[Drawn, float, np.random.Generator], float]] = {
    "**ours**": ours,
    "one image of each subject": one_of_each,
    "pooled, none added": pooled,
    "each image a unit": of_images,
}


def errors(setting: Setting, error: float, reps: int, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """By method the true error of each of `reps` calibrations."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(reps):
        data = drawn(setting, rng)
        for name, method in METHODS.items():
            found[name].append(missed(method(data, error, rng)))
    return {name: np.array(values) for name, values in found.items()}


def table(reps: int) -> Iterator[str]:
    """Markdown: one row a method and promised error, one column a number of subjects."""
    yield "| promised | method | " + " | ".join(map(str, SUBJECTS)) + " |"
    yield "|---" * (2 + len(SUBJECTS)) + "|"
    for error in ERRORS:
        of = {count: [errors(one, error, reps, seed) for seed, one in enumerate(settings(count))] for count in SUBJECTS}
        for name in METHODS:
            cells = []
            for count, found in of.items():
                means = [one[name].mean() for one in found]
                tenth = np.mean([np.quantile(one[name], 0.9) for one in found])
                is_none = name in ("**ours**", "one image of each subject") and count < fewest_units(error)
                said = f"{100 * max(means):.1f} / {100 * np.mean(means):.1f}, {100 * tenth:.1f}"
                cells.append("none promised" if is_none else said)
            yield f"| {100 * error:g} % | {name} | " + " | ".join(cells) + " |"


def real(scores: Path, manifest_uri: str, reps: int) -> Iterator[str]:
    """Markdown likewise: both errors of the subjects left out, and the share of their images left to a person."""
    found, table = pq.read_table(scores), read_manifest(manifest_uri).table
    at = pc.index_in(found["image_id"].combine_chunks(), table["image_id"].combine_chunks())
    codes, _ = subject_codes(table["subject_id"].take(at).to_pylist(), found.num_rows)
    labels, values = table["label"].take(at).to_numpy().astype(np.int64), found["prob_positive"].to_numpy()
    yield "| subjects | promised | method | missed | alarmed | left to a person |"
    yield "|---" * 6 + "|"
    for count, error in ((20, 0.05), (20, 0.1), (40, 0.05), (40, 0.1)):
        told: dict[str, list[tuple[float, float, float]]] = {name: [] for name in METHODS}
        for seed in range(reps):
            rng = np.random.default_rng(seed)
            is_in = np.isin(codes, rng.permutation(codes.max() + 1)[:count])
            of, rest = (Drawn(labels[rows], values[rows], codes[rows]) for rows in (is_in, ~is_in))
            for name, method in METHODS.items():
                low = method(of, error, rng)
                high = 1 - method(Drawn(1 - of.labels, 1 - of.values, of.codes), error, rng)
                told[name].append(_passed(rest, low, high))
        for name, rows in told.items():
            missed, alarmed, left = (f"{100 * value:.1f}" for value in np.mean(rows, axis=0))
            yield f"| {count} | {100 * error:g} % | {name} | {missed} | {alarmed} | {left} |"


def _passed(data: Drawn, low: float, high: float) -> tuple[float, float, float]:
    """Missed, alarmed, left to a person."""
    wrong = np.where(data.labels == 1, data.values < low, data.values > high)
    shares = [
        np.average(wrong[side], weights=by_subject(data.codes[side])) for side in (data.labels == 1, data.labels == 0)
    ]
    return float(shares[0]), float(shares[1]), float(((data.values >= low) & (data.values <= high)).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=400, help="calibrations of each setting")
    parser.add_argument("--scores", type=Path, help="out-of-fold predictions of a bundle, to try real cells")
    parser.add_argument("--manifest", help="their manifest")
    options = parser.parse_args()
    lines = real(options.scores, options.manifest, options.reps) if options.scores else table(options.reps)
    for line in lines:
        print(line, flush=True)
