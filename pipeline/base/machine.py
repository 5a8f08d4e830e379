"""What this machine, or this container on it, has: cores, memory, GPUs."""

import os
import shutil
from pathlib import Path

_MIN_SHM_BYTES = 512 * 1024 * 1024


def usable_cores() -> int:
    """Cores of this process: affinity, and the CPU quota of a container (cgroup v2 `cpu.max`), as Ray counts them."""
    allowed = len(os.sched_getaffinity(0))
    quota, _, period = _cgroup_file("cpu.max").partition(" ")
    return max(1, min(allowed, int(quota) // int(period))) if quota.isdigit() else allowed


def usable_memory() -> tuple[int, int]:
    """Bytes of memory that this process may use (cgroup v2 `memory.max`), and how many of them can be had now.

    What the kernel keeps of files counts as to be had (proc(5), MemAvailable).
    """
    page, limit = os.sysconf("SC_PAGE_SIZE"), _cgroup_file("memory.max")
    total = page * os.sysconf("SC_PHYS_PAGES")
    usable = min(total, int(limit)) if limit.isdigit() else total
    return usable, min(usable, _available() or page * os.sysconf("SC_AVPHYS_PAGES"))


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def nvidia_cards() -> int:
    """By the driver's device files: importing torch to ask takes seconds."""
    return sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))


def visible_cards() -> int:
    """Those that this process, and a Ray of its own, may use: $CUDA_VISIBLE_DEVICES leaves some out."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return nvidia_cards()
    return min(nvidia_cards(), len([name for name in named.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]))


def _cgroup_file(name: str) -> str:
    """What the control group of this container says (cgroup v2); empty where there is none."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def free_shared_memory() -> int | None:
    """Bytes of /dev/shm that are free, None where there is none."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def shared_memory_warning(free: int | None) -> str | None:
    """A sentence when /dev/shm, with so many bytes free, is too small for the object store; None when it is not."""
    if free is None:
        return (
            "/dev/shm is missing: Ray keeps objects in the temp folder, which is slow; run containers with --shm-size"
        )
    if free < _MIN_SHM_BYTES:
        return (
            f"/dev/shm has {free >> 20} MiB free: Ray will spill to the temp folder; run containers with --shm-size=4g"
        )
    return None
