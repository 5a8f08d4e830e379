"""TensorBoard event files of a run, on disk or S3. Only the driver imports it: TensorBoard is slow to load."""

import tempfile
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from pipeline.storage.stores import store_for
from pipeline.storage.types import S3Settings
from pipeline.storage.uris import is_s3, join


class Board:
    """TensorBoard event files under `uri`; for S3 they are written locally and copied up after each epoch."""

    def __init__(self, uri: str, s3: S3Settings | None) -> None:
        self._uri, self._s3 = uri, s3
        self._temporary = tempfile.TemporaryDirectory() if is_s3(uri) else None
        self._folder = Path(self._temporary.name if self._temporary else uri)
        self._writer = SummaryWriter(str(self._folder))

    def add(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name.replace("_", "/", 1), value, int(row["epoch"]))
        self._writer.flush()
        self._copy()

    def close(self) -> None:
        self._writer.close()
        self._copy()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _copy(self) -> None:
        if self._temporary is None:
            return
        store = store_for(self._uri, self._s3)
        for path in self._folder.iterdir():
            store.write(join(self._uri, path.name), path.read_bytes())
