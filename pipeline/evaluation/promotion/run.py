"""A protocol carried out: the new version, and the best one beside it, on the protocol's images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import InputError
from pipeline.evaluation.by_subject import refuse_contradictions
from pipeline.evaluation.comparison.result import Comparison, refuse_incomparable
from pipeline.evaluation.comparison.run import compare_on
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.promotion.criteria import SAME, Best, Criterion, criteria, refuse_unknown
from pipeline.evaluation.promotion.protocol import Protocol, WrittenProtocol
from pipeline.images.unit import DESCRIBED, refuse_mismatch
from pipeline.model.bundle import Bundle
from pipeline.model.registry import ModelFolder
from pipeline.sources.manifest import Manifest, read_manifest
from pipeline.storage.stores import Stores


@dataclass(frozen=True)
class Judgement:
    """What came of a protocol."""

    protocol: Protocol
    written: WrittenProtocol
    comparison: Comparison  # the new version first, then the best one where both could be compared
    criteria: Sequence[Criterion]
    best: Best


def manifest_of(protocol: Protocol, stores: Stores) -> Manifest:
    """The protocol's manifest. Raises InputError where its test images are other ones than the protocol is for."""
    manifest = read_manifest(protocol.manifest, stores)
    found = manifest.split_digest(protocol.split)
    if protocol.test_digest != found:
        said = f"the protocol says {protocol.test_digest[:12]}" if protocol.test_digest else "the protocol names none"
        raise InputError(
            f"{manifest.uri}: its {protocol.split} split has digest {found}, {said}; a protocol holds for the images "
            "it was written for: name the right manifest, or put `test_digest: " + found + "` there and say why"
        )
    return manifest


def best_beside(folder: ModelFolder, new: Bundle) -> tuple[Best, Bundle | None]:
    """The best model of now, if there is one, and its bundle where the new one can be compared with it."""
    pointer = folder.pointer()
    if pointer is None:
        return Best(None), None
    try:
        bundle = folder.best(pointer)
    except InputError as error:
        return Best(pointer.version, why_not=f"cannot be read: {error}", is_readable=False), None
    if bundle.info.identity() == new.info.identity():
        return Best(pointer.version, why_not=SAME), None
    if other := _other_question(new, bundle):
        return Best(pointer.version, why_not=f"cannot be compared: {other}", other_question=other), None
    try:
        return Best(pointer.version), bundle.verify()
    except InputError as error:
        return Best(pointer.version, why_not=f"cannot be compared: {error}"), None


def _other_question(new: Bundle, best: Bundle) -> str:
    """A sentence where the two were made for other classes or other images; else empty."""
    try:
        refuse_incomparable([new, best])
    except InputError as error:
        return str(error)
    one, other = new.info.unit, best.info.unit
    if one is not None and other is not None and one != other:
        return f"{new.uri} is for images of {DESCRIBED[one]}, {best.uri} for those of {DESCRIBED[other]}"
    return ""


@dataclass(frozen=True)
class Candidate:
    """A version that can be judged: with the best one of now, and its bundle beside it where both can be compared."""

    best: Best
    bundles: Sequence[Bundle]  # the new one first


def candidate(protocol: Protocol, manifest: Manifest, new: Bundle, folder: ModelFolder) -> Candidate:
    """Raises InputError where these images or these models cannot tell what the protocol asks, before any is read."""
    refuse_unknown(protocol, new.info)
    best, beside = best_beside(folder, new)
    bundles = [new] if beside is None else [new, beside]
    for bundle in bundles:
        refuse_mismatch(bundle.info.unit, manifest.info.unit, manifest.uri)
        refuse_contradictions(bundle.info, manifest)
    return Candidate(best, bundles)


def judge(
    ray: Any, protocol: Protocol, written: WrittenProtocol, manifest: Manifest, asked: Candidate, stores: Stores,
    **workers: Any,
) -> Judgement:  # fmt: skip
    """Measure and compare as the protocol says. `workers`: as `compare_on` takes them."""
    best = asked.best
    resampling = Resampling(protocol.bootstrap, protocol.confidence, protocol.seed)
    found = compare_on(ray, asked.bundles, manifest, protocol.split, stores, resampling, **workers)
    if len(asked.bundles) > 1:
        best = Best(best.version, dict(found.pairs[0].differences))
    return Judgement(protocol, written, found, criteria(protocol, found, best), best)
