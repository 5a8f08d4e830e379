"""Whether all nodes of a cluster see the same local files and run the same versions: asked once, before work starts.

A path that only some machines have would otherwise end a run in its middle, or hang it; another version of a decoder on
one of them would give other probabilities, and nobody would know for which images.
"""

import contextlib
import hashlib
import os
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.base.errors import PlatformError
from pipeline.base.likeness import deciding, other_version, version_here
from pipeline.base.nodes import answers, others
from pipeline.storage.local import LocalStore
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join, local_path

_PROBE = "_probe-"
_LEFT = re.compile(_PROBE + "[0-9a-f]{32}")
_SAMPLE = 20
_COMPARED_BYTES = 64 << 10
_PACKAGE = "package "


def refuse_unshared(ray: Any, stores: Stores, read: Iterable[str], written: str | None = None) -> None:
    """Raise PlatformError where a node has not what this process has: files, and versions of what decides results.

    Nothing is asked of S3, or of one node. See `unshared`.
    """
    for sentence in unshared(ray, stores, read, written, deciding()):
        raise PlatformError(sentence)


def unshared(
    ray: Any, stores: Stores, read: Iterable[str], written: str | None = None, packages: Sequence[str] = ()
) -> Iterator[str]:
    """What other nodes have not as this process has it, a sentence each.

    `read`: files, or folders that must be there; looked at only where there is another node. `written`: a folder that
    this process alone holds; a file is made there for as long as the nodes look, and what a killed process left of
    that is removed. `packages`: names for `version_here`.
    """
    nodes = others(ray)
    if not nodes:
        return
    marks = {uri: mark for uri in read if isinstance(stores.of(uri), LocalStore) and (mark := _mark(uri))}
    versions = {_PACKAGE + name: version_here(name) for name in packages}
    with contextlib.ExitStack() as stack:
        if written is not None and isinstance(stores.of(written), LocalStore):
            marks |= stack.enter_context(_probe(written))
        unseen = _asked(ray, nodes, versions | marks) if versions or marks else {}
    for uri, names in unseen.items():
        more = f", and {len(names) - 1} more," if len(names) > 1 else ""
        if uri in versions:
            yield f"node {names[0]}{more} {other_version(uri.removeprefix(_PACKAGE), versions[uri])}"
            continue
        path = uri.rpartition("/")[0] if uri.rpartition("/")[2].startswith(_PROBE) else uri
        yield (
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
    """What is not seen, and the nodes that do not see it.

    Raises PlatformError for a node that cannot be asked: work sent there would fail or hang as well.
    """
    found: dict[str, list[str]] = defaultdict(list)
    paths = sum(not what.startswith(_PACKAGE) for what in marks)
    for name, answer in answers(ray, nodes, _unseen, marks, what=f"look at {paths} paths"):
        if isinstance(answer, PlatformError):
            raise answer
        for uri in answer:
            found[uri].append(name)
    return found


def _unseen(marks: dict[str, str]) -> list[str]:
    """Runs on another node."""
    return [uri for uri, mark in marks.items() if _mark(uri) != mark]


def _mark(uri: str) -> str | None:
    """Tells a file, or a package, from others of its name; None for a file that cannot be read."""
    if uri.startswith(_PACKAGE):
        return version_here(uri.removeprefix(_PACKAGE))
    path = local_path(uri)
    try:
        if os.path.isdir(path):
            return "folder"
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(_COMPARED_BYTES) + b"%d" % os.fstat(file.fileno()).st_size).hexdigest()
    except OSError:
        return None
