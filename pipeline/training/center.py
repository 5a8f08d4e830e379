"""How much of a single cell's image the network should see, asked of the training images themselves.

Crops of single cells show neighbours, which are other cells with other labels, and the cell of the label has few of the
pixels. How wide a crop is differs by analyser. So a probe is fitted to the middle of the images at several widths, and
the one that says most of subjects that the probe did not learn from is taken. Cells fill or leave their frame whatever
network looks at them: the features are always those of the default network, at its size.
"""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import UsageError
from pipeline.model.architectures import build
from pipeline.model.feature_graph import features_graph
from pipeline.model.seen import middle_of, seen_size, size_to_decode
from pipeline.model.starting_weights import is_installed, start_from
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from pipeline.training.features import session_of
from pipeline.training.folds import groups_of
from pipeline.training.linear import held_out_losses, weigh
from pipeline.training.preview import read_images
from pipeline.training.recipe import KNOWN, KNOWN_SIZE
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings
from pipeline.training.teacher import Teacher

WIDTHS = (1.0, 0.75, 0.6, 0.45)  # shares of a side
MOST_IMAGES, _FEWEST_IMAGES = 600, 100
_SURE = 2.0  # standard errors, over subjects, by which less must be better than all
_BATCH = 32

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """The share of a side, and why it is that one, for a person."""

    share: float
    reason: str


def center_for(
    manifest: Manifest,
    rows: LabelledRows,
    given: float | None,
    teacher: Teacher | None,
    settings: Settings,
    stores: Stores,
) -> Seen:
    """What a network sees: as `given`, as its teacher, or as training images of single cells ask for.

    `reason` is empty where nothing was chosen. Raises UsageError where it is given other than the teacher's.
    """
    if teacher is not None:
        share = teacher.info.center
        if given not in (None, share):
            raise UsageError(f"--center {given:g}: the teacher sees {share:g} of a side; leave --center out")
        return Seen(share, f"the network sees as much of a side as its teacher, {share:.0%}" if share < 1 else "")
    if given is not None or not settings.pretrained or manifest.info.unit != "cell" or not is_installed(KNOWN):
        return Seen(given or 1.0, "")
    ids = rows.train["image_id"]
    if _has_strangers(manifest, ids):
        return Seen(1.0, "the network sees whole images: not every subject is known to choose less by (--center)")
    groups = groups_of(manifest, ids, "subject", stores)
    seen = choose_center(rows.train, groups, settings, stores)
    if seen.share == 1:
        return Seen(1.0, f"the network sees whole images: {seen.reason}")
    return Seen(seen.share, f"the network sees the middle {seen.share:.0%} of a side: {seen.reason} (--center 1: all)")


def _has_strangers(manifest: Manifest, image_ids: pa.ChunkedArray) -> bool:
    """Whether an image has no subject: siblings of it on the other side would speak for whatever tells them apart.

    Kaggle's blood cells, turned and shifted copies of few originals, ask for the middle 60 %, which costs 0.07 of
    accuracy on other originals: their cells do not lie in the middle.
    """
    table = manifest.table
    chosen = table.filter(pc.is_in(table["image_id"], image_ids.combine_chunks()))
    return bool(chosen["subject_id"].null_count)


def choose_center(train: pa.Table, groups: NDArray[np.int64], settings: Settings, stores: Stores) -> Seen:
    """Ask up to MOST_IMAGES of `train`, ROW_SCHEMA, whose subjects are `groups` (N,). Takes some 20 s of a core."""
    if train.num_rows < _FEWEST_IMAGES:
        return Seen(1.0, f"there are fewer than {_FEWEST_IMAGES} training images to choose less by")
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(train.num_rows)[:MOST_IMAGES])
    decoded = replace(settings, input_size=size_to_decode(KNOWN_SIZE, min(WIDTHS)))  # what the narrowest needs
    read = sorted(read_images(train.take(pa.array(chosen)), decoded, stores), key=lambda found: found[0].image_id)
    if len(read) < _FEWEST_IMAGES:
        return Seen(1.0, f"fewer than {_FEWEST_IMAGES} of the images tried can be used")
    targets = np.array([row.target for row, _ in read], np.int64)
    if len(np.unique(targets)) < len(settings.classes):
        return Seen(1.0, "a class has none of the images tried")
    group_of = dict(zip(train["image_id"].to_pylist(), groups, strict=True))
    of_read = np.array([group_of[row.image_id] for row, _ in read])
    images, weighed, session, losses = (
        np.stack([pixels for _, pixels in read]),
        weigh(settings, targets),
        _session(),
        [],
    )
    for width in WIDTHS:
        features = _features(session, images, width)
        found = held_out_losses(features, targets, weighed, of_read, settings)
        if found is None:
            return Seen(1.0, "there are too few subjects to choose less by")
        losses.append(found)
    return judged(np.stack(losses), of_read)


def judged(losses: NDArray[np.float64], groups: NDArray[np.int64]) -> Seen:
    """Losses (len(WIDTHS), N) of images, nan where none was held out: the width with the least, if that is no luck."""
    told = ~np.isnan(losses).any(axis=0)
    losses, groups = losses[:, told], groups[told]
    means = losses.mean(axis=1)
    best = int(means.argmin())
    gains = losses[0] - losses[best]
    of_subjects = np.bincount(groups, gains - gains.mean())
    error = float(np.sqrt((of_subjects**2).sum())) / len(gains)
    if gains.mean() <= _SURE * error:
        return Seen(1.0, f"no less of {len(gains)} training images tells a probe surely more")
    return Seen(
        WIDTHS[best],
        f"a probe of {len(gains)} training images has log-loss {means[best]:.3f} by it, {means[0]:.3f} by all",
    )


def _session() -> Any:
    model = build(KNOWN, 1, "frozen")
    start_from(model, KNOWN, "imagenet")
    return session_of(features_graph(model, KNOWN_SIZE), threads=0)


def _features(session: Any, images: Images, width: float) -> NDArray[np.float32]:
    """(N, D) of the middle of the images, brought to the network's size."""
    middle = middle_of(images.shape[1], seen_size(images.shape[1], width))
    middles = images[:, middle, middle]
    to = (KNOWN_SIZE, KNOWN_SIZE)
    parts = []
    for at in range(0, len(images), _BATCH):
        batch = np.stack([cv2.resize(each, to, interpolation=cv2.INTER_AREA) for each in middles[at : at + _BATCH]])
        parts.append(session.run(None, {"images": batch})[0])
    return np.concatenate(parts)
