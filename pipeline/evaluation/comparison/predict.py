"""What several models say of the same images: each is fetched once, and decoded once for each way of decoding."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.base.errors import ImageRejected, InputError
from pipeline.evaluation.predict import Outcome, Spread, codes_of, is_labelled, predicted, tasks_of
from pipeline.evaluation.predict import tell_progress as tell
from pipeline.evaluation.read import BATCH, Seen
from pipeline.images.load import Limits, LoadedImage
from pipeline.model.bundle import Bundle
from pipeline.model.predictor import Predictor
from pipeline.model.sketch import Met, read_sketch
from pipeline.sources.fetch import Fetched
from pipeline.sources.manifest import Manifest, ManifestRow
from pipeline.sources.outage import fetch_while_up
from pipeline.storage.stores import Stores

Said = tuple[Outcome, ...]  # of one row, one a model


class ComparisonWorker:
    """Several predictors in one process."""

    def __init__(self, bundles: Sequence[Bundle], stores: Stores, on_gpu: bool) -> None:
        engine = "torch" if on_gpu else "onnx"
        self._predictors = [Predictor(bundle, engine=engine) for bundle in bundles]  # type: ignore[arg-type]
        self._sketches = [read_sketch(bundle) for bundle in bundles]
        self._stores = stores

    def predict(self, rows: Sequence[ManifestRow], limits: Limits = Limits()) -> list[Said]:
        """Exactly one tuple a row, with what each model says of it."""
        found: list[Said] = []
        batch: list[Fetched[ManifestRow]] = []
        for fetched in fetch_while_up(rows, self._stores, limits):
            batch.append(fetched)
            if len(batch) == BATCH:
                found += self._said(batch, limits)
                batch = []
        return found + self._said(batch, limits)

    def _said(self, batch: Sequence[Fetched[ManifestRow]], limits: Limits) -> list[Said]:
        decoded: dict[str, list[LoadedImage | ImageRejected]] = {}
        by_model: list[list[Outcome]] = []
        for predictor, sketch in zip(self._predictors, self._sketches, strict=True):
            rule = predictor.info.preprocessing_digest
            if rule not in decoded:
                decoded[rule] = [_loaded(predictor, fetched, limits) for fetched in batch]
            waiting: list[Seen[ManifestRow, Met | None]] = []
            for fetched, image in zip(batch, decoded[rule], strict=True):
                if isinstance(image, LoadedImage):
                    met = sketch and (sketch.by_bytes(fetched.bytes_or_raise()) or sketch.by_looks(image.pixels))
                    waiting.append(Seen(fetched.row, image, met or None))
            answers = predicted(predictor, waiting)
            pairs = zip(batch, decoded[rule], strict=True)
            by_model.append(
                [Outcome(of.row, image) if isinstance(image, ImageRejected) else next(answers) for of, image in pairs]
            )
        return list(zip(*by_model, strict=True))


def _loaded(predictor: Predictor, fetched: Fetched[ManifestRow], limits: Limits) -> LoadedImage | ImageRejected:
    try:
        return predictor.load(fetched.bytes_or_raise(), limits)
    except ImageRejected as error:
        return error


def predict_side_by_side(
    ray: Any, bundles: Sequence[Bundle], manifest: Manifest, split: str, stores: Stores, *,
    workers: int | None, cpus_per_worker: float, gpus_per_worker: float,
) -> list[list[Outcome]]:  # fmt: skip
    """Outcomes of every labelled image of the split, a list a model, in no order; the models answer one question.

    Raises InputError where nothing is labelled, PlatformError as `predict_split`.
    """
    wanted = [row for row in manifest.split(split) if is_labelled(bundles[0].info, row)]
    if not wanted:
        raise InputError(f"{manifest.uri}: no labelled image in split {split!r}; choose another split or ingest again")
    made = Spread(ComparisonWorker, (list(bundles), stores, gpus_per_worker > 0), bundles)
    tasks = [("predict", rows) for rows in tasks_of(wanted)]
    said: list[Said] = []
    codes = Counter[str]()
    for part in made.results(
        ray, tasks, stores, workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker
    ):
        said += part
        for outcomes in part:
            codes.update([*codes_of(outcomes)][:1])  # each image once, though several models refuse it
        tell(split, len(said), len(wanted), codes)
    return [[outcomes[k] for outcomes in said] for k in range(len(bundles))]
