"""How many wrong labels are found where they are known: labels of a manifest are turned, and suspects asked for.

    python -m tests.planted_errors MANIFEST [--share 0.05] [--draws 5] [--size 144]

Probabilities are out of fold (five, by subject), of a logistic regression on features of EfficientNet-Lite0 with its
ImageNet weights (the extra `pretrained`), each image in one view. Labels that were wrong before count as mistakes of
the method, so what is printed is a lower bound.
"""

import argparse

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.base.errors import ImageRejected
from pipeline.evaluation.label_errors import label_errors
from pipeline.images.load import load_image
from pipeline.model.architectures import build
from pipeline.model.feature_graph import features_graph
from pipeline.model.starting_weights import start_from
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import SPLITS, ManifestRow, read_manifest
from pipeline.storage.stores import Stores

_BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--share", type=float, default=0.05, help="of the labels that are turned")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--size", type=int, default=144, help="pixels a side")
    asked = parser.parse_args()
    manifest = read_manifest(asked.manifest)
    rows = [row for split in SPLITS for row in manifest.split(split) if row.label is not None]
    rows, features = features_of(rows, asked.size)
    labels = np.array([row.label for row in rows])
    subjects = np.array([row.subject_id or str(row.image_id) for row in rows])
    print(f"{len(rows):,} images of {len(set(subjects)):,} subjects, {asked.draws} draws")
    found = [planted(features, labels, subjects, asked.share, seed) for seed in range(asked.draws)]
    for name in found[0]:
        values = [each[name] for each in found]
        print(f"{name:<44}{np.mean(values):8.3f}  ({min(values):.3f} to {max(values):.3f})")


def features_of(rows: list[ManifestRow], size: int) -> tuple[list[ManifestRow], NDArray[np.float32]]:
    """The rows that can be read, and (N, D)."""
    model = build("efficientnet-lite0", 1, "frozen")
    start_from(model, "efficientnet-lite0", "imagenet", Stores(), "head")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(features_graph(model.eval(), size), options)
    kept, parts, waiting = [], [], []
    for item in fetch_rows(rows, Stores()):
        try:
            if item.data is not None:
                waiting.append(load_image(item.data, size).pixels)
                kept.append(item.row)
        except ImageRejected:
            continue
        if len(waiting) == _BATCH:
            parts.append(session.run(None, {"images": np.stack(waiting)})[0])
            waiting = []
    if waiting:
        parts.append(session.run(None, {"images": np.stack(waiting)})[0])
    return kept, np.concatenate(parts)


def planted(
    features: NDArray[np.float32], labels: NDArray[np.int64], subjects: NDArray[np.str_], share: float, seed: int
) -> dict[str, float]:
    """Of one draw: what shares of the suspects were turned, and of the turned ones are suspects."""
    turned = np.zeros(len(labels), bool)
    turned[np.random.default_rng(seed).choice(len(labels), round(share * len(labels)), replace=False)] = True
    given = np.where(turned, 1 - labels, labels)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=3e-3, max_iter=2000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    said = cross_val_predict(head, features, given, groups=subjects, cv=folds, method="predict_proba")
    found = label_errors(given, said)
    order, right = found.order, turned[found.order]
    own = said[np.arange(len(given)), given]
    result = {"turned": float(turned.sum()), "suspects": float(len(order))}
    for count in (25, 50, 100, 150):
        result[f"precision among the first {count}"] = float(right[:count].mean())
    result["precision of all suspects"] = float(right.mean())
    result["recall of all suspects"] = float(right.sum() / turned.sum())
    result["recall among as many as were turned"] = float(right[: turned.sum()].sum() / turned.sum())
    by_own = np.argsort(own, kind="stable")[: turned.sum()]
    result["the same by lowest own probability alone"] = float(turned[by_own].mean())
    return result


if __name__ == "__main__":
    main()
