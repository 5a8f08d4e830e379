"""A version of a model for another laboratory: its parent's network, or a new head on it, with what `adapt` found."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from pipeline.base.errors import InputError, PlatformError
from pipeline.evaluation.abstention import review_rule
from pipeline.evaluation.adapt import Adapted, Asked, Change, Local, carried
from pipeline.evaluation.calibration import (
    Calibration,
    Spread,
    Threshold,
    inherited_in,
    threshold_for,
    threshold_limits,
)
from pipeline.evaluation.chance import against_chance
from pipeline.evaluation.definitions import Ints, binary_metrics
from pipeline.evaluation.intervals import called_units, subject_codes
from pipeline.evaluation.report.card import render_card
from pipeline.evaluation.temperature import Temperature
from pipeline.model.bom import bill_of_materials
from pipeline.model.bundle import (
    BOM,
    CARD,
    GOLDEN,
    GRAPH,
    HISTORY,
    SKETCH,
    WEIGHTS,
    Bundle,
    BundleInfo,
    Parent,
    write_bundle,
)
from pipeline.model.cell_classifier import CellClassifier, WithFeatures
from pipeline.model.export import check_parity, to_onnx, to_safetensors
from pipeline.model.prediction import probabilities
from pipeline.model.registry import ModelFolder, new_version
from pipeline.model.review import ReviewRule
from pipeline.model.sketch import Entry, read_sketch
from pipeline.model.torch_engine import load_model
from pipeline.model.trainable import linear_head
from pipeline.sources.manifest import Manifest
from pipeline.storage.filled_in import sealed
from pipeline.storage.uris import join
from pipeline.training.golden_images import golden_file
from pipeline.training.judgement import Judgement
from pipeline.training.validation import Scores

LOCAL_REPORT = "report/local.json"
KEPT = "as of its parent: nothing held out speaks for another"
_CARRIED = "as of its parent, where it is {:.4f}, at the new probabilities: nothing held out speaks for another"


@dataclass(frozen=True)
class Seen:
    """The local images, as they were seen: in the order of ids, those that could be read."""

    local: Local
    image_ids: Ints  # (N,)
    subjects: list[str | None]
    entries: list[Entry | None]  # of the parent's sketch


def changes(parent: BundleInfo, adapted: Adapted) -> tuple[str, ...]:
    """What another version would have that the parent has not, in words; empty where nothing helps."""
    change, found = adapted.change, []
    if change.temperature != parent.temperature:
        found.append("temperature")
    found += [change.kind] if change.kind in ("shifts", "head") else []
    if parent.positive_classes and adapted.threshold != parent.threshold:
        found += ["threshold"]
    if found and (parent.review_band or parent.review):
        found += ["review band"]
    return tuple(found)


def publish_adapted(
    parent: Bundle, adapted: Adapted, asked: Asked, seen: Seen, manifest: Manifest, folder: ModelFolder,
    report: Mapping[str, Any],
) -> Bundle:  # fmt: skip
    """Write `<folder>/<version>/`, which names its parent; best.json stays. `report` is kept as LOCAL_REPORT."""
    local, change = seen.local, adapted.change
    files = {name: parent.file(name) for name in parent.info.digests} | _history(parent)
    if change.kind in ("shifts", "head"):
        files |= _network(parent, change)
    if (sketch := _sketch(parent, seen, learns=change.kind == "head")) is not None:
        files[SKETCH] = sketch
    codes, unit = subject_codes(seen.subjects, len(local))
    units, called = int(codes.max()) + 1, called_units(unit, manifest.info.units)
    judged = _judged(parent.info, adapted, asked, seen, units, unit, manifest.info.units)
    ancestor = Parent(
        name=parent.info.name, version=parent.info.version, weights_sha256=parent.info.weights_sha256,
        model_sha256=parent.info.identity(), changed=changes(parent.info, adapted), images=len(local), units=units,
        called=called, manifest_digest=manifest.info.digest, source=tuple(manifest.info.source),
    )  # fmt: skip
    band = {} if parent.info.review else {"review_band": _band(parent, adapted, local)}
    fields = (
        judged.fields()
        | band
        | {
            "parent": ancestor,
            "training": parent.info.training | _rules(judged, asked),
            "weights_sha256": hashlib.sha256(files[WEIGHTS]).hexdigest(),
            "graph_sha256": hashlib.sha256(files[GRAPH]).hexdigest(),
            "sketch_sha256": "",
            "synthetic": parent.info.synthetic or manifest.info.synthetic,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    info = parent.info.model_copy(update=fields)
    info = info.model_copy(update={"version": new_version(info.identity())})
    files |= {GOLDEN: golden_file(info, files)}
    files |= {BOM: bill_of_materials(info, files)}
    files |= {CARD: sealed(render_card(info)).encode(), LOCAL_REPORT: json.dumps(report, indent=2).encode()}
    return write_bundle(join(folder.uri, info.version), info, files, folder.stores)


def _band(parent: Bundle, adapted: Adapted, local: Local) -> tuple[float, float] | None:
    """The review band of a version without a promise: where it lies among the new probabilities, as far as their order
    is the old one, and from there as a new threshold moves it.
    """
    info = parent.info
    if info.review_band is None or not info.positive_classes:
        return info.review_band
    if not adapted.change.keeps_order:
        return parent.with_threshold(adapted.threshold).info.review_band
    low, cut, high = (
        carried(end, local, adapted.change, adapted.values)
        for end in (info.review_band[0], info.threshold, info.review_band[1])
    )
    if not adapted.has_new_threshold:
        return low, high
    there = info.model_copy(update={"threshold": cut, "review_band": (low, high)})
    return replace(parent, info=there).with_threshold(adapted.threshold).info.review_band


def _history(parent: Bundle) -> dict[str, bytes]:
    is_there = parent.stores.of(parent.uri).head(join(parent.uri, HISTORY)) is not None
    return {HISTORY: parent.file(HISTORY)} if is_there else {}


def _network(parent: Bundle, change: Change) -> dict[str, bytes]:
    """Weights and graph whose logits, divided by the temperature, are those of the change."""
    model = load_model(parent.info, parent.file(WEIGHTS))
    head = linear_head(model)
    if head is None:
        raise InputError(
            f"bundle {parent.uri}: its head is no linear layer, so only its temperature can be another one"
        )
    with torch.no_grad():
        head.bias.add_(torch.from_numpy(change.shift * change.temperature))
        if change.weight is not None:
            head.weight.add_(torch.from_numpy(change.weight * change.temperature))
    patched = _patched(parent.file(GRAPH), model, parent.info.input_size)
    return {WEIGHTS: to_safetensors(model), GRAPH: patched or to_onnx(model, parent.info.input_size)}


def _patched(graph: bytes, model: CellClassifier, input_size: int) -> bytes | None:
    """The parent's graph with the new head, proven equal to the network: an export takes seconds. None where it names
    its head otherwise.
    """
    head, proto = linear_head(model), onnx.load_from_string(graph)
    assert head is not None, "asked before"
    places = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, values in (("head.weight", head.weight), ("head.bias", head.bias)):
        found = places.get(name)
        if found is None or tuple(found.dims) != tuple(values.shape):
            return None
        found.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.detach().numpy(), np.float32), name))
    made: bytes = proto.SerializeToString()
    try:
        check_parity(WithFeatures(model).eval(), made, input_size)
    except PlatformError:  # another name for another thing: exported anew
        return None
    return made


def _sketch(parent: Bundle, seen: Seen, *, learns: bool) -> bytes | None:
    """The parent's with the local images: chosen by, or learnt from. None where the parent has none."""
    sketch = read_sketch(parent)
    if sketch is None:
        return None
    entries = [entry for entry in seen.entries if entry is not None]
    return sketch.extended("train" if learns else "validation", entries).packed()


def _judged(
    parent: BundleInfo, adapted: Adapted, asked: Asked, seen: Seen, units: int, unit: str, called: str
) -> Judgement:
    """What a bundle says of its calibration and worth, by the local images, of a new head by held-out ones."""
    local, temperature = seen.local, adapted.change.temperature
    threshold, spread = _threshold(parent, adapted, asked, seen)
    kind = adapted.change.kind
    why = KEPT if kind == "as it was" else f"{kind}, by held-out likelihood"
    is_kept = {"temperature": kind == "as it was", "threshold": not adapted.has_new_threshold}
    earlier = inherited_in(parent.calibration)
    rule = Calibration(
        on="local",
        temperature=Temperature(temperature, why),
        threshold=threshold,
        diseased=None if local.diseased is None else local.diseased == 1,
        values=adapted.values,
        temperature_spread=Spread(temperature, None, None),
        threshold_spread=spread,
        units=units,
        unit=unit,
        called=called,
        inherited={name: earlier.get(name, parent.calibrated_on) for name, kept in is_kept.items() if kept},
    )
    scores = Scores(seen.image_ids, local.targets, (adapted.logits * temperature).astype(np.float32))
    worth = against_chance(
        local.targets, probabilities(scores.logits, temperature), seen.subjects, task=parent.task, called=called
    )
    return Judgement(parent.task, scores, rule, worth, None, seen.subjects, review=_review(parent, rule, seen, called))


def _review(parent: BundleInfo, rule: Calibration, seen: Seen, called: str) -> ReviewRule | None:
    """For the error that the parent promised, by the local images; with few subjects it says that it promises none."""
    if parent.review is None or rule.diseased is None:
        return None
    return review_rule(
        rule.diseased.astype(np.int64), rule.values, seen.subjects, parent.review.error, on="local", called=called
    )


def _threshold(
    parent: BundleInfo, adapted: Adapted, asked: Asked, seen: Seen
) -> tuple[Threshold | None, Spread | None]:
    truth = seen.local.diseased
    if truth is None:
        return None, None
    found = binary_metrics(truth, adapted.values, adapted.threshold)
    both = found["sensitivity"], found["specificity"]
    if not adapted.has_new_threshold:
        why = KEPT if adapted.threshold == parent.threshold else _CARRIED.format(parent.threshold)
        return Threshold(adapted.threshold, why, *both), Spread(adapted.threshold, None, None)
    target, costs = asked.target_sensitivity, asked.costs
    rule = threshold_for(truth, adapted.values, target, costs, on="local").rule
    spread = threshold_limits(truth, adapted.values, seen.subjects, target, asked.seed, costs=costs)
    return Threshold(adapted.threshold, rule, *both), spread


def _rules(judged: Judgement, asked: Asked) -> dict[str, Any]:
    """How temperature and threshold came about: `asked` has the parent's rule, or what stands in its place."""
    rule = judged.rule
    return {
        "temperature_rule": rule.temperature.reason,
        "threshold_rule": rule.threshold.rule if rule.threshold else "",
        "target_sensitivity": asked.target_sensitivity,
        "costs": None if asked.costs is None else str(asked.costs),
    }


def has_linear_head(bundle: Bundle) -> bool:
    """Whether shifts and a head can be made part of its network."""
    return linear_head(load_model(bundle.info, bundle.file(WEIGHTS))) is not None


def local_of(
    info: BundleInfo, targets: Sequence[int], logits: Any, features: Any, subjects: Sequence[str | None]
) -> Local:
    """What `adapt` takes."""
    codes, _ = subject_codes(list(subjects), len(targets))
    return Local(
        np.asarray(logits, np.float64), np.asarray(targets, np.int64), codes, info.diseased_side, info.temperature,
        info.threshold, None if features is None else np.asarray(features, np.float32),
    )  # fmt: skip
