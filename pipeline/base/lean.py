"""A local Ray without the processes in which nobody has a part.

Ray starts an autoscaler's monitor, the server of a dashboard and a reader of logs on each head node. A Ray of one
process has no nodes to add, nobody to look at it, and at times no logs to show; each costs some 2 s of a core, while
the job starts. `ray.init` has no option against them; the methods that start them are Ray's own.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

_FOR_OTHERS = ("start_monitor", "start_api_server")
_FOR_LOGS = "start_log_monitor"


@contextlib.contextmanager
def without_idle_processes(worker_logs: bool) -> Iterator[None]:
    """A Ray that is started in this block has none of them; `worker_logs`: but the reader of logs.

    What a version of Ray does not know by these names, it starts as ever.
    """
    from ray._private.node import Node

    names = _FOR_OTHERS if worker_logs else (*_FOR_OTHERS, _FOR_LOGS)
    kept = {name: getattr(Node, name) for name in names if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, _nothing)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of a start."""
