"""A job that is told to end ends, also where what interrupts it is swallowed or leaves a lock taken."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.scoring_sources import ROOT

_LINE = "leukoray example: interrupted; nothing is left half written, the same command starts anew\n"
_JOB = """
import threading, time
from jobs import ending
from jobs.common import job, start
from jobs.config import JobConfig

ending._GRACE_S = 0.5

class Plain(JobConfig):
    pass

def hang():
    lock = threading.Lock()
    lock.acquire()
    while True:
        try:
            lock.acquire()
        except KeyboardInterrupt:
            pass

def main(config):
    print("up", flush=True)
    WHAT

start(job("example", Plain, main))
"""


@pytest.mark.parametrize("what", ["time.sleep(60)", "hang()"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_job_that_is_told_to_end_says_one_line_and_ends(what: str, number: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _JOB.replace("WHAT", what)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (code, _LINE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_impatient_hand_gets_the_same_one_line(number: int) -> None:
    """Signals come again while the job ends and while the process does."""
    slow = "import sys; sys.stderr.flush = lambda: time.sleep(1)"
    job = _JOB.replace("WHAT", "time.sleep(60)").replace("ending._GRACE_S = 0.5", slow)
    process = subprocess.Popen(
        [sys.executable, "-c", job], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    for _ in range(100):
        process.send_signal(number)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (143 if number == signal.SIGTERM else 130, _LINE)


_STARTER = """
import subprocess, sys, time
from pipeline.base.guard import Guard

guard = Guard()
with guard.marking():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a guard looks into /proc: not on this system")
def test_what_a_guard_has_marked_ends_with_its_starter() -> None:
    starter = subprocess.Popen([sys.executable, "-c", _STARTER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    child = psutil.Process(int(starter.stdout.readline()))
    starter.kill()
    starter.wait()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive
