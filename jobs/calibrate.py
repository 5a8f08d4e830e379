"""`leukoray calibrate`: a model for another laboratory, by 10 to 200 of its own labelled images, as a new version."""

if __name__ == "__main__":  # ahead of imports that need the extra `train`: one that is missing is told in a sentence
    from jobs.cli import as_program

    as_program("calibrate")

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from jobs.common import Clock, job, show_config, writing_stores
from jobs.config import NamingConfig, positional
from jobs.elsewhere import labelled_elsewhere, record_of
from jobs.record import Account, recorded
from pipeline.base.cluster import connected
from pipeline.base.errors import IncompleteError, InputError
from pipeline.evaluation.adapt import Adapted, Asked, adapt
from pipeline.evaluation.adapt_curve import Point, learning_curve, refuse_counts, refuse_too_few
from pipeline.evaluation.external import rule_of
from pipeline.evaluation.intervals import called_units, subject_codes
from pipeline.evaluation.outcomes import true_class
from pipeline.evaluation.predict import is_labelled
from pipeline.evaluation.report import elsewhere, local, words
from pipeline.evaluation.sight import Sight, see_all
from pipeline.model.bundle import Bundle, BundleInfo
from pipeline.model.predictor import Predictor
from pipeline.model.promotions import move_by_hand, user_name
from pipeline.model.registry import ModelFolder, resolve
from pipeline.sources.manifest import ManifestRow
from pipeline.sources.pseudonyms import names_of
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

if TYPE_CHECKING:
    from pipeline.training.adapted import Seen

EXAMPLES = """examples:
  leukoray calibrate /data/elsewhere --model out/models --out out/models
  leukoray calibrate /data/elsewhere --labels labels.csv --model out/models --out out/models --target-sensitivity 0.95
  leukoray calibrate out/manifest-elsewhere --model out/models --out out/models --adapt head --promote

Research software, not a medical device."""


class CalibrateConfig(NamingConfig):
    """Temperature, threshold and on demand the head of a model by some labelled images of another laboratory."""

    source: str = positional(description="labelled images: a manifest, or any source that ingest reads")
    model: str = Field(description="bundle or registry folder of the model, local or s3://")
    out: str = Field(description="registry for the new version, under the model's name; may be the model's own")
    labels: str | None = Field(None, description="CSV or Parquet with labels, as of ingest --labels")
    classes: list[str] = Field(
        [], description="'theirs=ours' pairs of class names, or YAML files as of ingest --classes"
    )
    target_sensitivity: float | None = Field(
        None, gt=0, le=1, description="choose the threshold for this sensitivity (default: the rule of the model's own)"
    )
    adapt: Literal["none", "head"] = Field(
        "none", description="head: let the head learn from these images too, held near the old one"
    )
    promote: bool = Field(False, description="point best.json to the new version")
    seed: int = Field(0, ge=0, description="of folds and of the draws of the learning curve")
    max_error_share: float = Field(0.05, ge=0, le=1, description="share of unreadable images above which to fail")


def main(config: CalibrateConfig) -> None:
    clock = Clock()
    stores = writing_stores(config, config.out, single_writer=False)
    show_config(config, names_of(stores))
    with recorded("calibrate", config, stores) as kept:
        _calibrate(config, stores, clock, kept)


def _calibrate(config: CalibrateConfig, stores: Stores, clock: Clock, kept: Account) -> None:
    parent = resolve(config.model, stores).verify()
    manifest, matched = labelled_elsewhere(
        config.source, parent.info, stores, labels=config.labels, classes=config.classes
    )
    folder = ModelFolder(join(absolute(config.out), parent.info.name), stores)
    info = parent.info
    folder.refuse_other_task(info.task, info.classes, info.positive_classes, info.unit)
    print("\n".join(elsewhere.about_classes({**record_of(matched), "one_side": None, "absent": []})))
    _refuse_labels(info, [row for row in manifest.split("test") if is_labelled(info, row)], manifest.info.units)
    with connected(config.address, config.num_cpus) as ray:
        sights = see_all(ray, parent, manifest, "test", stores)
    _refuse_unreadable(sights, config.max_error_share)
    from pipeline.training.adapted import changes, publish_adapted  # imports torch, which takes seconds

    learnt = _refuse_learnt(info, sights, manifest.info.units)
    seen = _seen(info, [sight for sight in sights if not sight.is_learnt])
    units = called_units(subject_codes(seen.subjects, len(seen.subjects))[1], manifest.info.units)
    asked, notes = _asked(config, parent, seen, units)
    found, curve = adapt(seen.local, asked), learning_curve(seen.local, asked)
    print("\n".join(["", *local.tried(found), *local.threshold(found, info), "", *local.curve(curve, units), ""]))
    lost = local.forgotten(found, seen.local, info.classes)
    for note in [*manifest.info.warnings, *notes, *learnt, *lost, *_notes(parent, seen, sights, units)]:
        print(f"note: {note}")
    changed = changes(info, found)
    if not changed:
        print("Nothing held out speaks for a change: the model stays as it is, and no version is published.")
        return
    report = _report(found, curve, record_of(matched))
    bundle = publish_adapted(parent, found, asked, seen, manifest, folder, report)
    counts = {"images": len(sights), "read": len(seen.local), "learnt_from": sum(sight.is_learnt for sight in sights)}
    kept.keep(bundle.uri, counts, manifest=manifest.info.digest, model=bundle.info.identity())
    Predictor(bundle, engine="onnx").prove()
    if info.subject_rules is not None:
        print("note: what the model says of subjects was fitted to other probabilities: the new version says nothing")
    print(f"bundle {bundle.uri}: {', '.join(changed)} of {info.name} / {info.version} changed")
    if config.promote:
        move_by_hand(folder, bundle, user_name(), "leukoray calibrate --promote")
        print(f"{folder.uri}: best is now {bundle.info.version}")
    print(f"{words.NOT_A_DEVICE}\n{clock.seconds:.0f} s. Next, on other images of that laboratory: leukoray evaluate "
          f"SOURCE --external --model {bundle.uri}")  # fmt: skip


def _refuse_labels(info: BundleInfo, rows: Sequence[ManifestRow], called: str) -> None:
    """Raise InputError where the labels alone are too few, before any image is read."""
    codes, unit = subject_codes([row.subject_id for row in rows], len(rows))
    refuse_counts(
        np.array([true_class(info, row) for row in rows], np.int64), codes, info.diseased_side, info.classes,
        called_units(unit, called),
    )  # fmt: skip


def _refuse_learnt(info: BundleInfo, sights: Sequence[Sight], called: str) -> list[str]:
    """What is left out since the model learnt from it, a note. Raises InputError where the others are too few."""
    count = sum(sight.is_learnt for sight in sights)
    if not count:
        return []
    said = f"{count:,} of {len(sights):,} images are among those that the model learnt from, byte by byte"
    try:
        _refuse_labels(info, [s.row for s in sights if s.rejected is None and not s.is_learnt], called)
    except InputError as error:
        raise InputError(
            f"{said}, so it answers them better than any others, and they tell no temperature and no threshold; "
            f"without them: {error}"
        ) from error
    return [f"{said}: they are left out"]


def _refuse_unreadable(sights: Sequence[Sight], share: float) -> None:
    lost = [sight.rejected for sight in sights if sight.rejected is not None]
    if len(lost) == len(sights):
        raise InputError(f"not one of {len(sights)} labelled images could be read ({lost[0]}); check the source")
    if len(lost) > share * len(sights):
        codes = ", ".join(sorted({str(error.code) for error in lost if error is not None}))
        raise IncompleteError(
            f"{len(lost)} of {len(sights)} images could not be read ({codes}), more than --max-error-share {share:g}"
        )


def _seen(info: BundleInfo, sights: Sequence[Sight]) -> "Seen":
    from pipeline.training.adapted import Seen, local_of

    read = [sight for sight in sights if sight.rejected is None]
    targets, subjects = [true_class(info, sight.row) for sight in read], [sight.row.subject_id for sight in read]
    has_features = all(sight.features is not None for sight in read)
    features = [sight.features for sight in read] if has_features else None
    of_local = local_of(info, targets, [sight.logits for sight in read], features, subjects)
    ids = [int(sight.row.image_id) for sight in read]
    return Seen(of_local, np.array(ids, np.int64), subjects, [sight.entry for sight in read])


def _asked(config: CalibrateConfig, parent: Bundle, seen: "Seen", units: str) -> tuple[Asked, list[str]]:
    """What is to be tried, and what these images are too few for. Raises InputError where they carry nothing."""
    from pipeline.training.adapted import has_linear_head

    adapts, info = config.adapt == "head", parent.info
    is_linear = has_linear_head(parent)
    if adapts and not is_linear:
        raise InputError(f"model {info.version}: the head of {info.architecture} is no linear layer; leave --adapt out")
    if adapts and seen.local.features is None:
        raise InputError(f"model {info.version}: its graph, of an older version, gives no features; publish it again")
    notes = refuse_too_few(seen.local, info.classes, units)
    target, costs = rule_of(info)
    if config.target_sensitivity is not None:
        target, costs = config.target_sensitivity, None
    if not is_linear:
        notes.append(f"the head of {info.architecture} is no linear layer: no shift of classes is tried")
    return Asked(adapts and not notes, not notes, target, costs, config.seed), notes


def _notes(parent: Bundle, seen: "Seen", sights: Sequence[Sight], units: str) -> list[str]:
    found = []
    if not parent.has_sketch:
        found.append("whether images of its training are among these is not known: the bundle has no sketch of them")
    if known := sum(sight.met is not None and not sight.is_learnt for sight in sights):
        found.append(
            f"{known:,} of {len(sights):,} images look like some of its training, or chose its epoch, temperature or "
            "threshold: the gains may be other ones on images that it has not met"
        )
    if units == "images":
        found.append(
            "no subject is known: images of one patient lie on both sides of each draw, so the gains look larger than "
            "they are on other patients"
        )
    flagged = [sight.is_ood for sight in sights if sight.is_ood is not None]
    if any(flagged):
        found.append(
            f"{sum(flagged):,} of {len(flagged):,} images look unlike those that the model learnt from; the new "
            "version keeps that limit and flags such images on"
        )
    if (count := len(seen.local)) > 200:
        found.append(f"{count:,} images: of so many, training learns more than a calibration")
    return found


def _report(found: Adapted, curve: Sequence[Point], matched: dict[str, object]) -> dict[str, object]:
    return {
        **matched,
        "taken": found.change.kind,
        "tried": [asdict(one) for one in found.tried],
        "threshold": {"value": found.threshold, "is_new": found.has_new_threshold},
        "learning_curve": [point.record() for point in curve],
    }


command = job("calibrate", CalibrateConfig, main, EXAMPLES)
