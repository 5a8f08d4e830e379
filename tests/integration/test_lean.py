"""What processes a local Ray consists of."""

import json
import subprocess
import sys

import pytest

_STARTED = """
import contextlib, json, sys
import psutil
from pipeline.base.cluster import connected

with connected(None, 1, worker_logs=json.loads(sys.argv[1])) as ray:
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    lines = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that has just ended
            lines.append(" ".join(process.cmdline()))
named = ("gcs_server", "raylet/raylet", "_private/monitor.py", "dashboard/dashboard.py", "log_monitor.py")
print(json.dumps([name for name in named if any(name in line for line in lines)]))
"""


@pytest.mark.parametrize(("worker_logs", "expected"), [(False, []), (True, ["log_monitor.py"])])
def test_a_local_ray_has_only_processes_that_it_needs(worker_logs: bool, expected: list[str]) -> None:
    command = [sys.executable, "-c", _STARTED, json.dumps(worker_logs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["gcs_server", "raylet/raylet", *expected]
