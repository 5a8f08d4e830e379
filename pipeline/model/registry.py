"""The registry: `<registry>/<name>/<version>/` bundles and `<registry>/<name>/best.json`, which points to the best.

The pointer is one small file that is replaced whole, so a reader follows either the old or the new one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.base.errors import InputError
from pipeline.base.text import problems
from pipeline.base.versions import check_version
from pipeline.images.unit import Unit, mismatch
from pipeline.model.bundle import INFO, Bundle, BundleInfo, read_bundle
from pipeline.model.chance import NOT_SHOWN
from pipeline.model.signature import verified
from pipeline.storage.lock import locked
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join

POINTER = "best.json"
POINTER_VERSION = 1
RUNS = ".runs"  # where training keeps what is no bundle
_POINTING_S = 120.0  # longer than a lock outlives its process
_EARLIER = 50  # versions that the pointer remembers


class Pointer(BaseModel):
    """`best.json`: the version that readers follow, and what it was chosen by."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    pointer_version: int = POINTER_VERSION  # 0.1 wrote none
    version: str
    metric: str = ""
    value: float | None = None  # of the metric, higher is better; None where undefined
    model_sha256: str = ""  # `BundleInfo.identity()` of the version
    updated_at: str = ""  # ISO 8601, UTC
    earlier: tuple[str, ...] = ()  # versions that were the best before, the last one last; 0.2 wrote none


@dataclass(frozen=True)
class Verdict:
    """Whether `best.json` points to the new version now, and why, in a sentence."""

    is_best: bool
    reason: str
    guesses: bool = False  # kept back because its validation interval includes chance


@dataclass(frozen=True)
class ModelFolder:
    """One model's name in a registry: the folder of its versions and its pointer."""

    uri: str
    stores: Stores = field(default_factory=Stores)

    def pointer(self) -> Pointer | None:
        """`best.json`, None where there is none yet. Raises InputError when it is damaged."""
        path = self._path()
        try:
            found = self.stores.read_if_there(path)
            if found is None:
                return None
            pointer = Pointer.model_validate_json(found)
        except StoreError as error:
            raise error.refusal() from error
        except ValidationError as error:
            raise InputError(
                f"{path}: cannot be read ({problems(error)}); point it again with `leukoray promote`"
            ) from error
        check_version(pointer.pointer_version, POINTER_VERSION, f"{path}: pointer", "point it again")
        return pointer

    def point_to(self, bundle: Bundle, earlier: Sequence[str] | None = None) -> Pointer:
        """Make `bundle` the best of its name. `earlier` None: those before and the one that is replaced now.

        Whoever judges by what is replaced holds `moving`.
        """
        metric, value = bundle.info.monitored
        pointer = Pointer(
            version=bundle.info.version,
            metric=metric,
            value=value,
            model_sha256=bundle.info.identity(),
            updated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            earlier=tuple(self._earlier(bundle.info.version) if earlier is None else earlier)[-_EARLIER:],
        )
        self.stores.of(self._path()).write(self._path(), pointer.model_dump_json(indent=2).encode())
        return pointer

    def point_if_better(self, bundle: Bundle) -> Verdict:
        """Move the pointer when there is none, or when the bundle's metric is not worse than the one it names.

        A model of real images takes the place of one of synthetic images, whatever it is worth, and never the other
        way round. Else one whose validation interval includes chance takes nobody's; one that was shown to be better
        than chance takes that of one that was not. One run at a time does so: of two that end together neither judges
        by what the other replaces.
        """
        with self.moving():
            verdict = self._judge(bundle)
            if verdict.is_best:
                self.point_to(bundle)
        return verdict

    def moving(self) -> AbstractContextManager[Callable[[], None]]:
        """The lock of `best.json`: of two that hold it in turn neither judges by what the other replaces."""
        advice = "the bundle is whole; see `leukoray promote --list`"
        return locked(join(absolute(self.uri), RUNS), POINTER, self.stores, _POINTING_S, advice)

    def _earlier(self, version: str) -> list[str]:
        """What a pointer to `version` remembers; nothing where the pointer of today cannot be read."""
        try:
            before = self.pointer()
        except InputError:
            return []
        if before is None:
            return []
        return [*before.earlier, *([] if before.version == version else [before.version])]

    def refuse_other_task(
        self, task: str, classes: Sequence[str], positive_classes: Sequence[str], unit: Unit | None = None
    ) -> None:
        """Raise InputError when the best model answers another question, which its readers rely on."""
        pointer = self.pointer()
        current = self._named_by(pointer) if pointer is not None else None
        if current is None:
            return
        info = current.info
        if (info.task, info.classes, info.positive_classes) != (task, tuple(classes), tuple(positive_classes)):
            raise InputError(
                f"{self.uri}: its best model tells {', '.join(info.classes)} apart, this manifest would teach "
                f"{', '.join(classes)}; give the new model a name of its own with --name"
            )
        if found := mismatch(info.unit, unit):
            raise InputError(f"{self.uri}: {found}; give the new model a name of its own with --name")

    def best(self, pointer: Pointer) -> Bundle:
        """The bundle that the pointer names. Raises InputError when it was written for another than lies there now."""
        bundle = read_bundle(join(self.uri, pointer.version), self.stores)
        found = bundle.info.identity()
        if pointer.model_sha256 and pointer.model_sha256 != found:
            raise InputError(
                f"{self._path()}: was written for model {pointer.model_sha256[:12]}, but {bundle.uri} is now "
                f"{found[:12]}; copy the version again, or point to it with `leukoray promote {self.uri} "
                f"--version {bundle.info.version}`"
            )
        return bundle

    def _path(self) -> str:
        return join(absolute(self.uri), POINTER)

    def _named_by(self, pointer: Pointer) -> Bundle | None:
        """The bundle that a pointer names, None where it cannot be used."""
        try:
            return read_bundle(join(self.uri, pointer.version), self.stores)
        except InputError:
            return None

    def _judge(self, bundle: Bundle) -> Verdict:
        pointer = self.pointer()
        if pointer is None:
            return Verdict(True, "best.json points to it, the first of its name")
        current = self._named_by(pointer)
        if current is None:
            return Verdict(True, f"best.json points to it: {pointer.version}, which it named, cannot be used")
        judged = _by_kind(pointer, current.info, bundle.info)
        return judged if judged is not None else _by_metric(pointer, current.info, bundle.info)


def _by_kind(pointer: Pointer, old: BundleInfo, new: BundleInfo) -> Verdict | None:
    """What decides before any comparison of metrics; None where they are to be compared."""
    judged, before = new.against_chance, old.against_chance
    if old.synthetic and not new.synthetic:  # nobody is served by one that never saw blood: before anything else
        doubt = "" if judged is None or judged.is_shown else f"; this one is {judged}"
        return Verdict(True, f"best.json points to it: {pointer.version} had learnt from synthetic images only{doubt}")
    if judged is not None and judged.includes_chance:
        return Verdict(False, f"best.json stays at {pointer.version}: this one is {judged}", guesses=True)
    if new.synthetic and not old.synthetic:
        return Verdict(False, f"best.json stays at {pointer.version}, which has learnt from real images")
    if judged is not None and before is not None and judged.is_shown != before.is_shown:
        if judged.is_shown:
            return Verdict(True, f"best.json points to it, no longer to {pointer.version}, which was {NOT_SHOWN}")
        return Verdict(False, f"best.json stays at {pointer.version}, which was shown to be better than chance")
    return None


def _by_metric(pointer: Pointer, old: BundleInfo, new: BundleInfo) -> Verdict:
    metric, value = new.monitored
    if pointer.metric != metric or pointer.value is None or not math.isfinite(pointer.value):
        return Verdict(True, f"best.json points to it: {pointer.version} was judged by another metric")
    against = f"{pointer.version}, whose {metric} is {pointer.value:.4f}"
    if (old.manifest_digest, old.calibrated_on) != (new.manifest_digest, new.calibrated_on):
        other = "of another manifest" if old.calibrated_on == new.calibrated_on else f"({old.calibrated_on} scores)"
        against += f" on other images {other}, a rough comparison: evaluate both on one test split"
    if value is None or value < pointer.value:
        return Verdict(False, f"best.json stays at {against}")
    return Verdict(True, f"best.json points to it, no longer to {against}")


def new_version(digest: str = "") -> str:
    """A version name that sorts by time: `20261123-191500-1a2b3c4d`."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-{digest[:8]}" if digest else stamp


def version_uris(uri: str, stores: Stores, damaged: list[InputError] | None = None) -> Iterator[tuple[str, bool]]:
    """Folders of all bundles of one model, or of all models of a registry, each with whether best.json names it.

    Raises InputError where a best.json cannot be read; puts that into `damaged` where it is given, and there as well
    that one names a version that is not here, once all folders are through.
    """
    best: dict[str, str | None] = {}
    met = set[str]()  # models whose best version is here
    for item in sorted(stores.of(uri).walk(uri), key=lambda item: item.uri):
        folder, _, name = item.uri.rpartition("/")
        if name == INFO:
            model, _, version = folder.rpartition("/")
            if model not in best:
                try:
                    pointer = ModelFolder(model, stores).pointer()
                except InputError as error:
                    if damaged is None:
                        raise
                    pointer = None
                    damaged.append(error)
                best[model] = pointer.version if pointer else None
            if version == best[model]:
                met.add(model)
            yield folder, version == best[model]
    if damaged is not None:
        damaged += (
            InputError(
                f"{join(model, POINTER)}: names {version}, which is not here; point it again with `leukoray promote`"
            )
            for model, version in best.items()
            if version is not None and model not in met and f"{model}/".startswith(f"{uri}/")  # not above `uri`
        )


def pointer_of(uri: str, bundle: Bundle) -> str:
    """URI of the best.json by which `uri` meant this bundle; empty where it names the bundle itself."""
    return "" if absolute(uri) == bundle.uri else join(bundle.uri.rpartition("/")[0], POINTER)


def resolve(uri: str, stores: Stores = Stores(), verify: str | None = None) -> Bundle:
    """The bundle that `uri` means: a bundle folder, a model name's folder, or a registry with one model name.

    `verify`: a public key in PEM, whose private half must have signed it (`model.signature`). Raises InputError when it
    means none, or several, or its signature is not right.
    """
    found = _resolve(absolute(uri), stores)
    return found if verify is None else verified(found, verify)


def _resolve(uri: str, stores: Stores) -> Bundle:
    store, model = stores.of(uri), ModelFolder(uri, stores)
    if store.head(join(uri, INFO)) is not None:
        return read_bundle(uri, stores)
    pointer = model.pointer()
    if pointer is not None:
        return model.best(pointer)
    names = sorted(info.uri.removesuffix("/" + POINTER) for info in store.walk(uri) if info.uri.endswith("/" + POINTER))
    if len(names) == 1:
        return _resolve(names[0], stores)
    if names:
        raise InputError(f"{uri}: a registry with several models; name one of {', '.join(names)}")
    raise InputError(
        f"{uri}: neither a bundle (bundle.json) nor a registry (best.json); train one with `leukoray train`"
    )
