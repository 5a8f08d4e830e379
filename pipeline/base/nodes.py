"""The same question to several nodes of a cluster: each answers in a task of its own, or it is said why not."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.base.cluster import on_node
from pipeline.base.errors import PlatformError
from pipeline.base.node_facts import NodeFacts, look
from pipeline.base.text import last_line

_ANSWER_S = 180.0  # a busy node may take a minute to start a process
_CLOCK_TRIES = 3  # the shortest way there and back tells best
_RAYS_FOLDER = "ray start --temp-dir"

Node = Mapping[str, Any]  # as `ray.nodes()` tells it


def others(ray: Any) -> list[Node]:
    """Nodes that are alive, but for this process's own."""
    own = ray.get_runtime_context().get_node_id()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]


def name_of(node: Node) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def answers(
    ray: Any, nodes: Sequence[Node], function: Callable[..., Any], *arguments: Any, what: str
) -> Iterator[tuple[str, Any]]:
    """(name, what `function` gives there) of each node, or (name, PlatformError) of one that cannot be asked.

    A node that dies meanwhile is no longer asked. `what`: the deed that was not done in time, in words.
    """
    asked = {
        name_of(node): ray.remote(num_cpus=0, scheduling_strategy=on_node(node["NodeID"]))(function).remote(*arguments)
        for node in nodes
    }
    gone = (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError)
    for name, answer in asked.items():
        try:
            yield name, ray.get(answer, timeout=_ANSWER_S)
        except gone:
            continue
        except ray.exceptions.GetTimeoutError:
            yield name, PlatformError(f"node {name} did not {what} within {_ANSWER_S:.0f} s: is a mount of it dead?")
        except ray.exceptions.RayError as error:
            message = f"node {name} cannot run this package ({last_line(error)}); install the same one on every node"
            yield name, PlatformError(f"{message}, or send the code with `ray job submit --working-dir`")


def facts_of(
    ray: Any, nodes: Sequence[Node], folders: Sequence[tuple[str, str]], names: Sequence[str]
) -> Iterator[tuple[str, NodeFacts | PlatformError]]:
    """What each of the nodes has; the folder of its Ray is looked at beside `folders`. `names`: for `version_here`."""
    yield from answers(ray, nodes, _look, folders, names, what="say what it has")


def _look(folders: Sequence[tuple[str, str]], names: Sequence[str]) -> NodeFacts:
    """Runs on a node."""
    from ray._private.worker import _global_node

    own = [(_global_node.get_session_dir_path(), _RAYS_FOLDER)] if _global_node is not None else []
    return look([*folders, *own], names)


def skew_of(ray: Any, node: Node) -> tuple[float, float]:
    """(seconds by which a node's clock is ahead of this one's, by how much that may be off).

    The answer was given somewhere between question and answer (Cristian 1989, Distributed Computing 3).
    """
    ask = ray.remote(num_cpus=0, scheduling_strategy=on_node(node["NodeID"]))(_clock)
    found = []
    for _ in range(_CLOCK_TRIES):
        begin = time.time()
        there = ray.get(ask.remote(), timeout=_ANSWER_S)
        end = time.time()
        found.append(((end - begin) / 2, there - (begin + end) / 2))
    error_s, skew_s = min(found)
    return skew_s, error_s


def _clock() -> float:
    """Runs on a node. Seconds since 1970."""
    return time.time()
