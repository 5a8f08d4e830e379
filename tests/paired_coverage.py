"""How often paired limits hold a true difference, and how often models that are alike are called different.

By simulation: `python -m tests.paired_coverage [--reps 200]`. As in `tests.interval_coverage`, scores lie about the
mean of their class, `alike` of their variance is shared within a subject; `shared` of it is shared by the two models.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from pipeline.evaluation.comparison import delong
from pipeline.evaluation.comparison.paired import Side, paired_differences
from pipeline.evaluation.definitions import Floats, binary_metrics
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.limits import Answers

METRICS = ("sensitivity", "specificity", "balanced_accuracy", "accuracy", "roc_auc")
LEVEL = 0.05


@dataclass(frozen=True)
class Setting:
    subjects: int  # of each class
    images: int  # of a subject
    alike: float
    shares: tuple[float, float]  # of right answers, of each model
    shared: float

    @property
    def truths(self) -> dict[str, float]:
        areas = [float(norm.cdf(np.sqrt(2) * norm.ppf(share))) for share in self.shares]
        return {n: areas[0] - areas[1] if n == "roc_auc" else self.shares[0] - self.shares[1] for n in METRICS}


@dataclass(frozen=True)
class Rates:
    coverage: float
    real: float  # share of test sets on which the models are called different


def drawn(setting: Setting, rng: np.random.Generator) -> list[Side]:
    """Two models on one test set."""
    units = 2 * setting.subjects
    codes = np.repeat(np.arange(units), setting.images)
    truth, subjects = codes % 2, [f"s{code}" for code in codes]

    def noise() -> Floats:
        common, own = rng.normal(size=units)[codes], rng.normal(size=len(codes))
        return np.asarray(np.sqrt(setting.alike) * common + np.sqrt(1 - setting.alike) * own)

    both = noise()
    sides = []
    for share in setting.shares:
        mixed = np.sqrt(setting.shared) * both + np.sqrt(1 - setting.shared) * noise()
        logits = norm.ppf(share) * (2 * truth - 1) + mixed
        scores = norm.cdf(logits)
        answers = Answers(truth, (logits >= 0).astype(np.int64), codes, "subject", subjects, scores, 0.5)
        sides.append(Side(answers, binary_metrics(truth, scores, 0.5)))
    return sides


def rates(setting: Setting, reps: int, metrics: Sequence[str] = METRICS) -> dict[str, Rates]:
    """By metric, over `reps` test sets."""
    rng = np.random.default_rng(20261127)
    held, real = dict.fromkeys(metrics, 0), dict.fromkeys(metrics, 0)
    for _ in range(reps):
        one, other = drawn(setting, rng)
        for name, found in paired_differences(metrics, one, other, Resampling(400)).items():
            held[name] += bool(found.low <= setting.truths[name] <= found.high)
            real[name] += bool(found.p <= LEVEL)
    return {name: Rates(held[name] / reps, real[name] / reps) for name in metrics}


def delong_limits(setting: Setting, reps: int) -> float:
    """How often DeLong's limits, which are not used, hold the true difference of the ROC-AUCs."""
    rng, held = np.random.default_rng(20261127), 0
    for _ in range(reps):
        one, other = drawn(setting, rng)
        assert one.answers.scores is not None and other.answers.scores is not None
        value = one.points["roc_auc"] - other.points["roc_auc"]
        error = delong.standard_error(one.answers.truth == 1, one.answers.scores, other.answers.scores)
        held += bool(abs(value - setting.truths["roc_auc"]) <= norm.ppf(1 - LEVEL / 2) * error)
    return held / reps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reps", type=int, default=200)
    reps = parser.parse_args().reps
    print("| subjects a class | images | shares | shared | " + " | ".join(METRICS) + " | DeLong's limits |")
    for subjects in (3, 5, 10, 25, 60):
        for images in (1, 8):
            for shares in ((0.9, 0.9), (0.95, 0.8)):
                for shared in (0.2, 0.8):
                    setting = Setting(subjects, images, 0.5, shares, shared)
                    found = rates(setting, reps)
                    cells = [f"{100 * of.coverage:.0f} / {100 * of.real:.0f}" for of in found.values()]
                    limits = f"{100 * delong_limits(setting, reps):.0f}" if images == 1 else ""
                    row = [subjects, images, shares, shared, *cells, limits]
                    print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
