"""A search that is killed goes on, with more trials too: what ended stays, what ran goes on from its checkpoint."""

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import tune
from jobs.config import parse
from jobs.train_options import TrainConfig
from tests.training_data import cell_images, manifest_of

EPOCHS, TRIALS = 4, 4
FLAGS = [
    "--architecture", "cnn", "--input-size", "32", "--batch-size", "8", "--epochs", str(EPOCHS), "--patience", "0",
    "--workers", "2", "--cpus-per-worker", "0.5", "--space", "learning_rate=1e-6..1e-2", "batch_size=8,16",
]  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every fifth label is wrong, so that trials differ."""
    folder = tmp_path_factory.mktemp("cells")
    rows = cell_images(folder / "images", 72)
    wrong = np.random.default_rng(0).permutation(len(rows))[::5]
    for number in wrong:
        rows[number] |= {"label": 1 - rows[number]["label"], "class_name": None}
    return manifest_of(rows, folder / "manifest").uri


def killed_search(arguments: list[str]) -> str:
    """Kill a search, with kill -9, when a trial has ended and another has begun; what it printed."""
    command = [sys.executable, "-m", "jobs.tune", *arguments]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert driver.stdout is not None
    lines: list[str] = []
    for line in driver.stdout:
        lines.append(line)
        if "epoch   2/" in line and any(re.search(r"(finished|stopped) after", each) for each in lines):
            break
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    return "".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_a_killed_search_goes_on_and_ends_with_the_best(
    ray_cluster: Any, manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [manifest, "--out", str(tmp_path), *FLAGS, "--trials"]
    printed = killed_search([*arguments, str(TRIALS - 1)])
    [folder] = (tmp_path / "leukoray" / ".searches").iterdir()
    ended = {path: path.stat().st_mtime_ns for path in folder.glob("trial-*/trial.json")}
    begun = {path.parent.parent: json.loads(path.read_text())["history"] for path in folder.glob("*/*/state.json")}
    assert ended and begun, printed
    assert tune.command([*arguments, str(TRIALS)]) == 0  # one more than before
    told = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in ended} == ended
    assert not any(f"trial {int(path.parent.name[-3:]):>3}  epoch" in told for path in ended)
    histories = {path.parent: json.loads(path.read_text())["history"] for path in folder.glob("*/trial.json")}
    assert len(histories) == TRIALS
    for trial, rows in histories.items():
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        assert rows[: len(begun.get(trial, []))] == begun.get(trial, [])
    table = list(csv.DictReader((folder / "trials.csv").open()))
    values = [float(row["best_val_auc"]) for row in table]
    assert values == sorted(values, reverse=True) and len(table) == TRIALS
    assert (folder / "trials.png").read_bytes().startswith(b"\x89PNG")
    command = shlex.split(told.strip().splitlines()[-1].partition("Next: leukoray train ")[2])
    best = parse(TrainConfig, command, prog="train")
    if table[0]["learning_rate"]:
        assert (best.learning_rate, best.batch_size) == (float(table[0]["learning_rate"]), int(table[0]["batch_size"]))


def test_too_many_damaged_images_end_a_search_before_it_begins(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = cell_images(tmp_path / "images", 36)
    for row in rows[:9]:
        Path(row["uri"]).write_bytes(b"")
    uri = manifest_of(rows, tmp_path / "damaged").uri
    assert tune.command([uri, "--out", str(tmp_path / "out"), "--trials", "2", *FLAGS]) == 4
    assert "9 empty" in capsys.readouterr().err
