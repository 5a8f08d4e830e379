"""A worker's reports to Ray Train: every rank reports, rank 0 brings the checkpoint, stored while training goes on."""

import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol

import ray.train
from ray.train import CheckpointUploadMode

from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Files


class Reporter(Protocol):
    """Takes what an epoch came to, and what makes its checkpoint."""

    def send(self, metrics: dict[str, Any], files: Callable[[], Files], *, wait: bool = False) -> None: ...


class Reports:
    """One rank's. All ranks call `send` equally often: each call waits for all ranks to come to it."""

    def __init__(self, rank: int, run_uri: str, stores: Stores) -> None:
        self._rank, self._run_uri, self._stores = rank, run_uri, stores
        self._is_stored = threading.Event()  # no more than one checkpoint lies in memory beside the one being made
        self._is_stored.set()

    def send(self, metrics: dict[str, Any], files: Callable[[], Files], *, wait: bool = False) -> None:
        """`files` makes the checkpoint; rank 0's is taken. `wait`: until it is stored, as where the node goes away.

        A store that fails ends the training function soon, with its error, whether it was waited for or not.
        """
        mode = CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC
        if self._rank:
            ray.train.report(metrics, checkpoint_upload_mode=mode)
            return
        self._is_stored.wait()
        self._is_stored.clear()
        filesystem, path = arrow_filesystem(self._run_uri, self._stores)
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint(path, filesystem),  # stands for `files`, which need no disk on their way
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=functools.partial(self._upload, files()),
            delete_local_checkpoint_after_upload=False,
        )

    def _upload(self, files: Files, _: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        try:
            uri = join(self._run_uri, name)
            checkpoint.upload(files, uri, self._stores)
            filesystem, path = arrow_filesystem(uri, self._stores)
            return ray.train.Checkpoint(path, filesystem)
        finally:
            self._is_stored.set()
