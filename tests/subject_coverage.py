"""How often intervals of corrected shares hold, and how well subjects are told apart, on real out-of-fold scores.

    python -m tests.subject_coverage MANIFEST --model BUNDLE

BUNDLE is of `leukoray train MANIFEST --folds 5`. Each subject is left out in turn, rates and roll-up are fitted to the
others. Prints what docs/evaluate.md says of patients.
"""

import argparse
from dataclasses import fields

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.evaluation.adverse import limits
from pipeline.evaluation.definitions import Floats, rank_metrics
from pipeline.evaluation.intervals import Resampling, wilson_interval
from pipeline.evaluation.limits import area
from pipeline.evaluation.subject_fit import CellCounts, count_cells, fit_rates, fit_roll_up
from pipeline.evaluation.subject_labels import labels_in, labels_of
from pipeline.model.bundle import Bundle, class_columns
from pipeline.model.cell_rates import corrected_share
from pipeline.model.registry import resolve
from pipeline.model.subject_rules import SubjectLabel
from pipeline.sources.manifest import Manifest, read_manifest
from pipeline.training.cross_validation import OUT_OF_FOLD


def counted(bundle: Bundle, manifest: Manifest) -> CellCounts:
    """Out-of-fold cells by subject, called by the bundle's threshold."""
    table = pq.read_table(f"{bundle.uri}/{OUT_OF_FOLD}")
    rows = pc.index_in(table["image_id"].combine_chunks(), manifest.table["image_id"].combine_chunks())
    positive = np.isin(table["class"].to_pylist(), bundle.info.positive_classes)
    names = dict(zip(bundle.info.classes, class_columns(bundle.info.classes), strict=True))
    columns = [table[names[name]].to_numpy() for name in bundle.info.positive_classes]
    called = np.sum(columns, axis=0) >= bundle.info.threshold
    return count_cells(positive, called, manifest.table["subject_id"].take(rows).to_pylist())


def without(counts: CellCounts, left_out: int) -> CellCounts:
    numbers = [np.delete(getattr(counts, field.name), left_out) for field in fields(counts)[:4]]
    return CellCounts(*numbers, [name for k, name in enumerate(counts.subjects) if k != left_out])


def tell_apart(name: str, positive: np.ndarray, scores: Floats) -> None:
    value = float(rank_metrics(positive, scores)(np.ones((1, len(scores))))[0][0])
    low, high = limits({"auc": area(positive, scores, np.arange(len(scores)))}, len(scores), Resampling())["auc"]
    print(f"ROC-AUC of subjects by {name}: {value:.3f} ({low:.3f} - {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("manifest")
    parser.add_argument("--model", required=True)
    asked = parser.parse_args()
    manifest, bundle = read_manifest(asked.manifest), resolve(asked.model)
    label = bundle.info.subject_rules.label if bundle.info.subject_rules else SubjectLabel()
    counts = counted(bundle, manifest)
    given = labels_in(manifest, label) if label.column else {}
    labels = labels_of(counts, given, label)
    true = counts.diseased / counts.cells
    held, plain, widths, said = [], [], [], []
    for k, cells in enumerate(counts.cells.tolist()):
        others, called = without(counts, k), int(counts.called[k])
        rates, why = fit_rates(others, "out-of-fold")
        assert rates is not None, why
        found, wilson = corrected_share(rates, called, cells), wilson_interval(called, cells)
        held.append(found.low <= true[k] <= found.high)
        plain.append(wilson.low <= true[k] <= wilson.high)
        widths.append(found.high - found.low)
        roll_up, why = fit_roll_up(others, [*labels[:k], *labels[k + 1 :]], label, "out-of-fold")
        said.append(np.nan if roll_up is None else roll_up.probability(called, cells).value)
    print(f"{len(held)} subjects; the interval holds the true share of {sum(held)}, mean width {np.mean(widths):.2f}")
    print(f"Wilson's interval of the share called holds the true share of {sum(plain)}")
    positive, told = np.array(labels, bool), np.array(said)
    print(f"positive: {label}: {positive.sum()} of {len(positive)}")
    tell_apart("the share called", positive, counts.called / counts.cells)
    tell_apart("the true share of cells", positive, true)
    if np.isnan(told).any():
        print(f"no probability for {np.isnan(told).sum()} of them: {why}")
        return
    tell_apart("the probability", positive, told)
    guess = float(np.mean((positive - positive.mean()) ** 2))
    print(f"Brier score {np.mean((told - positive) ** 2):.3f}, of how common it is {guess:.3f}")


if __name__ == "__main__":
    main()
