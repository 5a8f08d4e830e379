"""What stays of a run beside its bundle: TensorBoard's files in the run's folder, and a run in MLflow if asked for."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.model.bundle import BundleInfo
from pipeline.model.prediction import probabilities
from pipeline.storage.stores import Stores
from pipeline.training.board import Board
from pipeline.training.preview import Pixels, Tile, augmentation_sheet, read_images, sheet
from pipeline.training.rows import LabelledRows
from pipeline.training.run_folder import TrainingRun
from pipeline.training.settings import Settings
from pipeline.training.tracking import Tracker
from pipeline.training.validation import Scores

if TYPE_CHECKING:
    from pipeline.training.publish import Published

_MISTAKES, _A_LINE = 16, 8


class Records:
    """Open while a run lasts, and told of its epochs."""

    def __init__(self, run: TrainingRun, settings: Settings, rows: LabelledRows, tracker: Tracker | None) -> None:
        self._settings, self._rows, self._stores = settings, rows, run.stores
        self._board, self._tracker = Board(run.board, run.stores), tracker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._board.close()
        if self._tracker is not None:
            stopped = kind is not None and not issubclass(kind, Exception)
            self._tracker.close("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")

    def add(self, row: dict[str, float]) -> None:
        self._board.add(row)
        if self._tracker is not None:
            self._tracker.add(row)

    def show_training_images(self) -> None:
        """Some training images beside their random changes, where they can be read: the cache may be all there is."""
        if not self._settings.augment:
            return
        made = augmentation_sheet(self._rows.train, self._settings, self._stores)
        if made is not None:
            self._board.picture("augmented", made)

    def published(self, published: "Published", scores: Scores) -> None:
        """The worst mistakes on validation, and the run's parameters beside what came of them."""
        info = published.bundle.info
        worst = mistakes_sheet(scores, self._rows.validation, info, self._settings, self._stores)
        if worst is not None:
            self._board.picture("worst mistakes on validation", worst, info.training["best_epoch"])
        metrics = info.metrics["validation"]
        self._board.parameters(asdict(self._settings), metrics)
        if self._tracker is not None:
            self._tracker.published(published.bundle, is_best=published.verdict.is_best, metrics=metrics)


def mistakes_sheet(
    scores: Scores, rows: pa.Table, info: BundleInfo, settings: Settings, stores: Stores
) -> Pixels | None:
    """Validation images that the bundle calls otherwise than they are, the surest first.

    None where there are none, or none that can be read.
    """
    classes = probabilities(scores.logits, info.temperature)  # (N, C)
    called = (classes[:, 1] >= info.threshold).astype(np.int64) if info.task == "binary" else classes.argmax(axis=1)
    truth = scores.targets
    wrong = np.flatnonzero(called != truth)
    margin = classes[wrong, called[wrong]] - classes[wrong, truth[wrong]]
    worst = wrong[np.argsort(-margin, kind="stable")][:_MISTAKES]
    if not len(worst):
        return None
    chosen = rows.filter(pc.is_in(rows["image_id"], pa.array(scores.image_ids[worst])))
    images = {row.image_id: pixels for row, pixels in read_images(chosen, settings, stores)}
    tiles = []
    for number in worst:
        pixels = images.get(int(scores.image_ids[number]))
        if pixels is not None:  # it may have gone since it was scored
            of, said = info.classes[truth[number]], info.classes[called[number]]
            words = (f"is {of}", f"called {said} {classes[number, called[number]]:.3f}", str(scores.image_ids[number]))
            tiles.append(Tile(pixels, words))
    if not tiles:
        return None
    kind = "synthetic images, " if info.synthetic else ""
    title = f"{len(wrong)} of {len(truth)} called wrong ({kind}no medical device); ids as in the manifest"
    return sheet([tiles[start : start + _A_LINE] for start in range(0, len(tiles), _A_LINE)], title)
