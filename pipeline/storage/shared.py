"""Whether all nodes of a cluster see the same local files: asked once, before work starts.

A path that only some machines have would otherwise end a run in its middle, or hang it.
"""

import contextlib
import hashlib
import os
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.base.cluster import on_node
from pipeline.base.errors import PlatformError
from pipeline.base.text import last_line
from pipeline.storage.local import LocalStore
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join, local_path

_PROBE = "_probe-"
_LEFT = re.compile(_PROBE + "[0-9a-f]{32}")
_SAMPLE = 20
_COMPARED_BYTES = 64 << 10
_ANSWER_S = 180.0  # a busy node may take a minute to start a process


def refuse_unshared(ray: Any, stores: Stores, read: Iterable[str], written: str | None = None) -> None:
    """Raise PlatformError where a node does not see what this process sees; nothing is asked of S3, or of one node.

    `read`: files, or folders that must be there; looked at only where there is another node. `written`: a folder that
    this process alone holds; a file is made there for as long as the nodes look, and what a killed process left of
    that is removed.
    """
    own = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    if not others:
        return
    marks = {uri: mark for uri in read if isinstance(stores.of(uri), LocalStore) and (mark := _mark(uri))}
    with contextlib.ExitStack() as stack:
        if written is not None and isinstance(stores.of(written), LocalStore):
            marks |= stack.enter_context(_probe(written))
        unseen = _asked(ray, others, marks) if marks else {}
    for uri, names in unseen.items():
        path = uri.rpartition("/")[0] if uri.rpartition("/")[2].startswith(_PROBE) else uri
        more = f", and {len(names) - 1} more," if len(names) > 1 else ""
        raise PlatformError(
            f"node {names[0]}{more} does not see {path} as this node does; use s3://, or a folder that every node "
            "mounts under the same name"
        )


def spaced(count: int) -> range:
    """Numbers of some of `count` items, spread evenly: enough to try, however many there are."""
    return range(0, count, max(1, -(-count // _SAMPLE)))


@contextlib.contextmanager
def _probe(folder: str) -> Iterator[dict[str, str]]:
    """A new file in `folder`. Never the same name twice: a node may remember that one was not there."""
    store = LocalStore()
    for left in list(store.beginning_with(join(folder, _PROBE))):
        if _LEFT.fullmatch(left.uri.removeprefix(join(folder, ""))):  # of a process that was killed
            store.delete(left.uri)
    uri = join(folder, _PROBE + uuid.uuid4().hex)
    store.write(uri, uri.encode())
    try:
        yield {uri: _mark(uri) or ""}
    finally:
        store.delete(uri)


def _asked(ray: Any, nodes: Sequence[Mapping[str, Any]], marks: dict[str, str]) -> dict[str, list[str]]:
    """What is not seen, and the nodes that do not see it. A node that dies meanwhile is no longer asked.

    Raises PlatformError for a node that cannot be asked: work sent there would fail or hang as well.
    """
    answers = {
        f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})": ray.remote(
            num_cpus=0, scheduling_strategy=on_node(node["NodeID"])
        )(_unseen).remote(marks)
        for node in nodes
    }
    gone = (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError)
    found: dict[str, list[str]] = defaultdict(list)
    for name, answer in answers.items():
        try:
            for uri in ray.get(answer, timeout=_ANSWER_S):
                found[uri].append(name)
        except gone:
            continue
        except ray.exceptions.GetTimeoutError as error:
            message = f"node {name} did not look at {len(marks)} paths within {_ANSWER_S:.0f} s: is a mount of it dead?"
            raise PlatformError(message) from error
        except ray.exceptions.RayError as error:
            raise PlatformError(
                f"node {name} cannot run this package ({last_line(error)}); install the same version on every node, or "
                "send the code with `ray job submit --working-dir`"
            ) from error
    return found


def _unseen(marks: dict[str, str]) -> list[str]:
    """Runs on another node."""
    return [uri for uri, mark in marks.items() if _mark(uri) != mark]


def _mark(uri: str) -> str | None:
    """Tells a file from others of its name; None where it cannot be read."""
    path = local_path(uri)
    try:
        if os.path.isdir(path):
            return "folder"
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(_COMPARED_BYTES) + b"%d" % os.fstat(file.fileno()).st_size).hexdigest()
    except OSError:
        return None
