"""How much of a single cell's image the network should see, asked of the training images themselves.

Crops of single cells show neighbours, which are other cells with other labels, and the cell of the label has few of the
pixels. How wide a crop is differs by analyser. So a probe is fitted to the middle of the images at several widths, and
the one that says most of subjects that the probe did not learn from is taken. Cells fill or leave their frame whatever
network looks at them: the features are always those of the default network, at its size.
"""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.base.errors import UsageError
from pipeline.evaluation.intervals import clustered_error
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.feature_graph import features_graph
from pipeline.model.seen import middle_of, seen_size, size_to_decode
from pipeline.model.starting_weights import is_installed, start_from
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache
from pipeline.training.decoded import decode
from pipeline.training.features import session_of
from pipeline.training.folds import groups_of
from pipeline.training.kept import Kept, digest_of
from pipeline.training.linear import held_out_losses, weigh
from pipeline.training.recipe import KNOWN, KNOWN_SIZE
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings
from pipeline.training.teacher import Teacher

WIDTHS = (1.0, 0.75, 0.6, 0.45)  # shares of a side
MOST_IMAGES, _FEWEST_IMAGES = 600, 100
_LUCK = 0.025  # how often less may be taken where it is as good as all, whichever of the narrower widths
_FEWEST_SUBJECTS = 12  # of diseased and of other images, whose spread tells a standard error
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
    cache: PixelCache | None = None,
) -> Seen:
    """What a network sees: as `given`, as its teacher, or as training images of single cells ask for.

    What they ask for is kept beside the pixels of `cache`, for later runs on the same images. `reason` is empty where
    nothing was chosen. Raises UsageError where it is given other than the teacher's.
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
    seen = choose_center(rows.train, groups, settings, stores, cache)
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


def choose_center(
    train: pa.Table, groups: NDArray[np.int64], settings: Settings, stores: Stores, cache: PixelCache | None = None
) -> Seen:
    """Ask up to MOST_IMAGES of `train`, ROW_SCHEMA, whose subjects are `groups` (N,). Takes some 20 s of a core."""
    if train.num_rows < _FEWEST_IMAGES:
        return Seen(1.0, f"there are fewer than {_FEWEST_IMAGES} training images to choose less by")
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(train.num_rows)[:MOST_IMAGES])
    asked = train.append_column("group", pa.array(groups)).take(pa.array(chosen)).sort_by("image_id").combine_chunks()
    pixels = Preprocessing(
        size_to_decode(KNOWN_SIZE, min(WIDTHS)), bit_depth=settings.bit_depth
    )  # what the narrowest needs
    kept = Kept(cache, "choices", _deciding(asked, pixels, settings), ".json")
    known = kept.read()
    if known is not None:
        return Seen(**json.loads(known))
    decoded = decode(asked, pixels, stores)
    usable = pc.is_null(decoded.notes["code"])
    seen = _chosen(decoded.images[usable.to_numpy()], asked.filter(usable), settings)
    if pc.all(decoded.notes["lasting"]).as_py():  # else another look may find other images
        kept.write(json.dumps(asdict(seen)).encode())
    return seen


def _chosen(images: Images, rows: pa.Table, settings: Settings) -> Seen:
    """By usable images, (N, S, S, 3), and their rows, of ROW_SCHEMA and `group`."""
    if len(images) < _FEWEST_IMAGES:
        return Seen(1.0, f"fewer than {_FEWEST_IMAGES} of the images tried can be used")
    targets, groups = rows["target"].to_numpy(), rows["group"].to_numpy()
    if len(np.unique(targets)) < len(settings.classes):
        return Seen(1.0, "a class has none of the images tried")
    weighed, session, losses = weigh(settings, targets), _session(), []
    for width in WIDTHS:
        found = held_out_losses(_features(session, images, width), targets, weighed, groups, settings)
        if found is None:
            return Seen(1.0, "there are too few subjects to choose less by")
        losses.append(found)
    return judged(np.stack(losses), groups, np.isin(targets, settings.positive))


def _deciding(asked: pa.Table, pixels: Preprocessing, settings: Settings) -> list[str]:
    """All that the choice depends on: images, labels, subjects, how classes weigh, and what looks at them."""
    groups = np.unique(asked["group"].to_numpy(), return_inverse=True)[1].tolist()
    rows = digest_of(asked.select(["image_id", "etag", "target"]).append_column("group", pa.array(groups)))
    weighing = (settings.classes, settings.task, settings.balance, settings.costs, settings.positive, settings.seed)
    engines = [f"{name} {installed(name)}" for name in ("onnxruntime", "torch")]
    decoders = PixelCache("", pixels).key
    rule = str((WIDTHS, _LUCK, _FEWEST_SUBJECTS))
    return ["middle", __version__, rows, decoders, str(weighing), rule, *engines]


def judged(losses: NDArray[np.float64], groups: NDArray[np.int64], diseased: NDArray[np.bool_]) -> Seen:
    """Losses (len(WIDTHS), N) of images, nan where none was held out: the width with the least, if that is no luck.

    That is a one-sided test of the mean gain over subjects, `groups` (N,), by Student's t, at a level shared by the
    narrower widths (Bonferroni). `diseased` (N,): the sides, each of which needs subjects enough.
    """
    told = ~np.isnan(losses).any(axis=0)
    losses, groups, diseased = losses[:, told], groups[told], diseased[told]
    sides = [len(np.unique(groups[side])) for side in (diseased, ~diseased) if side.any()]
    if min(sides, default=0) < _FEWEST_SUBJECTS:
        return Seen(1.0, f"too few subjects to choose less by, {_FEWEST_SUBJECTS} with images of each side are needed")
    means = losses.mean(axis=1)
    best = int(means.argmin())
    gains = losses[0] - losses[best]
    if not best or gains.mean() <= _sure(len(np.unique(groups))) * clustered_error(gains, groups):
        return Seen(1.0, f"no less of {len(gains)} training images tells a probe surely more")
    return Seen(
        WIDTHS[best],
        f"a probe of {len(gains)} training images has log-loss {means[best]:.3f} by it, {means[0]:.3f} by all",
    )


def _sure(subjects: int) -> float:
    """Standard errors of the gain by which less must be better than all."""
    from scipy.stats import t  # 0.5 s to import

    return float(t.ppf(1 - _LUCK / (len(WIDTHS) - 1), subjects - 1))


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
