"""run.json: who did what, when, of what, and how it ended, in one form for every job. Keys are only ever added."""

import getpass
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline import __version__
from pipeline.base.errors import IncompleteError, NotBetterThanChanceError, NotPromotedError

RECORD = "run.json"
COMPLETE, INCOMPLETE, FAILED, ENDED = "complete", "incomplete", "failed", "interrupted"
_STATUS = {
    0: COMPLETE,
    IncompleteError.exit_code: INCOMPLETE,
    NotBetterThanChanceError.exit_code: "not_better_than_chance",
    NotPromotedError.exit_code: "not_promoted",
    130: ENDED,
    143: ENDED,
}
# Distributions whose version may change a figure
_PACKAGES = (
    "ray", "numpy", "pyarrow", "onnxruntime", "torch", "torchvision", "onnx", "scikit-learn", "opencv-python-headless",
    "pillow", "simplejpeg",
)  # fmt: skip


class JobRecord(BaseModel):
    """What the record of any job says. Times are ISO 8601, UTC. Each job adds its `counts`."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    run_id: str = Field(description="of scoring the name of the run's folder")
    job: str = Field("", description="which job; empty in records of scoring by 0.1 and 0.2")
    who: str = Field("", description="user@host")
    status: str = Field(
        description="complete, incomplete, failed, interrupted; too_many_errors of scoring, not_better_than_chance of "
        "training, not_promoted of a protocol"
    )
    exit_code: int | None = Field(None, description="of the job; null where an older version did not say")
    has_output: bool = Field(True, description="whether it wrote of what lies beside; false: it ended before")
    started_at: str = Field(description="ISO 8601, UTC")
    finished_at: str = Field(description="ISO 8601, UTC")
    configuration: Mapping[str, Any] = Field({}, description="every option as it was in force, without secrets")
    digests: Mapping[str, str] = Field(
        {}, description="of the manifest and the model that were read or made: manifest, model, model_A, model_B, ..."
    )
    leukoray_version: str = Field(description="of leukoray")
    python: str = Field("", description="version of Python")
    packages: Mapping[str, str] = Field({}, description="versions of installed packages that may change a figure")


class Record(JobRecord):
    """Of a job that needs no more than counts."""

    counts: Mapping[str, int] = Field({}, description="of images and trials; scoring counts more, which add up")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def status_of(exit_code: int) -> str:
    return _STATUS.get(exit_code, FAILED)


def surroundings() -> dict[str, Any]:
    """`who`, and the versions, as fields of a record."""
    return {
        "who": f"{_user()}@{socket.gethostname()}",
        "leukoray_version": __version__,
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number alone
        return str(os.getuid())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_record_of(job: str, data: bytes) -> bool:
    """Whether `data` is such a record of this job, and not a file of somebody else."""
    try:
        found = json.loads(data)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("job") == job and "run_id" in found


def tells_of_files(data: bytes) -> bool:
    """Whether `data` is such a record, and of a job that had begun to write what lies beside it."""
    try:
        found = json.loads(data)
    except ValueError:
        return False
    return isinstance(found, dict) and "run_id" in found and bool(found.get("has_output", True))
