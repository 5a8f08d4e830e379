"""leukoray doctor: whether this machine, its Ray and its store can do the work, and what to do where they cannot."""

import importlib.metadata
import itertools
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jobs.common import job, job_stores, start
from jobs.config import JobConfig
from pipeline import __version__
from pipeline.base.cluster import alive_nodes, cluster_target, connected, has_cluster_token, token_file
from pipeline.base.errors import LeukorayError, PlatformError
from pipeline.base.machine import nvidia_cards, shared_memory_warning, usable_cores, usable_memory
from pipeline.base.resources import ClusterPlan, Node, check, in_all, sizes, training_plan
from pipeline.storage.abilities import ask
from pipeline.storage.shared import refuse_unshared
from pipeline.storage.types import Conditions
from pipeline.storage.uris import absolute, is_s3

EXAMPLES = """examples:
  leukoray doctor
  leukoray doctor --source s3://lab/2026/ --s3-endpoint https://minio.lab:9000
  leukoray doctor --out s3://lab/results                            # what this store can do
  leukoray doctor --address head:6379 --model out/demo/models

Exit codes: 0 nothing failed (warnings may remain), 5 something must be changed first.
"""

_PACKAGES = ("ray", "onnxruntime", "pyarrow", "pillow", "simplejpeg", "boto3")
_OF_TRAINING = ("torch", "torchvision", "scikit-learn", "onnxscript", "tensorboard")
_NEEDED_MEMORY, _NEEDED_DISK = 4 << 30, 2 << 30
Verdict = Literal["ok", "warn", "fail"]


class DoctorConfig(JobConfig):
    """Check versions, cores, memory, disk, GPU, Ray and S3, and say what to do about each."""

    source: str | None = Field(None, description="folder or s3:// prefix that must be readable")
    model: str | None = Field(None, description="bundle or registry that must be complete")
    out: str = Field("out", description="folder or s3:// prefix that results will be written to")


@dataclass(frozen=True)
class Finding:
    """One line of the table. `text` says what was found and, unless ok, what to do."""

    verdict: Verdict
    name: str
    text: str


def main(config: DoctorConfig) -> None:
    n_failed = n_warned = 0
    print(f"leukoray {__version__} doctor: research software, not a medical device\n", flush=True)
    for find in CHECKS:
        for finding in find(config):
            n_failed += finding.verdict == "fail"
            n_warned += finding.verdict == "warn"
            print(f"  {finding.verdict:<4}  {finding.name:<13}  {finding.text}", flush=True)
    print(f"\n{n_failed} failed, {n_warned} to look at", flush=True)
    if n_failed:
        raise PlatformError(f"{n_failed} checks failed; see 'fail' above for what to do")


# ---- this machine ------------------------------------------------------------------------------------------


def versions(config: DoctorConfig) -> Iterator[Finding]:
    yield Finding("ok", "python", platform.python_version())
    found, missing = _installed(_PACKAGES)
    yield Finding("ok", "packages", ", ".join(found))
    if missing:
        yield Finding("fail", "packages", f"missing: {', '.join(missing)}; install leukoray again with `pip install .`")
    found, missing = _installed(_OF_TRAINING)
    if not found:
        yield Finding("ok", "training", "not installed: train, tune, evaluate and calibrate need the extra `train`")
    elif missing:
        yield Finding("fail", "training", f"missing: {', '.join(missing)}; pip install 'leukoray[train]'")
    else:
        yield Finding("ok", "training", ", ".join(found))


def _installed(packages: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that are installed, with their versions, and those that are not."""
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return found, missing


def cores(config: DoctorConfig) -> Iterator[Finding]:
    """The cores against the smallest plan of each job at its defaults; a cluster is checked by `cluster`."""
    if not cluster_target(config.address):
        count = config.num_cpus or usable_cores()
        yield from _fits([{"CPU": float(count)}], f"{count} cores")


def _fits(nodes: Sequence[Node], what: str) -> Iterator[Finding]:
    smallest = {"evaluate": 1.0, "score": 1.0, "serve": 0.5}
    plans = [training_plan(nodes), *(ClusterPlan(job, 1, cpus) for job, cpus in smallest.items())]
    fitting = []
    for plan in plans:
        try:
            check(plan, nodes)
            fitting.append(f"{plan.job} {plan.cpus:g}")
        except PlatformError as error:
            yield Finding("fail", "cores", str(error))
    if fitting:
        yield Finding("ok", "cores", f"{what}; needed at least: {', '.join(fitting)}")


def memory(config: DoctorConfig) -> Iterator[Finding]:
    usable, free = usable_memory()
    text = f"{_gib(usable)} of memory, {_gib(free)} unused"
    if usable < _NEEDED_MEMORY:
        yield Finding("warn", "memory", f"{text}; below {_gib(_NEEDED_MEMORY)} use --workers 1 and a small batch")
    else:
        yield Finding("ok", "memory", text)


def shared_memory(config: DoctorConfig) -> Iterator[Finding]:
    warning = shared_memory_warning()
    if warning:
        yield Finding("warn", "/dev/shm", warning)
    else:
        yield Finding("ok", "/dev/shm", f"{_gib(shutil.disk_usage('/dev/shm').free)} free for Ray's object store")


def disk(config: DoctorConfig) -> Iterator[Finding]:
    folders = [("temp folder", "TMPDIR", tempfile.gettempdir())]
    if not is_s3(config.out):
        folders.append(("--out", "--out", absolute(config.out)))
    for name, setting, folder in folders:
        place = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
        free = shutil.disk_usage(place).free
        if not os.access(place, os.W_OK):
            yield Finding("fail", name, f"{place}: not writable; choose another folder ({setting})")
        elif free < _NEEDED_DISK:
            text = f"{place}: {_gib(free)} free, less than {_gib(_NEEDED_DISK)}; free space or choose another folder"
            yield Finding("warn", name, f"{text} ({setting})")
        else:
            yield Finding("ok", name, f"{folder}: {_gib(free)} free")


def gpu(config: DoctorConfig) -> Iterator[Finding]:
    cards, visible = nvidia_cards(), os.environ.get("CUDA_VISIBLE_DEVICES")
    used = f", of which CUDA_VISIBLE_DEVICES={visible!r} are used" if visible is not None else ""
    none = "none on this machine: training and inference run on the CPU"
    yield Finding("ok", "gpu", f"{cards} NVIDIA{used}" if cards else none)


# ---- Ray ---------------------------------------------------------------------------------------------------


def authentication(config: DoctorConfig) -> Iterator[Finding]:
    """A `ray start` on a machine with a token file asks for the token; a plain `ray job submit` does not send it."""
    sends, has_token = os.environ.get("RAY_AUTH_MODE", "") == "token", has_cluster_token()
    submit = "RAY_AUTH_MODE=token ray job submit --working-dir . -- python -m jobs.train ..."
    if sends and not has_token:
        text = f"RAY_AUTH_MODE=token, but no token in {token_file()} or RAY_AUTH_TOKEN; copy the cluster's there"
        yield Finding("fail", "ray token", text)
    elif sends:
        yield Finding("ok", "ray token", "RAY_AUTH_MODE=token and a token is there: submit jobs as usual")
    elif has_token:
        yield Finding("warn", "ray token", f"a token exists, RAY_AUTH_MODE is not set; submit with: {submit}")
    else:
        yield Finding("ok", "ray token", f"none yet; where a cluster asks for one (HTTP 401): {submit}")


def cluster(config: DoctorConfig) -> Iterator[Finding]:
    target = cluster_target(config.address)
    if not target:
        yield Finding("ok", "ray", "no --address or RAY_ADDRESS: jobs start a local Ray and end it")
        return
    try:
        with connected(config.address, config.num_cpus) as ray:
            nodes = alive_nodes(ray)
            yield Finding("ok", "ray", f"{target}: {sizes(nodes)}, Ray {ray.__version__}")
            yield from _fits(nodes, f"{in_all(nodes, 'CPU'):g} CPUs in all, {in_all(nodes, 'GPU'):g} GPUs")
            yield from _shared(ray, config)
    except LeukorayError as error:
        yield Finding("fail", "ray", str(error))


def _shared(ray: Any, config: DoctorConfig) -> Iterator[Finding]:
    """Whether all nodes see the local folders that were named."""
    stores = job_stores(config)
    named = [absolute(uri) for uri in (config.source, config.model) if uri is not None]
    inside = (file.uri for uri in named if not is_s3(uri) for file in itertools.islice(stores.of(uri).walk(uri), 1))
    out = absolute(config.out)
    try:
        refuse_unshared(ray, stores, itertools.chain(named, inside), out if Path(out).is_dir() else None)
    except PlatformError as error:
        yield Finding("fail", "ray", str(error))


# ---- data --------------------------------------------------------------------------------------------------


def source(config: DoctorConfig) -> Iterator[Finding]:
    stores = job_stores(config)
    if config.source is None:
        if stores.s3.endpoint:
            yield Finding("ok", "s3", f"endpoint {stores.s3.named}; give --source s3://bucket to try it")
        return
    name = "s3" if is_s3(config.source) else "source"
    try:
        uri = absolute(config.source)
        store = stores.of(uri)
        found = store.head(uri) is not None or store.is_folder(uri)
    except LeukorayError as error:
        yield Finding("fail", name, str(error))
        return
    if found:
        yield Finding("ok", name, f"{uri}: readable")
    else:
        yield Finding("fail", name, f"{uri}: nothing there; check the path")


def out(config: DoctorConfig) -> Iterator[Finding]:
    """What the store of --out heeds, asked with a few small objects that are removed again."""
    if not is_s3(config.out):
        return
    uri, stores = absolute(config.out), job_stores(config)
    try:
        found = ask(stores, uri)
    except LeukorayError as error:
        yield Finding("fail", "--out", str(error))
        return
    yield Finding("ok", "--out", f"{uri}: objects can be written, read and removed")
    if found.conditions is Conditions.NONE:
        text = "conditional writes are not heeded: two runs are not kept apart; use --single-writer, or another store"
        yield Finding("warn", "--out locks", text)
    else:
        spelled = " without quotes" if found.conditions is Conditions.BARE else ""
        text = f"a second create and a wrong ETag are refused, the right ETag{spelled} is taken: one run at a time"
        yield Finding("ok", "--out locks", text)
    yield _ability(found.ranges, "ranges", "parts of objects can be read", "archives cannot be read from this store")
    refused = "uploads that arrive damaged are refused"
    yield _ability(found.checks_digests, "digests", refused, "the store does not notice uploads that arrive damaged")
    keys = "names of 1,024 bytes are taken"
    yield _ability(found.long_keys, "names", keys, "names of 1,024 bytes are refused: keep --out and partitions short")


def _ability(has: bool, name: str, good: str, bad: str) -> Finding:
    return Finding("ok" if has else "warn", f"--out {name}", good if has else bad)


def model(config: DoctorConfig) -> Iterator[Finding]:
    if config.model is None:
        return
    from pipeline.model.registry import resolve

    try:
        bundle = resolve(config.model, job_stores(config)).verify()
    except LeukorayError as error:
        yield Finding("fail", "model", str(error))
        return
    yield Finding("ok", "model", f"{bundle.info.name} {bundle.info.version}, {bundle.info.architecture}: complete")


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.1f} GiB"


CHECKS: tuple[Callable[[DoctorConfig], Iterator[Finding]], ...] = (
    versions, cores, memory, shared_memory, disk, gpu, authentication, cluster, source, out, model,
)  # fmt: skip


command = job("doctor", DoctorConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
