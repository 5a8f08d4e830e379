"""What a model said of a split: predictions, metrics, curves, worst mistakes, from the outcome of every row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected, InputError, UsageError
from pipeline.evaluation.calibration import Threshold, threshold_for
from pipeline.evaluation.chance import METHODS, against_chance_of_present
from pipeline.evaluation.intervals import Resampling, called_units
from pipeline.evaluation.metrics import evaluate_binary, evaluate_multiclass
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.predict import LOOKS, Outcome
from pipeline.evaluation.report.curves import binary_curves, multiclass_curves
from pipeline.evaluation.slices import groups_of, thirds, worth_a_table
from pipeline.images.load import load_image
from pipeline.images.remarks import count_kinds
from pipeline.model.bundle import BundleInfo, class_columns
from pipeline.model.overlay import overlaid, told
from pipeline.model.prediction import Prediction
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import ManifestRow
from pipeline.storage.stores import Stores
from pipeline.storage.uris import short_name

if TYPE_CHECKING:
    from pipeline.model.class_maps import ClassMaps  # onnx: not every process needs it

THUMBNAIL = 160  # pixels, square


class Outcomes:
    """All outcomes of one split, in the order of image ids, so that nothing depends on which worker was first."""

    def __init__(self, info: BundleInfo, outcomes: Iterable[Outcome], further: pa.Table | None = None) -> None:
        """`further`: columns of the manifest beside its own, with `image_id`."""
        self.info = info
        self.all = sorted(outcomes, key=lambda outcome: int(outcome.row.image_id))
        self.scored = [outcome for outcome in self.all if isinstance(outcome.result, Prediction)]
        self.rejections = [outcome.result for outcome in self.all if isinstance(outcome.result, ImageRejected)]
        if not self.scored:
            first = self.rejections[0].message if self.rejections else "no image has an answer of each model"
            raise InputError(f"not one image of the split could be evaluated ({first}); check the source")
        said = [outcome.result for outcome in self.scored if isinstance(outcome.result, Prediction)]
        self.truth = np.array([true_class(info, outcome.row) for outcome in self.scored])
        self.classes = np.array([prediction.classes for prediction in said])  # (N, C)
        self.probability = np.array([prediction.probability for prediction in said])  # (N,)
        flags = [prediction.is_ood for prediction in said]
        self.is_ood = np.array(flags, bool) if None not in flags else None  # (N,); None where the model has no limit
        self.subjects: list[str | None] = [outcome.row.subject_id for outcome in self.scored]
        self._further = self._in_order(further) if further is not None else {}

    def _in_order(self, further: pa.Table) -> dict[str, pa.Array]:
        """Name -> its values, one an outcome of `all`."""
        ids = pa.array([outcome.row.image_id for outcome in self.all], pa.int64())
        rows = pc.index_in(ids, further["image_id"].combine_chunks())
        return {name: further[name].take(rows) for name in further.column_names if name != "image_id"}

    @property
    def remarks(self) -> dict[str, int]:
        """Images by what was noticed about them."""
        return dict(count_kinds(outcome.remark for outcome in self.scored if outcome.remark))

    @property
    def diseased(self) -> NDArray[np.int64] | None:
        """1 where the true class means disease (N,); None where no class does, or all do."""
        positive = self.info.diseased_side
        return np.isin(self.truth, positive).astype(np.int64) if positive else None

    def metrics(self, threshold: float, resampling: Resampling, units: str = "subjects") -> dict[str, Any]:
        """The dictionary of `evaluate_binary` or `evaluate_multiclass`, with `disease` where it applies."""
        info, diseased = self.info, self.diseased
        options: dict[str, Any] = {"subjects": self.subjects, "slices": self.slices()}
        options |= {"resampling": resampling, "units": units}
        rule: dict[str, Any] = {
            "threshold": threshold,
            "review_band": info.review_band if threshold == info.threshold else None,
            "review": info.review,
        }
        judged = {"against_chance": self._against_chance(units)}
        if info.task == "binary":
            return evaluate_binary(self.truth, self.classes[:, 1], class_names=info.classes, **rule, **options) | judged
        result = evaluate_multiclass(self.truth, self.classes, class_names=info.classes, **options) | judged
        if diseased is not None:
            result["disease"] = evaluate_binary(diseased, self.probability, **rule, **options)
        return result

    def _against_chance(self, units: str) -> dict[str, Any] | None:
        """`AgainstChance` of these images, among the classes that they have, and by which `method`.

        None where the classes are fewer than two.
        """
        found = against_chance_of_present(self.truth, self.classes, self.subjects, task=self.info.task, called=units)
        if found is None:
            return None
        called = called_units(found.unit, found.called)
        return found.model_dump() | {"method": METHODS[found.metric].format(called=called)}

    def threshold_for(self, target_sensitivity: float) -> Threshold:
        """The operating point that reaches a sensitivity. Raises UsageError where no class means disease."""
        if self.diseased is None:
            raise UsageError("--target-sensitivity: this model's classes do not say which mean disease; leave it out")
        return threshold_for(self.diseased, self.probability, target_sensitivity)

    def curves(self, resampling: Resampling) -> dict[str, Any]:
        over, cut = (self.subjects, resampling), self.info.threshold
        if self.info.task == "binary":
            return binary_curves(self.truth, self.classes[:, 1], *over, threshold=cut)
        curves = multiclass_curves(self.truth, self.classes, self.info.classes, *over)
        if self.diseased is not None:
            curves["disease"] = binary_curves(self.diseased, self.probability, *over, threshold=cut)
        return curves

    def slices(self) -> dict[str, list[str | None]]:
        """The columns worth a table: those with more than one value."""
        columns = self._own_columns()
        sites = {"site": columns.pop("site")}
        if self.info.task == "multiclass":
            del columns["class"]
        further = {name: self._further_values(name) for name in self._further}
        columns |= worth_a_table({name: values for name, values in further.items() if name not in columns})
        for k, name in enumerate(LOOKS):
            columns.setdefault(name, self._looks(k))
        return {name: values for name, values in (sites | columns).items() if len(set(values)) > 1}

    def column(self, name: str) -> list[str | None] | None:
        """The group of a column that each image scored lies in (N,), of whatever number, None where that is unknown.

        None where there is no such column.
        """
        own = self._own_columns()
        if name in own:
            return own[name]
        if name in self._further:
            return groups_of(self._further_values(name))
        return self._looks(list(LOOKS).index(name)) if name in LOOKS else None

    def _own_columns(self) -> dict[str, list[str | None]]:
        return {
            "subject": self.subjects,
            "class": [outcome.row.class_name for outcome in self.scored],
            "format": [outcome.format for outcome in self.scored],
            "site": [outcome.row.site for outcome in self.scored],
        }

    def _further_values(self, name: str) -> list[Any]:
        is_scored = [isinstance(outcome.result, Prediction) for outcome in self.all]
        return list(compress(self._further[name].to_pylist(), is_scored))

    def _looks(self, k: int) -> list[str | None]:
        seen = [None if outcome.looks is None else outcome.looks[k] for outcome in self.scored]
        return thirds(seen) or [None] * len(seen)

    def called(self, threshold: float) -> NDArray[np.int64]:
        """Class index called (N,)."""
        if self.info.task == "binary":
            return (self.classes[:, 1] >= threshold).astype(np.int64)
        return np.asarray(self.classes.argmax(axis=1), np.int64)

    def mistakes(self, threshold: float, count: int, stores: Stores, maps: "ClassMaps | None" = None) -> list[Mistake]:
        """The wrong images, those farthest from being right first; with a map of each where `maps` are given.

        Of two classes, by the way from the threshold to certainty that the score has gone on the wrong side; of more,
        by how far the class named is ahead of the true one.
        """
        called = self.called(threshold)
        worst = self.farthest(np.flatnonzero(called != self.truth), threshold)[:count]
        sides = [THUMBNAIL] if maps is None else [THUMBNAIL, maps.size]
        found = pictures([self.scored[k].row for k in worst], self.info.bit_depth, stores, sides)
        made = []
        kept = [int(k) for k in worst if self.scored[k].row.image_id in found]  # else gone since it was scored
        seen = {} if maps is None else {k: found[self.scored[k].row.image_id][1] for k in kept}
        mapped = {} if maps is None else self._mapped(seen, called, maps)
        for k in kept:
            row, name = self.scored[k].row, self.info.classes
            caption = f"{self.told(k, called, threshold)}; {short_name(str(row.member or row.uri))}"
            alt = f"image truly {name[self.truth[k]]}, called {name[called[k]]}"
            mistake = Mistake(found[row.image_id][0], caption, alt)
            if k in mapped:
                of, map_ = mapped[k]
                over = overlaid(mistake.pixels, map_)
                mistake = replace(mistake, mapped=over, map_alt=f"map of it: {told(of, map_)}")
            made.append(mistake)
        return made

    def _mapped(
        self, seen: Mapping[int, NDArray[np.uint8]], called: NDArray[np.int64], maps: "ClassMaps"
    ) -> dict[int, tuple[str, NDArray[np.float32]]]:
        """Of each image the class that its map is of, and the map (S, S): of two the second, of more the one named."""
        if not seen:
            return {}
        of = [self.info.classes[1 if self.info.task == "binary" else called[k]] for k in seen]
        return dict(zip(seen, zip(of, maps.maps(list(seen.values()), of).maps, strict=True), strict=True))

    def told(self, k: int, called: NDArray[np.int64], threshold: float) -> str:
        """Of the scored image `k`: what it is, what it is called, and by which numbers."""
        name = self.info.classes
        return f"truly {name[self.truth[k]]}, called {name[called[k]]}: {self._scores(k, called, threshold)}"

    def farthest(self, wrong: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
        """The wrong images (W,), those farthest from being right first."""
        return wrong[np.argsort(-self._wrongness(wrong, self.called(threshold), threshold), kind="stable")]

    def _wrongness(self, wrong: NDArray[np.int64], called: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
        """How far the images `wrong` (W,) are from being right, (W,)."""
        if self.info.task != "binary":
            ahead: NDArray[np.float64] = self.classes[wrong, called[wrong]] - self.classes[wrong, self.truth[wrong]]
            return ahead
        scores, tiny = self.classes[wrong, 1], np.finfo(np.float64).tiny
        gone = (scores - threshold) / max(1 - threshold, tiny)
        return np.asarray(np.where(called[wrong] == 1, gone, (threshold - scores) / max(threshold, tiny)))

    def _scores(self, k: int, called: NDArray[np.int64], threshold: float) -> str:
        """The numbers that made image `k` be called as it is."""
        name, said = self.info.classes, self.classes[k]
        if self.info.task == "binary":
            return f"probability of {name[1]} {said[1]:.3f}, threshold {threshold:.3f}"
        return f"{said[called[k]]:.3f} against {said[self.truth[k]]:.3f} for the true class"

    def table(self, threshold: float) -> pa.Table:
        """One row an image, rejected ones with their code: what `predictions.parquet` holds."""
        names = self.info.classes
        columns: dict[str, Any] = {
            key: [getattr(outcome.row, key) for outcome in self.all]
            for key in ("image_id", "uri", "member", "subject_id", "class_name", "label", "split", "site")
        }
        said = [outcome.result if isinstance(outcome.result, Prediction) else None for outcome in self.all]
        why = [outcome.result if isinstance(outcome.result, ImageRejected) else None for outcome in self.all]
        columns["probability"] = pa.array([found and found.probability for found in said], pa.float32())
        for k, name in enumerate(class_columns(names)):
            columns[name] = pa.array([found and found.classes[k] for found in said], pa.float32())
        called = iter(self.called(threshold))
        columns["called"] = [found and names[next(called)] for found in said]
        columns["decision"] = pa.array([found and found.decision for found in said], pa.string())
        columns["ood_score"] = pa.array([found and found.ood_score for found in said], pa.float32())
        columns["is_ood"] = pa.array([found and found.is_ood for found in said], pa.bool_())
        columns["recognized_part"] = pa.array([outcome.met and outcome.met.part for outcome in self.all], pa.string())
        columns["recognized_by"] = pa.array([outcome.met and outcome.met.how for outcome in self.all], pa.string())
        columns["remark"] = pa.array([outcome.remark for outcome in self.all], pa.string())
        columns["code"] = pa.array([error and error.code.value for error in why], pa.string())
        columns["message"] = pa.array([error and error.message for error in why], pa.string())
        columns |= {f"meta_{name}": values for name, values in self._further.items()}
        return pa.table(columns)


def thumbnails(rows: Iterable[ManifestRow], bit_depth: int | None, stores: Stores) -> dict[int, NDArray[np.uint8]]:
    """Image id -> uint8 (THUMBNAIL, THUMBNAIL, 3), RGB, of those that are still there."""
    return {key: shown for key, (shown,) in pictures(rows, bit_depth, stores, [THUMBNAIL]).items()}


def pictures(
    rows: Iterable[ManifestRow], bit_depth: int | None, stores: Stores, sides: Sequence[int]
) -> dict[int, list[NDArray[np.uint8]]]:
    """Image id -> one a side, uint8 (side, side, 3), RGB, of those that are still there. Each is fetched once."""
    in_order = sorted(rows, key=lambda row: row.uri)  # one pass an archive
    found: dict[int, list[NDArray[np.uint8]]] = {}
    for fetched in fetch_rows(in_order, stores):
        try:
            data = fetched.bytes_or_raise()
            shown = [load_image(data, side, bit_depth=bit_depth).pixels for side in sides]
        except ImageRejected:  # gone, or another file, since it was predicted
            continue
        found[fetched.row.image_id] = shown
    return found


def true_class(info: BundleInfo, row: ManifestRow) -> int:
    """Index of the row's true class among the model's. Raises InputError where the model has no such class."""
    if info.task == "binary":
        assert row.label is not None, "rows without a label are left out (is_labelled)"
        return row.label
    if row.class_name is None or row.class_name not in info.classes:
        raise InputError(
            f"class {row.class_name!r} of {row.uri} is not among the model's ({', '.join(info.classes)}); "
            "ingest with the same layout and class names as for training"
        )
    return info.classes.index(row.class_name)
