"""Which calibration says most of subjects not fitted to: `python -m tests.calibration_methods PARQUET MANIFEST`.

PARQUET: a bundle's out-of-fold predictions. The temperature in their probabilities is of no account, but to 'none'.
Fitted to four fifths of the subjects (of images, where none is known), judged on the others, five times over with other
fifths. Printed: log-loss, Brier score and calibration error on the held-out images, and the gain in log-loss over
temperature scaling with its standard error over subjects.

Vector scaling (Guo et al. 2017, arXiv:1706.04599) has a factor and an offset a class; of two classes it is Platt's.
'prior' adds the logarithm of each class's frequency. Isotonic regression (Zadrozny & Elkan 2002) is fitted to each
class against the others, and normalized. Beta calibration (Kull et al. 2017, doi:10.1214/17-EJS1338SI) has a factor for
the logarithm of either probability of two classes, and an offset.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.isotonic import IsotonicRegression

from pipeline.evaluation.definitions import Floats, Ints, equal_mass_bins
from pipeline.evaluation.intervals import subject_codes
from pipeline.evaluation.temperature import fit_temperature
from pipeline.model.prediction import probabilities
from pipeline.sources.manifest import read_manifest

Mapped = Callable[[Floats], Floats]  # logits (N, C) to probabilities (N, C)
_REPEATS, _PARTS = 5, 5


def none(logits: Floats, truth: Ints) -> Mapped:
    return probabilities


def temperature(logits: Floats, truth: Ints) -> Mapped:
    value = fit_temperature(logits, truth).value
    return lambda other: probabilities(other, value)


def prior(logits: Floats, truth: Ints) -> Mapped:
    """A temperature after the logarithm of how frequent each class is, which a weighted loss leaves out."""
    counts = np.bincount(truth, minlength=logits.shape[1]) + 1.0
    shift = np.log(counts / counts.sum())
    value = fit_temperature(logits + shift, truth).value
    return lambda other: probabilities(other + shift, value)


def vector(logits: Floats, truth: Ints) -> Mapped:
    """By maximum likelihood, with a weak pull to factor 1 and offset 0 so that separable classes have an optimum."""
    classes, rows = logits.shape[1], np.arange(len(truth))
    is_binary = classes == 2

    def scaled(parameters: Floats, of: Floats) -> Floats:
        if is_binary:  # one factor, one offset
            second = parameters[0] * (of[:, 1] - of[:, 0]) + parameters[1]
            return np.stack([np.zeros_like(second), second], axis=1)
        return np.asarray(of * parameters[:classes] + parameters[classes:])

    start = np.array([1.0, 0.0]) if is_binary else np.r_[np.ones(classes), np.zeros(classes)]

    def loss(parameters: Floats) -> float:
        fit = -log_softmax(scaled(parameters, logits), axis=1)[rows, truth].sum()
        return float(fit + 0.5 * ((parameters - start) ** 2).sum())

    found = minimize(loss, start, method="L-BFGS-B").x
    return lambda other: probabilities(scaled(found, other))


def isotonic(logits: Floats, truth: Ints) -> Mapped:
    classes, least = logits.shape[1], 1 / (len(truth) + 2)
    scores = probabilities(logits)
    maps = [
        IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(scores[:, k], truth == k)
        for k in range(classes)
    ]

    def mapped(other: Floats) -> Floats:
        found = np.stack(
            [one.predict(column) for one, column in zip(maps, probabilities(other).T, strict=True)], axis=1
        )
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    return mapped


def beta(logits: Floats, truth: Ints) -> Mapped:
    """Of two classes, by maximum likelihood with a weak pull to no change; of more the temperature."""
    if logits.shape[1] != 2:
        return temperature(logits, truth)

    def mapped(parameters: Floats, of: Floats) -> Floats:  # factors of either logarithm are kept positive
        logs = log_softmax(of, axis=1)
        a, b = np.exp(parameters[:2])
        second = a * logs[:, 1] - b * logs[:, 0] + parameters[2]
        return np.stack([np.zeros_like(second), second], axis=1)

    def loss(parameters: Floats) -> float:
        fit = -log_softmax(mapped(parameters, logits), axis=1)[np.arange(len(truth)), truth].sum()
        return float(fit + 0.5 * (parameters**2).sum())

    found = minimize(loss, np.zeros(3), method="L-BFGS-B").x
    return lambda other: probabilities(mapped(found, other))


METHODS = {
    "none": none,
    "temperature": temperature,
    "prior": prior,
    "vector": vector,
    "isotonic": isotonic,
    "beta": beta,
}


def held_out(logits: Floats, truth: Ints, codes: Ints, seed: int) -> dict[str, Floats]:
    """By method probabilities (N, C), each of a fit that did not see the subject."""
    rng = np.random.default_rng(seed)
    part = rng.permutation(np.arange(codes.max() + 1) % _PARTS)[codes]
    found = {name: np.zeros_like(logits) for name in METHODS}
    for number in range(_PARTS):
        fit, rest = part != number, part == number
        for name, method in METHODS.items():
            found[name][rest] = method(logits[fit], truth[fit])(logits[rest])
    return found


def error_of(found: Floats, truth: Ints) -> float:
    top, right = found.max(axis=1), found.argmax(axis=1) == truth
    bins = equal_mass_bins(top)
    return float(np.abs(np.bincount(bins, top - right)).sum() / len(truth))


def table(logits: Floats, truth: Ints, codes: Ints) -> list[str]:
    rows, ones = np.arange(len(truth)), np.eye(logits.shape[1])[truth]
    losses: dict[str, list[Floats]] = {name: [] for name in METHODS}
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for seed in range(_REPEATS):
        for name, found in held_out(logits, truth, codes, seed).items():
            losses[name].append(-np.log(found[rows, truth].clip(1e-12)))
            scores[name].append((float(((found - ones) ** 2).sum(axis=1).mean()), error_of(found, truth)))
    mean = {name: np.mean(values, axis=0) for name, values in losses.items()}  # (N,)
    lines = ["| method | log-loss | gain over temperature | Brier | ECE |", "|---|---|---|---|---|"]
    for name in METHODS:
        gains = mean["temperature"] - mean[name]
        error = np.sqrt((np.bincount(codes, gains - gains.mean()) ** 2).sum()) / len(truth)
        brier, ece = np.mean(scores[name], axis=0)
        gain = "" if name == "temperature" else f"{gains.mean():+.4f} ({error:.4f})"
        lines.append(f"| {name} | {mean[name].mean():.4f} | {gain} | {brier:.4f} | {ece:.4f} |")
    return lines


def main(predictions: Path, manifest_uri: str) -> list[str]:
    found, manifest = pq.read_table(predictions), read_manifest(manifest_uri)
    columns = [name for name in found.column_names if name.startswith("prob_")]
    values = np.stack([found[name].to_numpy() for name in columns], axis=1).astype(np.float64)
    at = pc.index_in(found["image_id"].combine_chunks(), manifest.table["image_id"].combine_chunks())
    subjects = manifest.table["subject_id"].take(at).to_pylist()
    codes, unit = subject_codes(subjects, len(values))
    classes = [name.removeprefix("prob_") for name in columns]
    truth = np.array([classes.index(name) for name in found["class"].to_pylist()])
    told = [f"{len(truth):,} images of {codes.max() + 1:,} {unit}s, {values.shape[1]} classes"]
    return [*told, *table(np.log(values.clip(1e-30)), truth, codes)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("manifest")
    options = parser.parse_args()
    print("\n".join(main(options.predictions, options.manifest)))
