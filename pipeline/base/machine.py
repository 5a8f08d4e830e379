"""What this machine, or this container on it, has: cores, shared memory."""

import os
import shutil
from pathlib import Path

_MIN_SHM_BYTES = 512 * 1024 * 1024


def usable_cores() -> int:
    """Cores of this process: affinity, and the CPU quota of a container (cgroup v2 `cpu.max`), as Ray counts them."""
    allowed = len(os.sched_getaffinity(0))
    quota, _, period = cgroup_file("cpu.max").partition(" ")
    return max(1, min(allowed, int(quota) // int(period))) if quota.isdigit() else allowed


def cgroup_file(name: str) -> str:
    """What the control group of this container says (cgroup v2); empty where there is none."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def shared_memory_warning() -> str | None:
    """A sentence when /dev/shm is too small for the object store, None when it is not."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return (
            "/dev/shm is missing: Ray keeps objects in the temp folder, which is slow; run containers with --shm-size"
        )
    if free < _MIN_SHM_BYTES:
        return (
            f"/dev/shm has {free >> 20} MiB free: Ray will spill to the temp folder; run containers with --shm-size=4g"
        )
    return None
