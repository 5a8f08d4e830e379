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

from pipeline.model.registry import RUNS, ModelFolder
from pipeline.storage.lock import locked
from pipeline.storage.stores import Stores
from pipeline.storage.uris import is_s3, join

_PUBLISHED = "published.json"
_CHECKPOINT = "checkpoint_"  # how Ray Train names them
STATE = "state.json"  # written last: a checkpoint that has it is whole
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's own record of a run's checkpoints


@dataclass(frozen=True)
class TrainingRun:
    """An unfinished run, held alone. `check_lock` raises where another took it."""

    uri: str
    stores: Stores
    check_lock: Callable[[], None]

    @property
    def model_name(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 3)[-3]

    @property
    def board(self) -> str:
        """Where TensorBoard's files lie; they stay when the run is closed."""
        return join(self.uri, "tensorboard")

    def close(self, version: str) -> None:
        """Note that the run's result is published, and remove its checkpoints."""
        self.stores.of(self.uri).write(join(self.uri, _PUBLISHED), json.dumps({"version": version}).encode())
        self.drop_checkpoints()

    def drop_checkpoints(self, but: str | None = None) -> None:
        """Remove all, or all but one, by its name."""
        store = self.stores.of(self.uri)
        for item in list(store.walk(self.uri)):
            name = item.uri.removeprefix(self.uri.rstrip("/") + "/").partition("/")[0]
            if name.startswith(_CHECKPOINT) and name != but:
                store.delete(item.uri)
        if not is_s3(self.uri):  # their folders as well
            for folder in Path(self.uri).glob(f"{_CHECKPOINT}*"):
                if folder.name != but:
                    store.delete_tree(str(folder))

    def mend(self) -> str | None:
        """The checkpoint to go on from, where Ray Train's books do not say one that is whole.

        Ray writes its snapshot in place: a kill or a full disk in that moment leaves a part of it, and Ray would refuse
        the folder for ever.
        """
        path, whole = join(self.uri, _SNAPSHOT), self._whole_checkpoints()
        found = self.stores.read_if_there(path)
        if found is not None and _named_by(found) <= set(whole) and _named_by(found):
            return None
        if found is not None:
            print(f"{path}: damaged by an interruption; the checkpoints beside it are used", flush=True)
            self.stores.of(path).delete(path)
        return whole[-1] if whole else None

    def _whole_checkpoints(self) -> list[str]:
        """By name, which begins with the time."""
        walked = (item.uri.rsplit("/", 2) for item in self.stores.of(self.uri).walk(self.uri))
        return sorted(name for _, name, file in walked if name.startswith(_CHECKPOINT) and file == STATE)


def _named_by(snapshot: bytes) -> set[str]:
    """The checkpoints that Ray Train's books name; none where they are damaged."""
    try:
        books = json.loads(snapshot)
        return {result["checkpoint_dir_name"] for result in books["checkpoint_results"]}
    except (ValueError, TypeError, KeyError):
        return set()


@contextlib.contextmanager
def checkpoint_files(run_uri: str, name: str, stores: Stores) -> Iterator[Path]:
    """The folder of a run's checkpoint, on this machine. Raises StoreError."""
    uri = join(run_uri, name)
    if not is_s3(uri):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = stores.of(uri)
        for item in store.walk(uri):
            Path(folder, item.uri.rsplit("/", 1)[-1]).write_bytes(store.read(item.uri).data)
        yield Path(folder)


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
            yield run
            return


def _unfinished(model: ModelFolder, digest: str) -> str:
    uri, attempt = join(model.uri, RUNS, digest[:12]), 0
    while model.stores.of(uri).head(join(uri, _PUBLISHED)) is not None:
        attempt += 1
        uri = join(model.uri, RUNS, f"{digest[:12]}-{attempt}")
    return uri
