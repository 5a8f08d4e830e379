"""What a run knows of a study, by name: sentences for documents, each with whether it answers the whole question.

What the run does not know is not there. No sentence guesses: an empty setting is left out.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from pipeline.evaluation.explanation import sentences
from pipeline.evaluation.names import MAIN_METRICS, METRIC_NAMES
from pipeline.evaluation.reach import temperature_of
from pipeline.evaluation.report import words
from pipeline.evaluation.report.plots import monitored
from pipeline.evaluation.result import Evaluation, kept_weights
from pipeline.evaluation.study.flow import part_size
from pipeline.images.unit import DESCRIBED
from pipeline.sources.manifest import SPLITS, Manifest, NearCopyCounts

_DEMOGRAPHIC = ("sex", "gender", "age", "diagnosis", "ethnicity", "race")
_RECIPE = ("epochs", "batch_size", "learning_rate", "optimizer", "unfreeze", "augment", "balance", "monitor", "seed")
_NO_GROUPS = ("subject", "class")  # tables of these say nothing of groups of people, or of places
_RULES = {
    "subjects": "no subject has images in two parts",
    "sites": "no site has images in two parts",
    "given": "parts were given by the source",
    "images": "parts were drawn by image: images of one subject may lie in several",
    "test": "all images are for testing",
}


@dataclass(frozen=True)
class Fact:
    text: str
    is_whole: bool = True  # False: a person has to add to it


Facts = dict[str, Fact]


def facts(found: Evaluation, protocol: Mapping[str, Any] | None = None, left_out: int = 0) -> Facts:
    """All that is known. `protocol`: uri, text and sha256 of a promotion protocol, where there is one; `left_out`: as
    `flow_of` takes it.
    """
    known = _of_data(found.manifest) | _of_model(found) | _of_result(found, left_out) | _of_figures(found)
    if protocol:
        told = f"Promotion protocol, SHA-256 {protocol['sha256']}, whole in the archive of promotions"
        known["protocol"] = Fact(told, is_whole=False)
    return {name: fact for name, fact in known.items() if fact.text}


def _of_data(manifest: Manifest) -> Facts:
    info = manifest.info
    parts = {split: part_size(manifest, split) for split in SPLITS}
    sizes = "; ".join(
        f"{split} {images:,} images" + (f" of {subjects:,} {info.units}" if subjects else "")
        for split, (images, subjects) in parts.items()
    )
    left = ", ".join(f"{count:,} {reason}" for reason, count in info.left_out.items())
    ignored = f"classes left out by choice: {', '.join(info.ignored)}" if info.ignored else ""
    by_table = "the folders" if info.labels_from == "paths" else info.labels_from
    sites = sorted(set(manifest.table["site"].drop_null().to_pylist()))
    unit = f"An image shows {DESCRIBED[info.unit]}" if info.unit else ""
    pseudonyms = "Paths and subjects are pseudonyms made with a secret key" if info.pseudonym_key_id else ""
    return {
        "source": Fact(f"{', '.join(info.source)}; manifest digest {info.digest}", is_whole=False),
        "left_out": Fact("; ".join(filter(None, [f"files left out: {left}" if left else "", ignored])), is_whole=False),
        "seen": Fact(unit, is_whole=False),
        "pseudonyms": Fact(pseudonyms, is_whole=False),
        "labels": Fact(f"Classes are those of {by_table}; who gave them is not known here", is_whole=False),
        "contradictions": Fact(
            f"{info.contradictions:,} images that two labels contradict are in no part" if info.contradictions else "",
            is_whole=False,
        ),
        "partitions": Fact(f"{sizes}. {info.split_reason}".rstrip(". ")),
        "disjoint": _disjoint(info.split_rule, info.near_copies),
        "sizes": Fact(f"{sizes}; no calculation of the size needed", is_whole=False),
        "sites": Fact(f"{len(sites)} sites: {', '.join(sites)}" if sites else "", is_whole=False),
        "classes": Fact(_classes(manifest), is_whole=False),
        "imbalance": Fact(_classes(manifest, "train"), is_whole=False),
    }


def _disjoint(rule: str, near: NearCopyCounts | None) -> Fact:
    """Parts that tear near copies apart are not shown to be apart: a person has to add to it."""
    if rule not in _RULES:
        return Fact("")
    if near is None:
        return Fact(_RULES[rule])
    if near.torn:
        told = f"{near.torn:,} of {near.pairs:,} pairs of near copies lie in two parts: figures are inflated"
        return Fact(f"{_RULES[rule]}; {told}", is_whole=False)
    return Fact(f"{_RULES[rule]}; {near.pairs:,} pairs of near copies were kept on one side")


def _classes(manifest: Manifest, split: str | None = None) -> str:
    rows = manifest.table if split is None else manifest.table.filter(pc.equal(manifest.table["split"], split))
    counts = sorted(Counter(rows["class_name"].drop_null().to_pylist()).items())
    where = f" in {split}" if split else ""
    return f"Images{where} by class: {', '.join(f'{name} {count:,}' for name, count in counts)}" if counts else ""


def _of_model(found: Evaluation) -> Facts:
    info, training = found.bundle.info, found.bundle.info.training
    recipe = ", ".join(f"{key} {training[key]}" for key in _RECIPE if training.get(key) is not None)
    weights = training.get("weights")
    packages = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    band = info.review_band
    decided = f"; decision at {found.threshold.value:.4f} ({found.threshold.rule})" if info.positive_classes else ""
    review = f"; from {band[0]:.4f} to {band[1]:.4f} the answer is 'review'" if band else ""
    network = f"{info.architecture}, {info.seen}, {info.outputs} outputs; weights {info.weights_sha256}"
    pixels = f"Decoded to RGB, {info.seen}; rules of digest {info.preprocessing_digest[:12]}"
    software = f"{found.facts['Versions']}; trained with {packages}" if packages else ""
    steps = f"{recipe}; all settings are in bundle.json" if recipe else ""
    return {
        "model": Fact(
            f"Image classifier on a neural network, {info.architecture}, telling {', '.join(info.classes)} apart",
            is_whole=False,
        ),
        "network": Fact(network),
        "tested": Fact(f"{info.name} / {info.version}, SHA-256 of all that decides {info.identity()}; {network}"),
        "pixels": Fact(pixels),
        "prepared": Fact(pixels, is_whole=False),
        "software": Fact(software),
        "devices": Fact(software, is_whole=False),
        "start": Fact(f"Weights began as {weights}" if weights else ""),
        "training": Fact(steps),
        "developed": Fact(f"{info.architecture}, {steps}" if steps else "", is_whole=False),
        "selection": Fact(_selection(found)),
        "ensemble": Fact(
            f"One model; logits averaged over {info.turns} turns of an image" if info.turns > 1 else "One model"
        ),
        "output": Fact(
            f"Probability of {', '.join(info.classes)}, logits divided by {info.temperature:.4f}{decided}{review}"
        ),
        "recalibration": Fact(f"{_chosen_on(found)}; nothing was changed after this evaluation"),
        "goal": Fact("Development and evaluation of an image classifier, or evaluation alone", is_whole=False),
        "availability": Fact(
            "The bundle holds weights, graph and settings; which of it is public is for a person", is_whole=False
        ),
        "blind": Fact("The model sees pixels alone: no label, name or other finding"),
    }


def _selection(found: Evaluation) -> str:
    kept = kept_weights(found.bundle.info)
    if kept is None:
        return ""
    why = "the last: no epoch was chosen" if kept.is_last else f"the best by {monitored(kept.monitor)}"
    return f"Weights of epoch {kept.epoch}, {why}"


def _chosen_on(found: Evaluation) -> str:
    """A threshold may have been chosen anew for this evaluation, on other scores than the temperature."""
    temperature, threshold = (
        f"{of.on} scores{' of its parent' if of.is_inherited else ''}"
        for of in (temperature_of(found.bundle.info), found.threshold)
    )
    if not found.bundle.info.positive_classes:
        return f"Temperature from {temperature}"
    if temperature == threshold:
        return f"Temperature and threshold from {threshold}"
    return f"Temperature from {temperature}, threshold from {threshold}"


def _of_result(found: Evaluation, left_out: int) -> Facts:
    outcomes, ood = found.outcomes, found.ood
    codes = sorted({error.code.value for error in outcomes.rejections})
    unread = f"{len(outcomes.rejections):,} images could not be read and are left out"
    by_others = left_out - len(outcomes.rejections)
    others = f"; {by_others:,} more by the other model, left out as well" if by_others > 0 else ""
    own = found.bundle.info.manifest_digest == found.manifest.info.digest
    shares = "; ".join(
        f"{name} ({len(rows)} groups)"
        for name, rows in found.metrics["slices"].items()
        if rows and name not in _NO_GROUPS
    )
    people = [name for name in found.metrics["slices"] if name.removeprefix("meta_").lower() in _DEMOGRAPHIC]
    review = found.metrics.get("review") or (found.metrics.get("disease") or {}).get("review")
    return {
        "missing": Fact(
            f"{unread}{': ' + ', '.join(codes) if codes else ''}{others}; images without a label are not measured"
        ),
        "internal": Fact("The test split of the manifest of training" if own and found.split == "test" else ""),
        "external": Fact(
            "" if own else "Images of another manifest than that of training; whether of another place, a person says",
            is_whole=False,
        ),
        "flow": Fact("flow.svg"),
        "demographics": Fact(f"By {', '.join(people)}: report.html, metrics.json" if people else "", is_whole=False),
        "slices": Fact(f"Figures by {shares}: metrics.json" if shares else "", is_whole=False),
        "kept": Fact("Every answer: predictions.parquet or comparison.parquet", is_whole=False),
        "robustness": Fact(_robustness(found, shares), is_whole=False),
        "explanation": Fact(_explanation(found), is_whole=False),
        "failures": Fact("Worst mistakes with pictures: report.html or comparison.html", is_whole=False),
        "limitations": Fact("; ".join(note.rstrip(".") for note in found.warnings), is_whole=False),
        "ood": Fact(f"{ood['told']} An image is {ood['rests_on']}" if ood else "", is_whole=False),
        "review": Fact(
            f"{review['images']:,} images in the review band, counted by the side they lie on" if review else ""
        ),
    }


def _robustness(found: Evaluation, shares: str) -> str:
    """Figures of groups, of images of which parts are hidden, and of disturbed ones, where these were measured."""
    told = [f"Figures by {shares}"] if shares else []
    hidden, disturbed = found.audit.record(), found.audit.robustness()
    if hidden["why_not"] is None:
        kinds = ", ".join(f"{row['name'].lower()} {words.with_interval(row)}" for row in hidden["rows"])
        told.append(f"{METRIC_NAMES[hidden['metric']]} of {hidden['images']:,} images by what is shown: {kinds}")
    if disturbed is not None:
        told += [f"{kind['name']}: {kind['told'].rstrip('.')}" for kind in disturbed["kinds"]]
    return f"{'; '.join(told)}: metrics.json" if told else ""


def _explanation(found: Evaluation) -> str:
    record = found.further.get("explanation")
    if record is None:
        return ""
    told = " ".join(sentences(record)) or "No check could be made."
    return f"Class-activation maps, checked on {record['images']:,} images. {told}"


def _of_figures(found: Evaluation) -> Facts:
    metrics, method = found.metrics, found.metrics["intervals"]
    disease = metrics.get("disease")
    told = [
        f"{METRIC_NAMES[key]} {words.with_interval(metrics['metrics'][key])}" for key in MAIN_METRICS[metrics["task"]]
    ]
    if disease:
        told += [f"{METRIC_NAMES[key]} of disease {words.with_interval(disease['metrics'][key])}"
                 for key in ("sensitivity", "specificity", "roc_auc")]  # fmt: skip
    names, table = metrics["class_names"], metrics["confusion"]
    cells = "; ".join(
        f"truly {name}: {', '.join(f'{other} {count:,}' for other, count in zip(names, row, strict=True))}"
        for name, row in zip(names, table, strict=True)
    )
    recalls = ", ".join(f"{row['class_name']} {words.number(row['recall']['value'])}" for row in metrics["per_class"])
    measures = ", ".join(METRIC_NAMES[name] for name in metrics["metrics"])
    uncertainty = f"{words.level(method['confidence'])} % intervals: {method['method']}"
    return {
        "measures": Fact(measures),
        "uncertainty": Fact(uncertainty),
        "methods": Fact(f"{measures}. {uncertainty}"),
        "performance": Fact("; ".join(told)),
        "confusion": Fact(cells),
        "per_class": Fact(f"Found, by class: {recalls}", is_whole=False),
    }
