"""The folder of a training run, `<model>/.runs/<digest>/`, named by everything that decides its result.

The same command finds the same folder, and Ray Train continues from the last checkpoint there. A published run is
closed; the next starts beside it.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.model.registry import ModelFolder
from pipeline.storage.lock import locked
from pipeline.storage.stores import Stores
from pipeline.storage.uris import is_s3, join

_RUNS = ".runs"
_PUBLISHED = "published.json"
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's own record of a run's checkpoints


@dataclass(frozen=True)
class TrainingRun:
    """An unfinished run, held alone. `check_lock` raises where another took it."""

    uri: str
    stores: Stores
    check_lock: Callable[[], None]

    @property
    def board(self) -> str:
        """Where TensorBoard's files lie; they stay when the run is closed."""
        return join(self.uri, "tensorboard")

    @contextlib.contextmanager
    def checkpoint(self, name: str) -> Iterator[Path]:
        """The files of a checkpoint, on this machine."""
        uri = join(self.uri, name)
        if not is_s3(uri):
            yield Path(uri)
            return
        with tempfile.TemporaryDirectory() as folder:
            store = self.stores.of(uri)
            for item in store.walk(uri):
                Path(folder, item.uri.rsplit("/", 1)[-1]).write_bytes(store.read(item.uri).data)
            yield Path(folder)

    def close(self, version: str) -> None:
        """Note that the run's result is published, and remove its checkpoints."""
        store = self.stores.of(self.uri)
        store.write(join(self.uri, _PUBLISHED), json.dumps({"version": version}).encode())
        for item in list(store.walk(self.uri)):
            if item.uri.removeprefix(self.uri.rstrip("/") + "/").startswith("checkpoint_"):
                store.delete(item.uri)
        if not is_s3(self.uri):  # their folders as well
            for folder in Path(self.uri).glob("checkpoint_*"):
                store.delete_tree(str(folder))

    def drop_torn_snapshot(self) -> None:
        """Ray writes its snapshot in place; killed in that moment, it would refuse the folder for ever."""
        path = join(self.uri, _SNAPSHOT)
        try:
            found = self.stores.read_if_there(path)
            json.loads(b"{}" if found is None else found)
        except ValueError:
            print(f"{path}: torn by an interruption; this run starts over", flush=True)
            self.stores.of(path).delete(path)


@contextlib.contextmanager
def held_run(model: ModelFolder, digest: str) -> Iterator[TrainingRun]:
    """The unfinished run with this digest, or a new one; one that was published meanwhile gives way to the next."""
    while True:
        uri = _unfinished(model, digest)
        advice = "wait for it, or change --seed or --name"
        with locked(uri, "the same training", model.stores, advice=advice) as check_lock:
            if uri != _unfinished(model, digest):
                continue
            run = TrainingRun(uri, model.stores, check_lock)
            run.drop_torn_snapshot()
            yield run
            return


def _unfinished(model: ModelFolder, digest: str) -> str:
    uri, attempt = join(model.uri, _RUNS, digest[:12]), 0
    while model.stores.of(uri).head(join(uri, _PUBLISHED)) is not None:
        attempt += 1
        uri = join(model.uri, _RUNS, f"{digest[:12]}-{attempt}")
    return uri
