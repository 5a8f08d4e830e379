"""TensorBoard event files of a run, on disk or S3. Only the driver imports it: TensorBoard is slow to load."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pipeline.storage.stores import Stores
from pipeline.storage.uris import is_s3, join

_LEARNT = ("train_loss", "learning_rate", "step")


class Board:
    """TensorBoard event files under `uri`; for S3 they are written locally and copied up after each epoch."""

    def __init__(self, uri: str, stores: Stores) -> None:
        self._uri, self._stores = uri, stores
        self._temporary = tempfile.TemporaryDirectory() if is_s3(uri) else None
        self._folder = Path(self._temporary.name if self._temporary else uri)
        self._writer = SummaryWriter(str(self._folder), purge_step=1)  # what an interrupted run wrote is told anew

    def add(self, row: dict[str, float]) -> None:
        """The scalars of an epoch, at the time it ended: a continued run shows its first epochs where they were."""
        for name, value in row.items():
            if name not in ("epoch", "ended_at"):
                self._writer.add_scalar(_tag(name), value, int(row["epoch"]), walltime=row["ended_at"])
        self._writer.flush()
        self._copy()

    def picture(self, name: str, pixels: NDArray[np.uint8], epoch: int = 0) -> None:
        """uint8 (H, W, 3) RGB."""
        self._writer.add_image(name, pixels, epoch, dataformats="HWC")
        self._writer.flush()

    def parameters(self, parameters: Mapping[str, Any], metrics: Mapping[str, float | None]) -> None:
        """What the run was made with and what came of it, for TensorBoard's table of runs."""
        words = {name: value if isinstance(value, int | float) else str(value) for name, value in parameters.items()}
        found = {f"validation/{name}": value for name, value in metrics.items() if value is not None}
        file: Any = self._writer.file_writer  # `add_hparams` itself would make a run beside this one
        for summary in hparams(words, found):  # type: ignore[no-untyped-call]
            file.add_summary(summary)
        for name, value in found.items():
            self._writer.add_scalar(name, value)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        self._copy()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _copy(self) -> None:
        if self._temporary is None:
            return
        store = self._stores.of(self._uri)
        for path in self._folder.iterdir():
            store.write(join(self._uri, path.name), path.read_bytes())


def _tag(name: str) -> str:
    """`group/name`, which TensorBoard folds: what is learnt, what validation says, how fast it goes."""
    group, _, rest = name.partition("_")
    if group == "val":
        return f"val/{rest}"
    return f"train/{name.removeprefix('train_')}" if name in _LEARNT else f"speed/{name}"
