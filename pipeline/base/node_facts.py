"""What a machine has for the work, as one record that travels, and what of it is too little.

Gathered here or, by Ray, on every node of a cluster; judged where the job is.
"""

import importlib.metadata
import os
import re
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.finding import Finding, Level
from pipeline.base.likeness import OWN, deciding, install, version_here
from pipeline.base.machine import (
    free_shared_memory,
    nvidia_cards,
    shared_memory_warning,
    usable_cores,
    usable_memory,
)

NEEDED_MEMORY, NEEDED_DISK = 4 << 30, 2 << 30
FEWEST_FILES, FEW_FILES = 512, 4096  # open files: a job ends below the first; Ray warns below the second
SKEW_S, LARGE_SKEW_S = 5.0, 900.0  # S3 refuses what is signed a quarter of an hour off (RequestTimeTooSkewed)
_FULL_DISK = 64 << 20
_TEMP = ("TMPDIR", "TEMP", "TMP")  # tempfile itself leaves a full one for another, without a word


@dataclass(frozen=True)
class Disk:
    """A folder for temporary files or results, and the room where it lies or would lie."""

    folder: str
    setting: str  # what names another one
    free_bytes: int
    is_writable: bool


@dataclass(frozen=True)
class NodeFacts:
    """One machine, or the container on it that Ray runs in."""

    cores: int
    memory_bytes: int
    free_memory_bytes: int
    shm_free_bytes: int | None  # None: no /dev/shm
    disks: tuple[Disk, ...]
    open_files: int  # soft limit of a process that Ray starts there; -1: none
    gpus: int
    driver: str  # of NVIDIA, empty where there is none
    torch_is_cpu_build: bool
    visible_gpus: str | None  # CUDA_VISIBLE_DEVICES
    versions: Mapping[str, str] = field(default_factory=dict)


def look(folders: Sequence[tuple[str, str]] = (), names: Sequence[str] | None = None) -> NodeFacts:
    """This machine. `folders`: further ones that results go to, each with the setting that names it."""
    usable, free = usable_memory()
    temp = (next((os.environ[name] for name in _TEMP if os.environ.get(name)), "/tmp"), _TEMP[0])
    return NodeFacts(
        usable_cores(),
        usable,
        free,
        free_shared_memory(),
        tuple(_disk(folder, setting) for folder, setting in (temp, *folders)),
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        nvidia_cards(),
        nvidia_driver(),
        _torch_is_cpu_build(),
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        {name: version_here(name) for name in (deciding() if names is None else names)},
    )


def _disk(folder: str, setting: str) -> Disk:
    place = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    return Disk(folder, setting, shutil.disk_usage(place).free, os.access(place, os.W_OK))


def nvidia_driver() -> str:
    """By the kernel's module, as nvidia-smi prints it."""
    try:
        said = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", said)
    return found[0] if found else ""


def _torch_is_cpu_build() -> bool:
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


# ---- judged ------------------------------------------------------------------------------------------------


def judge(facts: NodeFacts) -> Iterator[Finding]:
    """What holds for any machine that works: memory, /dev/shm, disks, open files, GPUs."""
    yield _memory(facts)
    yield _shared_memory(facts)
    yield from map(_of_disk, facts.disks)
    yield _open_files(facts)
    yield from _gpus(facts)


def _memory(facts: NodeFacts) -> Finding:
    text = f"{gib(facts.memory_bytes)} of memory, {gib(facts.free_memory_bytes)} unused"
    if facts.memory_bytes < NEEDED_MEMORY:
        return Finding("warn", "memory", f"{text}; below {gib(NEEDED_MEMORY)} use --workers 1 and a small batch")
    return Finding("ok", "memory", text)


def _shared_memory(facts: NodeFacts) -> Finding:
    free, warning = facts.shm_free_bytes, shared_memory_warning(facts.shm_free_bytes)
    if warning or free is None:
        mend = "mount -o remount,size=4G /dev/shm" if free is not None else None
        return Finding("warn", "/dev/shm", str(warning), mend)
    return Finding("ok", "/dev/shm", f"{gib(free)} free for Ray's object store")


def _of_disk(disk: Disk) -> Finding:
    name = "temp folder" if disk.setting == _TEMP[0] else disk.setting
    if not disk.is_writable:
        return Finding("fail", name, f"{disk.folder}: not writable; choose another folder ({disk.setting})")
    room = f"{disk.folder}: {disk.free_bytes >> 20:,} MiB free"
    if disk.free_bytes < NEEDED_DISK:
        what = "full" if disk.free_bytes < _FULL_DISK else f"less than {gib(NEEDED_DISK)}"
        text = f"{room}, {what}; free space or choose another folder ({disk.setting})"
        return Finding("fail" if disk.free_bytes < _FULL_DISK else "warn", name, text)
    return Finding("ok", name, f"{disk.folder}: {gib(disk.free_bytes)} free")


def _open_files(facts: NodeFacts) -> Finding:
    limit = facts.open_files
    text, mend = f"a process may open {limit} at once", f"ulimit -n {16 * FEW_FILES}"
    if limit == resource.RLIM_INFINITY:
        return Finding("ok", "open files", "no limit")
    if limit >= FEW_FILES:
        return Finding("ok", "open files", text)
    text += f", fewer than {FEW_FILES}: connections fail under load; raise it, then start Ray or the job again"
    return Finding("fail" if limit < FEWEST_FILES else "warn", "open files", text, mend)


def _gpus(facts: NodeFacts) -> Iterator[Finding]:
    if not facts.gpus:
        yield Finding("ok", "gpu", "none: training and inference run on the CPU")
        return
    visible = facts.visible_gpus
    used = f", of which CUDA_VISIBLE_DEVICES={visible!r} are used" if visible is not None else ""
    if facts.driver:
        yield Finding("ok", "gpu", f"{facts.gpus} NVIDIA, driver {facts.driver}{used}")
    else:
        yield Finding("warn", "gpu", f"{facts.gpus} NVIDIA{used}, but no driver says its version", "modprobe nvidia")
    if facts.torch_is_cpu_build:
        text = "torch is the build for CPUs: training leaves the GPUs alone; install the one for CUDA"
        yield Finding("warn", "gpu", text, "pip install --force-reinstall torch torchvision")


def judge_beside(theirs: NodeFacts, own: NodeFacts, skew_s: float, error_s: float) -> Iterator[Finding]:
    """A node of a cluster beside this one: its versions, its clock (`skew_s` ahead, give or take `error_s`), its GPUs.

    Nothing where all is well.
    """
    for name, version in own.versions.items():
        found = theirs.versions.get(name, "")
        if found != version:
            text = f"{found or 'missing'}, this machine has {version or 'none'}: rows of the two are not told apart"
            has_command = name not in ("python", OWN) and version
            level: Level = "fail" if found else "warn"  # a node that only scores needs nothing of training
            yield Finding(level, name, text, install(name, version) if has_command else None)
    if abs(skew_s) - error_s > SKEW_S:
        yield _skewed("clock", skew_s, "times in results and logs lie")
    if theirs.driver and own.driver and theirs.driver != own.driver:
        yield Finding("warn", "gpu", f"driver {theirs.driver}, this machine has {own.driver}; install the same one")


def judge_store_clock(skew_s: float) -> Finding:
    """`skew_s`: by which the store's clock is ahead of this machine's."""
    if abs(skew_s) > SKEW_S:
        return _skewed("s3 clock", skew_s, "what is signed may be refused")
    return Finding("ok", "s3 clock", "the store's clock agrees with this machine's")


def _skewed(name: str, skew_s: float, what: str) -> Finding:
    """A clock that is `skew_s` ahead of this machine's."""
    is_large = abs(skew_s) > LARGE_SKEW_S
    worse = f"; S3 refuses what is signed {LARGE_SKEW_S / 60:.0f} minutes off" if is_large else ""
    text = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's: {what}{worse}; use NTP"
    return Finding("fail" if is_large else "warn", name, text, "chronyc makestep")


def gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.1f} GiB"
