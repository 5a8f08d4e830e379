"""The bundle: a plain folder that is the model. Weights, graph, decision rule, provenance; no pickle.

    model.safetensors  model.onnx  reference.safetensors  golden.json  sketch.parquet
    bundle.json  bom.cdx.json  MODEL_CARD.md  report/  model.sig

`bundle.json` is `BundleInfo` below. It is written last, so a folder without it is no bundle; `model.sig` comes later,
from whoever signs it (`model.signature`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.base.errors import InputError, UsageError
from pipeline.base.text import column_names, first_line, problems
from pipeline.base.versions import check_version
from pipeline.images.load import Preprocessing
from pipeline.images.unit import Unit
from pipeline.model.chance import AgainstChance
from pipeline.model.choices import Norm
from pipeline.model.drift import ReferenceStatistics
from pipeline.model.reference import REFERENCE, OodRule
from pipeline.model.review import ReviewRule
from pipeline.model.seen import seen_size
from pipeline.model.subject_rules import SubjectRules
from pipeline.model.turns import Turns
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join

# 2: `ood` decides what is said of an image, and so the identity; a bundle of 1 has none, and its identity as it was
BUNDLE_VERSION = 2
WEIGHTS, GRAPH, INFO, CARD = "model.safetensors", "model.onnx", "bundle.json", "MODEL_CARD.md"
HISTORY, REPORT = "report/history.json", "report/report.html"
OUT_OF_FOLD = "report/out_of_fold.parquet"  # scores of a model trained with folds
SKETCH = "sketch.parquet"  # of the images of training: `model.sketch`
BOM = "bom.cdx.json"  # what it is made of: `model.bom`
SIGNATURE = "model.sig"  # over what decides an answer: `model.signature`
GOLDEN = "golden.json"  # drawn images and what is said of them: `model.golden`


class Parent(BaseModel):
    """`parent` of `bundle.json`: the version that another one was made from, by `leukoray calibrate`."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    name: str
    version: str
    weights_sha256: str
    model_sha256: str  # its `identity()`
    changed: tuple[str, ...] = ()  # temperature, threshold, review band, shifts, head
    images: int = 0  # it was made by: of another laboratory
    units: int = 0
    called: str = "images"
    manifest_digest: str = ""  # of these
    source: tuple[str, ...] = ()


class BundleInfo(BaseModel):
    """`bundle.json`. Probabilities and thresholds lie in 0..1."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    bundle_version: int = BUNDLE_VERSION
    name: str
    version: str
    architecture: str
    norm: Norm = "batch"
    task: Literal["binary", "multiclass"]
    # binary: ("negative", "positive") and one logit; multiclass: one logit a class, in this order
    classes: tuple[str, ...]
    class_labels: dict[str, int] = {}  # of two sides: what each class of training was, 1 disease; empty: not known
    positive_classes: tuple[str, ...] = ()  # empty: the classes say nothing about disease, so no decision is made
    input_size: int = Field(ge=8, le=4096)  # pixels, square
    center: float = Field(1.0, gt=0, le=1)  # share of a side, about the middle, that the network sees of it
    bit_depth: int | None = None  # of 16-bit samples, fixed by --bit-depth; null: as files say
    preprocessing_digest: str
    weights_sha256: str
    graph_sha256: str
    sketch_sha256: str = ""  # of SKETCH; empty: the bundle was published without one
    golden_sha256: str = ""  # of GOLDEN; empty: the bundle was published without
    turns: Turns = 1  # of an image, whose logits are averaged
    # scores that temperature and threshold come from; out-of-fold: of models that did not see the image
    calibrated_on: Literal["validation", "out-of-fold", "local"] = "validation"  # local: `leukoray calibrate`
    temperature: float = Field(1.0, gt=0)  # logits are divided by it (Guo et al. 2017)
    threshold: float = Field(0.5, ge=0, le=1)  # on the positive probability
    review_band: tuple[float, float] | None = None  # [low, high): decision 'review' instead of a side
    review: ReviewRule | None = None  # what is promised outside the band; null: nothing, or there is no band
    synthetic: bool = False  # trained on generated images
    unit: Unit | None = None  # what the images of training show; null where nobody has said
    metrics: dict[str, Any] = {}  # validation metrics at publication; evaluate adds test metrics with intervals
    against_chance: AgainstChance | None = None  # null: published by a version that did not ask
    calibration: dict[str, Any] = {}  # images and subjects it rests on, limits, whether it fits the shipped weights
    ood: OodRule | None = None  # null: nothing tells images unlike those of training
    subject_rules: SubjectRules | None = (
        None  # null: images are no cells, no subjects are known, or of a version before
    )
    reference_statistics: ReferenceStatistics | None = None  # null: what its own images look like is not known
    manifest_digest: str = ""
    split_rule: str = ""
    training: dict[str, Any] = {}  # effective training configuration
    reference_scores: dict[str, Any] = {}  # quantiles of validation scores, for drift
    parent: Parent | None = None  # null: trained, made from no other version
    migrated: dict[str, Any] = {}  # from which version and pixel rules, and what that changed; see `model.migration`
    versions: dict[str, str] = {}  # packages at training
    created_at: str = ""  # ISO 8601, UTC

    @model_validator(mode="after")
    def _fits_together(self) -> "BundleInfo":
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ValueError("classes: two or more different names are needed")
        if self.task == "binary" and len(self.classes) != 2:
            raise ValueError("classes: a binary model has two")
        if not set(self.positive_classes) <= set(self.classes):
            raise ValueError("positive_classes: are not among the classes")
        if self.review_band is not None and not 0 <= self.review_band[0] <= self.review_band[1] <= 1:
            raise ValueError("review_band: [low, high) within 0..1")
        return self

    @property
    def monitored(self) -> tuple[str, float | None]:
        """The metric that training chose the best epoch by, higher is better, and its value on validation."""
        monitor = str(self.training.get("monitor", "val_auc"))
        name = "roc_auc" if monitor == "val_auc" else monitor.removeprefix("val_")
        return f"validation {name}", self.metrics.get("validation", {}).get(name)

    @property
    def diseased_side(self) -> tuple[int, ...]:
        """Places of the classes that mean disease; empty where none does or all do: then there are no two sides."""
        is_one_side = set(self.positive_classes) == set(self.classes)
        return () if is_one_side else tuple(map(self.classes.index, self.positive_classes))

    @property
    def outputs(self) -> int:
        """Logits an image."""
        return 1 if self.task == "binary" else len(self.classes)

    @property
    def seen_size(self) -> int:
        """Pixels a side that the network sees, in the middle of `input_size`."""
        return seen_size(self.input_size, self.center)

    @property
    def seen(self) -> str:
        """What of an image the network sees, for a person."""
        whole, size = f"{self.input_size} x {self.input_size} pixels", self.seen_size
        return whole if self.center == 1 else f"{whole}, of which it sees the {size} x {size} in the middle"

    @property
    def pixels(self) -> Preprocessing:
        """Today's rules from bytes to pixels, as this model takes them; `preprocessing_digest` may be of older ones."""
        return Preprocessing(self.input_size, bit_depth=self.bit_depth)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256, hex, of each file that a prediction needs."""
        found = {WEIGHTS: self.weights_sha256, GRAPH: self.graph_sha256}
        return found if self.ood is None else found | {REFERENCE: self.ood.reference_sha256}

    def identity(self) -> str:
        """SHA-256, hex, of everything that decides a prediction: weights, calibration, decision rule, pixels."""
        deciding: dict[str, Any] = {
            "weights": self.weights_sha256,
            "graph": self.graph_sha256,
            "classes": self.classes,
            "positive": self.positive_classes,
            "temperature": self.temperature,
            "threshold": self.threshold,
            "review_band": self.review_band,
            "preprocessing": self.preprocessing_digest,
        }
        if self.turns > 1:  # a bundle of one turn is what it was before turns were
            deciding["turns"] = self.turns
        if self.ood is not None:  # likewise
            deciding["ood"] = [self.ood.reference_sha256, self.ood.threshold]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def class_columns(classes: Sequence[str]) -> list[str]:
    """Columns of the probabilities: `prob_<class>`, by the rule of `column_names`."""
    return column_names(classes, "prob_")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle and where it lies. Small: files are read when a predictor asks."""

    uri: str
    info: BundleInfo
    stores: Stores = field(default_factory=Stores)
    held: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)  # files that it brings along
    is_as_published: bool = field(default=True, compare=False)  # it decides as its card says
    signed_by: str = field(default="", compare=False)  # digest of the public key that its signature was checked with

    def file(self, name: str) -> bytes:
        """A file of the bundle, checked against its digest. Raises InputError when missing or altered."""
        try:
            held = self.held.get(name)
            data = self.stores.of(self.uri).read(join(self.uri, name)).data if held is None else held
        except StoreError as error:
            message = f"bundle {self.uri}: {name} cannot be read ({error}); publish the model again"
            raise error.refusal(message) from error
        expected = (self.info.digests | {SKETCH: self.info.sketch_sha256, GOLDEN: self.info.golden_sha256}).get(name)
        if expected is not None and hashlib.sha256(data).hexdigest() != expected:
            raise InputError(f"bundle {self.uri}: {name} is not the file that was published; copy the bundle again")
        return data

    def verify(self) -> "Bundle":
        """Compare its files with their digests, so that what follows need not fail on each of many workers.

        Raises InputError when weights or graph are missing, or one is altered.
        """
        for name in (*self.info.digests, *([SKETCH] if self.has_sketch else [])):
            self.file(name)
        return self

    def hold(self) -> "Bundle":
        """The same with the files that a prediction needs in memory, checked: it can be opened anywhere, whatever
        becomes of its store. Raises InputError when one is missing or altered.
        """
        proof = [GOLDEN] if self.info.golden_sha256 else []
        return replace(self, held={name: self.file(name) for name in (*self.info.digests, *proof)})

    @property
    def has_sketch(self) -> bool:
        """Whether it was published with a sketch of its training images, and nobody has taken that away."""
        path = join(self.uri, SKETCH)
        return bool(self.info.sketch_sha256) and self.stores.of(path).head(path) is not None

    def write(self, name: str, data: bytes) -> None:
        """Replace a file of the bundle, whole."""
        self.stores.of(self.uri).write(join(self.uri, name), data)

    def update(self, **changes: Any) -> "Bundle":
        """Rewrite `bundle.json` with changed fields (metrics, temperature, threshold), atomically."""
        changed = replace(self, info=self.info.model_copy(update=changes))
        changed.write(INFO, changed.info.model_dump_json(indent=2).encode())
        return changed

    def with_threshold(self, threshold: float | None) -> "Bundle":
        """The same model with another operating point, and so another identity. Raises UsageError outside 0..1."""
        if threshold is None:
            return self
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold {threshold}: must lie in 0..1")
        changes: dict[str, Any] = {"threshold": threshold}
        if self.info.review is not None:  # its cuts hold their errors at any threshold
            changes["review_band"] = self.info.review.band(threshold)
        elif self.info.review_band is not None:  # of a version without a promise: its margins move along
            low, high = self.info.review_band
            below, above = self.info.threshold - low, high - self.info.threshold
            if low == 0.0 or high == 1.0:  # cut there, perhaps: the other side has the whole margin
                below = above = max(below, above)
            changes["review_band"] = (max(0.0, threshold - below), min(1.0, threshold + above))
        return self._deciding(self.info.model_copy(update=changes))

    def with_review(self, review: ReviewRule) -> "Bundle":
        """The same model leaving other images to a person, and so another identity."""
        band = review.band(self.info.threshold)
        return self._deciding(self.info.model_copy(update={"review": review, "review_band": band}))

    def with_bit_depth(self, bit_depth: int | None) -> "Bundle":
        """The same model for images of so many bits in 16, and so with another identity; None: as it is."""
        if bit_depth in (None, self.info.bit_depth):
            return self
        info = self.info.model_copy(update={"bit_depth": bit_depth})
        return self._deciding(info.model_copy(update={"preprocessing_digest": info.pixels.digest()}))

    def _deciding(self, info: BundleInfo) -> "Bundle":
        is_same = info.identity() == self.info.identity()
        return replace(self, info=info, is_as_published=self.is_as_published and is_same)

    def depth_note(self, trained: int | None) -> str:
        """A sentence where a model that learned from images of one fixed depth is shown others, else empty."""
        if trained is None or self.info.bit_depth == trained:
            return ""
        return (
            f"the model learned from images with --bit-depth {trained}, these are read with {self.info.bit_depth}: its "
            "probabilities hold where white means the same in both"
        )


def write_bundle(uri: str, info: BundleInfo, files: dict[str, bytes], stores: Stores = Stores()) -> Bundle:
    """Write `files` (by relative name), then `bundle.json`. The digests of its files are filled in here."""
    bundle = Bundle(absolute(uri), info, stores)
    for name, data in files.items():
        bundle.write(name, data)
    weights, graph = (hashlib.sha256(files[name]).hexdigest() for name in (WEIGHTS, GRAPH))
    sketch, golden = (hashlib.sha256(files[name]).hexdigest() if name in files else "" for name in (SKETCH, GOLDEN))
    return bundle.update(weights_sha256=weights, graph_sha256=graph, sketch_sha256=sketch, golden_sha256=golden)


def read_bundle(uri: str, stores: Stores = Stores(), *, of_any_pixels: bool = False) -> Bundle:
    """Read and check `bundle.json`. Raises InputError naming what is missing or does not fit this version.

    `of_any_pixels`: one of other pixel rules as well, which must not predict; for `leukoray migrate`.
    """
    uri = absolute(uri)
    try:
        data = stores.of(uri).read(join(uri, INFO)).data
    except StoreError as error:
        raise error.refusal(f"{uri}: no bundle here ({error}); name a bundle or a registry folder") from error
    info = read_info(uri, data, of_any_pixels=of_any_pixels)
    store = stores.of(uri)
    for name in info.digests:
        if store.head(join(uri, name)) is None:
            raise InputError(f"bundle {uri}: {name} is missing; copy the whole folder")
    return Bundle(uri, info, stores)


def read_info(uri: str, data: bytes, *, of_any_pixels: bool = False) -> BundleInfo:
    """The bytes of the `bundle.json` of `uri`, checked. Raises InputError saying what does not fit this version."""
    path = join(uri, INFO)
    try:
        raw = json.loads(data)
        check_version(raw.get("bundle_version"), BUNDLE_VERSION, f"{path}: bundle", "publish the model again")
        info = BundleInfo(**raw)
    except (ValueError, AttributeError, TypeError) as error:
        found = problems(error) if isinstance(error, ValidationError) else first_line(error)
        raise InputError(f"{path}: damaged ({found}); publish the model again") from error
    expected = info.pixels.digest()
    if info.preprocessing_digest != expected and not of_any_pixels:
        raise InputError(
            f"bundle {uri}: is of other pixel rules (digest {info.preprocessing_digest[:12]}, this leukoray has "
            f"{expected[:12]}), its probabilities would be others: `leukoray migrate {uri} --scores OUTPUT` measures "
            "by how much and adds a version for these rules; or train again"
        )
    return info
