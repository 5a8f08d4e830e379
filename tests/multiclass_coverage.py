"""How often intervals of figures over four classes hold the truth: `python -m tests.multiclass_coverage [--reps 40]`.

An image has a normal score for each class, that of its own higher by a distance; `alike` of the variance is shared
within a subject. 5 images a subject and class, subjects of one class each or of all. The truth is that of 240,000
independent images. Printed as by `tests/interval_coverage.py`: coverage in per cent at the worst likeness, in the mean,
mean width.
"""

import argparse
from itertools import product

import numpy as np

from pipeline.evaluation.adverse import limits
from pipeline.evaluation.definitions import Floats, Ints, weighted_multiclass
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.limits import Answers, multiclass_parts

METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "roc_auc_macro", "brier")
CLASSES, IMAGES = 4, 5
SUBJECTS = (2, 5, 20)  # of each class; in all, where each has all
ALIKE = (0.0, 0.3, 0.9)
DISTANCES = (1.5, 3.0)


def drawn(
    subjects: int, images: int, alike: float, distance: float, rng: np.random.Generator, *, is_mixed: bool
) -> tuple[Ints, Ints, Floats]:
    """Classes (N,), subjects (N,) and probabilities (N, C) of one test set."""
    units = subjects if is_mixed else subjects * CLASSES
    codes = np.repeat(np.arange(units), images * (CLASSES if is_mixed else 1))
    truth = np.tile(np.arange(CLASSES), units * images) if is_mixed else codes % CLASSES
    common, own = rng.normal(size=(units, CLASSES))[codes], rng.normal(size=(len(codes), CLASSES))
    scores = np.sqrt(alike) * common + np.sqrt(1 - alike) * own
    scores[np.arange(len(truth)), truth] += distance
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return truth, codes, powers / powers.sum(axis=1, keepdims=True)


def truths(distance: float) -> dict[str, float]:
    truth, _, said = drawn(1, 60_000, 0.0, distance, np.random.default_rng(99), is_mixed=True)
    points = weighted_multiclass(truth, said)(np.ones((1, len(truth))))
    return {name: float(points[name][0]) for name in METRICS}


def covered(subjects: int, alike: float, distance: float, reps: int, *, is_mixed: bool) -> dict[str, Floats]:
    """By metric (reps, 2): whether the interval holds the truth, and its width."""
    rng, known = np.random.default_rng(1), truths(distance)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in METRICS}
    for _ in range(reps):
        truth, codes, said = drawn(subjects, IMAGES, alike, distance, rng, is_mixed=is_mixed)
        answers = Answers(truth, said.argmax(axis=1), codes, "subject", None)
        parts, means = multiclass_parts(answers, said)
        told = limits(parts, answers.units, Resampling(200), means)
        for name in METRICS:
            low, high = told[name]
            found[name].append((low - 1e-12 <= known[name] <= high + 1e-12, high - low))
    return {name: np.array(pairs, np.float64) for name, pairs in found.items()}


def main(reps: int) -> None:
    for is_mixed in (False, True):
        print(
            f"\nSubjects of {'all classes' if is_mixed else 'one class'}\n\n| metric | 2 | 5 | 20 |\n|---|---|---|---|"
        )
        of = {
            (subjects, alike): [covered(subjects, alike, distance, reps, is_mixed=is_mixed) for distance in DISTANCES]
            for subjects, alike in product(SUBJECTS, ALIKE)
        }
        for name in METRICS:
            cells = []
            for subjects in SUBJECTS:
                by = np.array([np.concatenate([c[name] for c in of[subjects, a]]).mean(axis=0) for a in ALIKE])
                cells.append(f"{100 * by[:, 0].min():.0f} / {100 * by[:, 0].mean():.0f}, {by[:, 1].mean():.2f}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=40, help="test sets of each setting")
    main(parser.parse_args().reps)
