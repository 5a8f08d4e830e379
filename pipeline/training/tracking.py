"""A run in MLflow 3: parameters, metrics of each epoch, the manifest as data set, the bundle as logged model.

A thread of its own does all of it, in order. A server that is slow, away or refuses never delays training and never
costs its result: what was not logged is told in a line.
"""

import importlib.util
import json
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import UsageError
from pipeline.base.log import redacted
from pipeline.base.secrets import holds_secret, without_secrets
from pipeline.base.text import first_line
from pipeline.storage.uris import is_s3, join
from pipeline.training.run_folder import TrainingRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.model.bundle import Bundle

_NOTE = "mlflow.json"  # in the run's folder: which run of MLflow an interrupted one continues
_AGAIN_S = 30.0  # between two tries to reach a server that is away
_LAST_S = 30.0  # for what is left when training is over
_DIGEST_LENGTH = 36  # the most that MLflow takes of a data set's digest
_REFUSED = range(400, 500)  # HTTP: the same request will not do later either
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the thread tries again by itself; seven tries take minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # between the lines of progress
}


@dataclass(frozen=True)
class Described:
    """What is known of a run before it starts."""

    parameters: Mapping[str, Any]
    manifest_uri: str
    manifest_digest: str
    images: Mapping[str, int]  # split to images
    synthetic: bool


def check_tracking_uri(uri: str) -> str:
    """The same. Raises ValueError where it holds a user, a password or a query: they would be stored with the model."""
    if holds_secret(uri):
        raise ValueError(
            "no user, password or query belongs here: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri


def tracking_uri(given: str | None) -> str | None:
    """The server to log to: as given, else by MLflow's own variable; None: nowhere.

    Raises UsageError where it was asked for and the extra is missing.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or importlib.util.find_spec("mlflow") is not None:
        return uri or None
    missing = "MLflow's client is not installed; pip install 'leukoray[mlflow]'"
    if given:
        raise UsageError(f"--mlflow {given}: {missing}, or leave it out")
    print(f"nothing is logged to $MLFLOW_TRACKING_URI: {missing}", flush=True)
    return None


def _print(text: str) -> None:
    print(text, flush=True)


class Tracker:
    """Logs one run. Its methods return at once; `close` waits a little for what is left."""

    def __init__(self, uri: str, described: Described, run: TrainingRun, say: Callable[[str], None] = _print) -> None:
        self._uri, self._described, self._run, self._say = uri, described, run, say
        self._place = without_secrets(uri)  # to be told
        self._tasks: queue.Queue[Callable[[MlflowClient], None] | None] = queue.Queue()
        self._trouble: queue.Queue[str] = queue.Queue()
        self._closing, self._told = threading.Event(), False
        self._run_id, self._experiment_id, self._logged = "", "", set[int]()
        self._lost = 0
        self._tasks.put(self._start)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def add(self, row: Mapping[str, float]) -> None:
        """The metrics of an epoch, at the time when it ended."""
        self._tasks.put(lambda client: self._epoch(client, row))
        self._tell()

    def published(self, bundle: "Bundle", *, is_best: bool, metrics: Mapping[str, float | None]) -> None:
        self._tasks.put(lambda client: self._model(client, bundle, is_best, metrics))

    def close(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED; what cannot be logged in half a minute is given up, and told."""
        self._tasks.put(lambda client: client.set_terminated(self._run_id, status))
        self._tasks.put(None)
        self._closing.set()
        self._thread.join(_LAST_S)
        self._tell()
        if self._thread.is_alive() or self._lost:
            self._say(f"warning: the run is not complete in MLflow at {self._place}; the training is not affected")

    def _tell(self) -> None:
        """The first trouble, once: the thread itself prints nothing into lines that are being shown."""
        if not self._told and not self._trouble.empty():
            self._told = True
            self._say(f"warning: MLflow at {self._place}: {self._trouble.get()}; training goes on without it")

    def _work(self) -> None:
        client = None
        while (task := self._tasks.get()) is not None:
            while True:
                try:
                    client = client or self._connect()
                    task(client)
                    break
                except Exception as error:  # whatever a server says, training goes on; it is told
                    self._trouble.put(redacted(first_line(error).replace(self._uri, self._place)))
                    if _is_refused(error):
                        self._lost += 1
                        break
                    if self._closing.is_set():  # one try each would take too long where nobody answers
                        self._lost += 1
                        return
                    self._closing.wait(_AGAIN_S)

    def _connect(self) -> "MlflowClient":
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow

        for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # their notes would break the lines of progress
            logging.getLogger(name).setLevel(logging.ERROR)
        return mlflow.MlflowClient(self._uri)

    def _start(self, client: "MlflowClient") -> None:
        """A new run, or the one that an interrupted training began."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        note = self._run.stores.read_if_there(join(self._run.uri, _NOTE))
        kept = json.loads(note) if note else {}
        if kept.get("uri") == self._place:
            self._run_id = kept["run_id"]
            self._experiment_id = client.get_run(self._run_id).info.experiment_id
            self._logged = {point.step for point in client.get_metric_history(self._run_id, "train_loss")}
            client.update_run(self._run_id, status="RUNNING")
            return
        known = self._described
        self._experiment_id = self._experiment(client)
        run = client.create_run(self._experiment_id, run_name=self._run.uri.rsplit("/", 1)[-1])
        self._run_id = run.info.run_id
        said = json.dumps({"uri": self._place, "run_id": self._run_id}).encode()
        self._run.stores.of(self._run.uri).write(join(self._run.uri, _NOTE), said)
        client.log_batch(self._run_id, params=[Param(name, _word(value)) for name, value in known.parameters.items()])
        dataset = Dataset(
            name=known.manifest_uri.rstrip("/").rsplit("/", 1)[-1],
            digest=known.manifest_digest[:_DIGEST_LENGTH],
            source_type="leukoray manifest",
            source=json.dumps({"uri": known.manifest_uri}),
            profile=json.dumps(
                {"digest": known.manifest_digest, "images": dict(known.images), "synthetic": known.synthetic}
            ),
        )
        client.log_inputs(self._run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _experiment(self, client: "MlflowClient") -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", self._run.model_name)
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        beside = None
        if self._uri.startswith("sqlite:///"):  # else artifacts would go to wherever the command was given
            beside = str(Path(self._uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts" / name)
        return str(client.create_experiment(name, artifact_location=beside))

    def _epoch(self, client: "MlflowClient", row: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        step, at_ms = int(row["epoch"]), int(row["ended_at"] * 1000)
        if step in self._logged:
            return
        values = {name: value for name, value in row.items() if name not in ("epoch", "ended_at")}
        client.log_batch(self._run_id, [Metric(name, value, at_ms, step) for name, value in values.items()])
        self._logged.add(step)

    def _model(
        self, client: "MlflowClient", bundle: "Bundle", is_best: bool, metrics: Mapping[str, float | None]
    ) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        info, now_ms = bundle.info, int(time.time() * 1000)
        on = info.calibrated_on.replace("-", "_")
        model = client.create_logged_model(
            self._experiment_id,
            name=info.name,
            source_run_id=self._run_id,
            params={"architecture": info.architecture, "input_size": str(info.input_size)},
            tags={
                "leukoray.version": info.version,
                "leukoray.bundle": bundle.uri,
                "leukoray.best": _word(is_best),
                "synthetic": _word(info.synthetic),
                "notice": "research software, not a medical device",
            },
        )
        with tempfile.TemporaryDirectory() as folder:
            client.log_model_artifacts(model.model_id, _on_disk(bundle, folder))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step=info.training["best_epoch"])])
        of_data = {
            "dataset_name": self._described.manifest_uri.rstrip("/").rsplit("/", 1)[-1],
            "dataset_digest": self._described.manifest_digest[:_DIGEST_LENGTH],
        }
        found = [
            Metric(f"{on}_{name}", value, now_ms, 0, model_id=model.model_id, **of_data)
            for name, value in metrics.items()
            if value is not None
        ]
        client.log_batch(self._run_id, found)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _on_disk(bundle: "Bundle", folder: str) -> str:
    """A folder of this machine with the bundle's files."""
    if not is_s3(bundle.uri):
        return bundle.uri
    store = bundle.stores.of(bundle.uri)
    for item in store.walk(bundle.uri):
        target = Path(folder, item.uri.removeprefix(bundle.uri.rstrip("/") + "/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.read(item.uri).data)
    return folder


def _is_refused(error: Exception) -> bool:
    """Whether a server answered, and will answer the same again."""
    status = getattr(error, "get_http_status_code", lambda: 0)()
    return status in _REFUSED and status not in (408, 429)
