"""What a look at a machine, a cluster or a store found: one line for a person, one object for a program."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """`text` says what was found and, unless ok, what to do; `mend` is a command that does it, where there is one.

    `node`: the machine that it is about, as Ray names it; None for this one, a store, or the cluster as a whole.
    """

    level: Level
    name: str
    text: str
    mend: str | None = None
    node: str | None = None
