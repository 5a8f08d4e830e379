"""A package of training that is not installed is told in a sentence, by whatever way a job is begun."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import JOBS, module_of
from pipeline.base.extras import TRAINING

OF_TRAINING = ("train", "tune", "evaluate", "calibrate")
# What a fresh Python does first: as if these were not installed
WITHOUT = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAINING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
SAID = r"leukoray {job}: \w+ is missing, it needs the extra 'train': pip install 'leukoray\[train\]'\n"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lacking(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python without the extra."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    return os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def ran(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("job", OF_TRAINING)
def test_a_submitted_job_without_its_extra_ends_in_one_sentence(lacking: dict[str, str], job: str) -> None:
    done = ran("-m", f"jobs.{job}", "manifest", env=lacking)
    assert (done.returncode, done.stdout) == (5, "")
    assert re.fullmatch(SAID.format(job=job), done.stderr), done.stderr


def test_it_is_told_as_json_where_that_is_asked_for(lacking: dict[str, str]) -> None:
    done = ran("-m", "jobs.train", "manifest", "--log-format", "json", env=lacking)
    told, end = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, end["event"], end["exit_code"]) == (5, "end", 5)
    assert told["level"] == "error" and "pip install 'leukoray[train]'" in told["message"]


def test_no_other_job_is_begun_by_an_import_of_the_extra(lacking: dict[str, str]) -> None:
    others = [module_of(job) for job in JOBS if job not in OF_TRAINING]
    done = ran("-c", "".join(f"import jobs.{name}\n" for name in others), env=lacking)
    assert done.returncode == 0, done.stderr
