"""How often intervals hold the truth, by simulation: `python -m tests.interval_coverage [--reps 40]`.

Cells of a class have a score about the class's mean; `alike` of its variance is shared within a subject (0: images are
independent, 1: a subject's images all get one answer). Threshold 0 gives both classes the same share of right answers,
and both are as common, so sensitivity, specificity, accuracy, balanced accuracy, precision and F1 are that share, and
the ROC-AUC is Phi(sqrt 2 times its quantile). Average precision and Brier score are integrals over the two normal
distributions. Subjects have one class each and equal or log-normal numbers of images (sigma 0.8). A second table is of
subjects that have images of both classes, as many of each, whose scores share what the subject has in common.

Printed, in per cent: the coverage at the worst likeness and kind of sizes (pooled over images and shares), in the mean
of all settings, and the mean width. The methods beside ours are of sensitivity: what they do there they do elsewhere.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist

import numpy as np
from scipy.stats import norm, t

from pipeline.evaluation.adverse import Limits, limits
from pipeline.evaluation.definitions import Floats
from pipeline.evaluation.intervals import Resampling, exact_interval
from pipeline.evaluation.limits import Answers, binary_parts

METRICS = (
    "sensitivity", "specificity", "balanced_accuracy", "accuracy", "precision", "f1", "roc_auc", "pr_auc", "brier"
)  # fmt: skip
SUBJECTS = (2, 3, 5, 10, 20, 50)  # of each class; in all, where each has both
IMAGES = (5, 20)  # of a subject, in the mean
ALIKE = (0.0, 0.1, 0.3, 0.6, 1.0)
SHARES = (0.8, 0.95)  # of right answers
_SPREAD = 0.8  # of the logarithm of the number of images, where sizes are not equal


@dataclass(frozen=True)
class Setting:
    subjects: int
    images: int
    alike: float
    share: float
    is_uneven: bool = False
    is_mixed: bool = False  # each subject has images of both classes, `images` of each

    @property
    def truths(self) -> dict[str, float]:
        area = float(norm.cdf(np.sqrt(2) * norm.ppf(self.share)))
        average, squared = _integrals(self.share)
        return dict.fromkeys(METRICS, self.share) | {"roc_auc": area, "pr_auc": average, "brier": squared}


@functools.cache
def _integrals(share: float) -> tuple[float, float]:
    """Average precision of two equally common normal classes, and the Brier score of Phi(score)."""
    distance = norm.ppf(share)
    scores = np.linspace(-10, 10, 40_001)
    density = norm.pdf(scores - distance) * (scores[1] - scores[0])  # of the positives; the negatives mirror it
    found, alarmed = norm.sf(scores - distance), norm.sf(scores + distance)
    return float((density * found / (found + alarmed)).sum()), float((density * norm.sf(scores) ** 2).sum())


def settings(counts: Sequence[int], is_mixed: bool = False) -> Iterator[Setting]:
    """All of so many subjects; 50 a class with few images each, for time's sake."""
    for subjects, images, alike, share, is_uneven in product(counts, IMAGES, ALIKE, SHARES, (False, True)):
        if subjects * images <= 20 * IMAGES[-1]:
            yield Setting(subjects, images, alike, share, is_uneven, is_mixed)


def drawn(setting: Setting, rng: np.random.Generator) -> Answers:
    """One test set."""
    units = setting.subjects if setting.is_mixed else 2 * setting.subjects
    sizes = np.full(units, setting.images)
    if setting.is_uneven:
        sizes = np.maximum(1, rng.lognormal(np.log(setting.images) - _SPREAD**2 / 2, _SPREAD, units).round())
    codes = np.repeat(np.arange(units), sizes.astype(np.int64) * (2 if setting.is_mixed else 1))
    truth = np.arange(len(codes)) % 2 if setting.is_mixed else codes % 2
    common, own = rng.normal(size=units)[codes], rng.normal(size=len(codes))
    distance = NormalDist().inv_cdf(setting.share)
    noise = np.sqrt(setting.alike) * common + np.sqrt(1 - setting.alike) * own
    logits = distance * (2 * truth - 1) + noise
    return Answers(truth, (logits >= 0).astype(np.int64), codes, "subject", None, norm.cdf(logits), 0.5)


def ours(answers: Answers, resampling: Resampling) -> dict[str, Limits]:
    parts, means = binary_parts(answers)
    wanted = {*METRICS, *means["balanced_accuracy"]}
    kept = {name: part for name, part in parts.items() if name in wanted}
    found = limits(kept, answers.units, resampling, means)
    return {name: found[name] for name in METRICS}


def others(answers: Answers, resampling: Resampling) -> dict[str, Limits]:
    """Limits of sensitivity by other methods."""
    is_sick = answers.truth == 1
    subjects, codes = np.unique(answers.codes[is_sick], return_inverse=True)
    sizes = np.bincount(codes).astype(np.float64)
    hits = np.bincount(codes, answers.called[is_sick])
    count, share = len(subjects), hits.sum() / sizes.sum()
    kish = sizes.sum() ** 2 / (sizes**2).sum()
    variance = ((hits - share * sizes) ** 2).sum() * count / (count - 1) / sizes.sum() ** 2
    designed = share * (1 - share) / variance if variance > 0 else kish
    margin = float(t.ppf(0.975, count - 1)) * np.sqrt(variance)
    exact = exact_interval(min(share * kish, kish), kish)
    return {
        "percentile bootstrap": _percentile(hits, sizes, resampling),
        "BCa bootstrap": _bca(hits, sizes, resampling),
        "t over subjects": (share - margin, share + margin) if variance > 0 else _wilson(share, kish),
        "Wilson, design effect": _wilson(share, float(np.clip(designed, kish, sizes.sum()))),
        "Wilson, effective subjects": _wilson(share, kish),
        "Clopper-Pearson, effective subjects": (exact.low, exact.high),
    }


def _wilson(share: float, trials: float) -> Limits:
    z = 1.959964
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    margin = z / (1 + z * z / trials) * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return max(0.0, centre - margin), min(1.0, centre + margin)


def _resampled(hits: Floats, sizes: Floats, resampling: Resampling) -> Floats:
    count = len(sizes)
    rng = np.random.default_rng(resampling.seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resampling.replicates)
    return np.asarray((weights @ hits) / (weights @ sizes), np.float64)


def _percentile(hits: Floats, sizes: Floats, resampling: Resampling) -> Limits:
    low, high = np.quantile(_resampled(hits, sizes, resampling), [0.025, 0.975])
    return float(low), float(high)


def _bca(hits: Floats, sizes: Floats, resampling: Resampling) -> Limits:
    """Bias-corrected and accelerated (Efron 1987, doi:10.1080/01621459.1987.10478410)."""
    values, share = _resampled(hits, sizes, resampling), hits.sum() / sizes.sum()
    without = (hits.sum() - hits) / (sizes.sum() - sizes)  # jackknife
    gaps = without.mean() - without
    if not gaps.any():
        return _percentile(hits, sizes, resampling)
    acceleration = (gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5)
    below = ((values < share).mean() + (values <= share).mean()) / 2
    bias = norm.ppf(np.clip(below, 1e-3, 1 - 1e-3))
    ends = bias + norm.ppf([0.025, 0.975])
    low, high = np.quantile(values, norm.cdf(bias + ends / (1 - acceleration * ends)))
    return float(low), float(high)


def coverage(setting: Setting, reps: int, resampling: Resampling, seed: int = 0) -> dict[tuple[str, str], Floats]:
    """By (method, metric): of `reps` test sets that have an interval the share that holds the truth, its mean width."""
    rng, found = np.random.default_rng(seed), dict[tuple[str, str], list[tuple[float, float]]]()
    truths = setting.truths
    for _ in range(reps):
        answers = drawn(setting, rng)
        told = {("ours", name): limit for name, limit in ours(answers, resampling).items()}
        told |= {(method, "sensitivity"): limit for method, limit in others(answers, resampling).items()}
        for key, (low, high) in told.items():
            if np.isnan(low):  # no interval is claimed, as of precision where one subject's images are called
                continue
            holds = low - 1e-12 <= truths[key[1]] <= high + 1e-12
            found.setdefault(key, []).append((holds, min(1.0, high) - max(0.0, low)))
    return {key: np.mean(pairs, axis=0) for key, pairs in found.items()}


def table(reps: int, resampling: Resampling, counts: Sequence[int], is_mixed: bool) -> Iterator[str]:
    """Markdown: one row a method and metric, one column a number of subjects."""
    of: dict[tuple[str, str], dict[int, dict[tuple[float, bool], list[Floats]]]] = {}
    for setting in settings(counts, is_mixed):
        for key, found in coverage(setting, reps, resampling).items():
            kinds = of.setdefault(key, {}).setdefault(setting.subjects, {})
            kinds.setdefault((setting.alike, setting.is_uneven), []).append(found)
    yield "| method | metric | " + " | ".join(map(str, counts)) + " |"
    yield "|---" * (2 + len(counts)) + "|"
    for (method, metric), by_count in of.items():
        pooled = [np.array([np.mean(found, axis=0) for found in by_count[count].values()]) for count in counts]
        said = [f"{100 * one[:, 0].min():.0f} / {100 * one[:, 0].mean():.0f}, {one[:, 1].mean():.2f}" for one in pooled]
        yield f"| {method} | {metric} | " + " | ".join(said) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=40, help="test sets of each setting")
    parser.add_argument("--replicates", type=int, default=300, help="samples of each interval")
    parser.add_argument("--subjects", type=int, nargs="+", default=SUBJECTS, help="of each class")
    options = parser.parse_args()
    for has_both in (False, True):
        print("\nSubjects of both classes\n" if has_both else "Subjects of one class each\n")
        for line in table(options.reps, Resampling(options.replicates), options.subjects, has_both):
            print(line, flush=True)
