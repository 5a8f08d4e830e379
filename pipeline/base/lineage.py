"""What is told of a job to catalogues: the data sets it reads and writes, and when it started and ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Kind = Literal["FILE", "MODEL"]


@dataclass(frozen=True)
class Check:
    """Something that must hold of a data set, and whether it does."""

    name: str
    holds: bool
    expected: str
    actual: str
    is_fatal: bool = True  # else the job goes on all the same


@dataclass(frozen=True)
class Dataset:
    """What was read or written, without anything that lies in it. `uri` as outputs name it: a pseudonym stays one."""

    uri: str
    kind: Kind = "FILE"
    version: str = ""
    rows: int | None = None
    bytes: int | None = None
    files: int | None = None
    columns: Sequence[tuple[str, str, str]] = ()  # name, type, meaning
    codes: Mapping[str, int] = field(default_factory=dict)  # of the rows, those that were refused, by why
    checks: Sequence[Check] = ()
    synthetic: bool = False


@dataclass(frozen=True)
class Step:
    """One event: `state` is START, COMPLETE, FAIL or ABORT."""

    state: str
    time: datetime
    inputs: tuple[Dataset, ...]
    outputs: tuple[Dataset, ...]
    error: str = ""
    account: Mapping[str, object] = field(default_factory=dict)  # the job's own counts
