"""What the user asked for: its digest finds the unfinished run that the same command continues."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.images.load import Limits
from pipeline.sources.filters import Filters, parse_since


@dataclass(frozen=True)
class Request:
    """Everything that decides which rows a run gives."""

    sources: tuple[str, ...]
    model_uri: str
    model_sha256: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    since: str | None = None
    limit: int | None = None
    subject_pattern: str | None = None
    rescore: bool = False
    retry_of: str | None = None  # run whose quarantine is tried again
    max_bytes: int = Limits.max_bytes
    max_pixels: int = Limits.max_pixels
    max_frames: int = Limits.max_frames
    partition_by: str | None = None
    pseudonym_key_id: str | None = None  # of the key that hides paths; `sources` are hidden as well then

    @property
    def limits(self) -> Limits:
        return Limits(self.max_bytes, self.max_pixels, self.max_frames)

    def digest(self) -> str:
        fields = asdict(self)
        if self.pseudonym_key_id is None:  # so that runs begun by a version without it are found
            del fields["pseudonym_key_id"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def filters(self) -> Filters:
        """As of now: an age in `since` counts back from this moment."""
        return Filters(self.include, self.exclude, parse_since(self.since) if self.since else None)


@dataclass(frozen=True)
class Workforce:
    """What scoring takes of the cluster."""

    workers: int
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    stall_s: float = 60.0  # nothing finished for so long: say why


@dataclass(frozen=True)
class RunOptions:
    """How a run is done; none of it changes its rows."""

    workforce: Workforce
    address: str | None = None
    num_cpus: int | None = None
    run_id: str | None = None
    wait_for_lock_s: float = 0.0
    max_error_share: float = 0.05
    accepts_damaged: bool = False  # archives and folders whose images cannot be counted
    configuration: Mapping[str, Any] = field(default_factory=dict)  # of the job, as the record keeps it
