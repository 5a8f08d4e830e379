"""What stands beside the figures of a split: what speaks against them, and what someone needs to repeat them."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow.compute as pc

from pipeline import __version__
from pipeline.base.text import folded
from pipeline.evaluation.calibration import kept_of_parent
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.ood import flagged_in
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.reach import Chosen
from pipeline.evaluation.recognized import Recognized
from pipeline.images.unit import DESCRIBED
from pipeline.model.bundle import Bundle, BundleInfo
from pipeline.sources.manifest import SPLITS, Manifest

_NAMED = 8  # sites in one line
_PACKAGES = ("ray", "onnxruntime", "numpy")


def caveats(split: str, bundle: Bundle, manifest: Manifest, outcomes: Outcomes, recognized: Recognized) -> list[str]:
    """What the data says against the figures, each a sentence."""
    notes = list(manifest.info.warnings)
    if split != "test":
        notes.append(f"This is the {split} split: the model, its threshold or its epoch were chosen by it.")
    judged = bundle.info.against_chance
    if judged is not None and not judged.is_shown:
        notes.append(f"The model was published as {judged}.")
    shipped = bundle.info.calibration.get("shipped")
    if shipped is not None and not shipped["is_alike"]:
        notes.append("The model's scores differ from the out-of-fold ones that its threshold comes from.")
    if bundle.info.manifest_digest and bundle.info.manifest_digest != manifest.info.digest:
        notes.append(f"The manifest is not the one of training: {_among(recognized)}.")
    notes += _opposites(bundle.info, manifest, split)
    if (of_teacher := _of_teacher(bundle, manifest)) is not None:
        notes.append(of_teacher)
    if (bundle.info.unit is None) != (manifest.info.unit is None):
        known, unknown = ("manifest", "model") if bundle.info.unit is None else ("model", "manifest")
        unit = DESCRIBED[bundle.info.unit or manifest.info.unit]
        notes.append(f"An image of the {known} shows {unit}; of the {unknown} that is not known, so it is not checked.")
    found = flagged_in(bundle.info.ood, outcomes.is_ood)
    if found is not None and found["is_far_above"]:
        notes.append(found["told"])
    if outcomes.rejections:
        codes = ", ".join(sorted({error.code.value for error in outcomes.rejections}))
        count = f"{len(outcomes.rejections)} of {len(outcomes.all)}"
        notes.append(f"{count} images could not be read and are left out: {codes}.")
    return notes


def _among(recognized: Recognized) -> str:
    """What is known of images of training among those of another manifest."""
    if recognized.why_not:
        return f"whether images of training are among those measured here is not known, {recognized.why_not}"
    found = f"{recognized.count:,} of the images measured here" if recognized.count else "none of the images measured"
    return f"{found} could be known again by bytes or looks; others of the same patients or slides may be among them"


def _opposites(info: BundleInfo, manifest: Manifest, split: str) -> list[str]:
    """A sentence where classes mean disease to the model or to the manifest, and the opposite to the other."""
    sides = info.class_labels if info.task == "binary" else {k: int(k in info.positive_classes) for k in info.classes}
    if len(set(sides.values())) < 2:  # not known, or nothing is decided
        return []
    meant = {folded(name): label for name, label in sides.items()}
    table = manifest.table.filter(pc.equal(manifest.table["split"], split))
    pairs = table.group_by(["class_name", "label"]).aggregate([]).to_pylist()
    known = sorted((row["class_name"], row["label"]) for row in pairs if None not in row.values())
    other = [(name, label) for name, label in known if meant.get(folded(name), label) != label]
    if not other:
        return []
    named = ", ".join(f"{name} ({'diseased' if label else 'healthy'} here)" for name, label in other[:_NAMED])
    counted = "these labels" if info.task == "binary" else "what the model was trained to take them for"
    return [
        f"Labels here are the opposite of those of training, of {named}: the figures count by {counted}. If that is a "
        "mistake, mend the labels; `leukoray evaluate --external --classes` says what a class stands for."
    ]


def _of_teacher(bundle: Bundle, manifest: Manifest) -> str | None:
    """A sentence where what the model was taught may come from images that are measured; else None."""
    teacher = bundle.info.training.get("teacher")
    if teacher is None or teacher["manifests"] == [manifest.info.digest]:
        return None
    return (
        f"The model learnt from the answers of {teacher['name']} / {teacher['version']}, which has learnt from another "
        "manifest: images of that one may be among those measured here."
    )


def basis(split: str, bundle: Bundle, manifest: Manifest, recognized: Recognized) -> str:
    """What may be said of the images measured: that they took no part in training only where it is known."""
    if split != "test":
        return f" of the {split} split"
    if recognized.count:
        return f", {recognized.count:,} of which took part in making the model"
    if bundle.info.manifest_digest != manifest.info.digest or _of_teacher(bundle, manifest) is not None:
        return "; whether the model has seen them in training is not known"
    if manifest.info.split_rule == "images":
        return " that took no part in training, though other images of the same patients may have"
    return " that took no part in training"


def provenance(
    bundle: Bundle, manifest: Manifest, threshold: Chosen, resampling: Resampling, recognized: Recognized
) -> dict[str, str]:
    """What someone needs to repeat or to trust the figures, by name, in the order to be shown."""
    info = bundle.info
    subjects = {split: len({row.subject_id for row in manifest.split(split)} - {None}) for split in SPLITS}
    known, unit = any(subjects.values()), manifest.info.units.capitalize()
    packages = (f"{name} {version(name)}" for name in _PACKAGES)
    return {
        "Model": f"{info.name} / {info.version}",
        "Bundle": bundle.uri,
        "Architecture": f"{info.architecture}, {info.seen}",
        "Model SHA-256": info.identity(),
        "Trained": info.created_at,
        "Manifest": manifest.uri,
        "Manifest digest": manifest.info.digest,
        "An image shows": DESCRIBED[manifest.info.unit],
        "Source": ", ".join(manifest.info.source),
        **({"Images by site": sites} if (sites := _sites(manifest)) else {}),
        "Split rule": manifest.info.split_rule or info.split_rule,
        "Images in train / validation / test": " / ".join(f"{len(manifest.split(split)):,}" for split in SPLITS),
        f"{unit} in train / validation / test": " / ".join(map(str, subjects.values())) if known else "not known",
        "Images of training among those measured": str(recognized),
        **({"Threshold": f"{threshold.value:.4f} ({threshold.rule})"} if info.positive_classes else {}),
        "Temperature": f"{info.temperature:.4f}",
        "Calibrated on": f"{info.calibrated_on} scores{kept_of_parent(info.calibration)}",
        "Resampling": f"{resampling.replicates} replicates, seed {resampling.seed}",
        "Evaluated": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Versions": ", ".join([f"leukoray {__version__}", *packages]),
    }


def _sites(manifest: Manifest) -> str:
    """'north 1,120, south 1,121', the largest first; empty where none is known."""
    counts = Counter(manifest.table["site"].drop_null().to_pylist()).most_common()
    more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
    return ", ".join(f"{site} {count:,}" for site, count in counts[:_NAMED]) + more


def data_facts(manifest: Manifest) -> Mapping[str, Any]:
    """What a model card says of the data."""
    facts = {"Source": ", ".join(manifest.info.source) or "–", "Layout": manifest.info.layout or "–"}
    facts |= {"Sites": sites} if (sites := _sites(manifest)) else {}
    return facts | {f"Images in {split}": f"{len(manifest.split(split)):,}" for split in SPLITS}
