"""What a machine cannot test: packages are installed where that may be, and the rest is named at the end of a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stores import PROGRAMS, missing

ROOT = Path(__file__).resolve().parents[2]


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Programs of a machine without Chromium, whose user is root and whose apt-get installs what it is told to."""
    program(tmp_path, "id", "echo 0")
    install = f'case "$*" in *install*) cp {tmp_path}/id {tmp_path}/chromium;; esac'
    program(tmp_path, "apt-get", f'echo "$@" >> {tmp_path}/asked\n{install}')
    (tmp_path / "cp").symlink_to("/bin/cp")
    return tmp_path


def packages(machine: Path, *groups: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(ROOT / "infra" / "packages.sh"), *groups]
    return subprocess.run(command, env={"PATH": str(machine)}, capture_output=True, text=True, check=False)


def test_a_package_that_is_missing_is_installed_once(machine: Path) -> None:
    assert packages(machine, "browser").returncode == 0
    assert packages(machine, "browser").stdout == ""
    update, install = (machine / "asked").read_text().splitlines()
    assert update.endswith(" update") and install.endswith(" chromium")


def test_a_group_may_be_several_packages(machine: Path) -> None:
    assert packages(machine, "ceph").returncode == 0
    install = (machine / "asked").read_text().splitlines()[-1]
    assert install.endswith(" ceph-mon ceph-osd radosgw ceph-common")


@pytest.mark.parametrize(
    ("name", "does"), [("id", "echo 1000"), ("apt-get", "exit 100")], ids=["not root", "apt-get fails"]
)
def test_where_it_cannot_be_installed_the_tests_go_on(machine: Path, name: str, does: str) -> None:
    program(machine, name, does)
    done = packages(machine, "browser")
    assert done.returncode == 0
    assert "chromium (browser) is missing and could not be installed here" in done.stdout


def test_a_group_that_does_not_exist_is_refused(machine: Path) -> None:
    done = packages(machine, "browsers")
    assert done.returncode == 2 and "no group 'browsers'" in done.stderr


def test_real_stores_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CI", "1")
    assert missing("rclone") == "rclone as a store: not in continuous integration"
    monkeypatch.delenv("CI")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert missing("ceph") == "ceph as a store: ceph is missing (infra/packages.sh ceph, as root with apt-get)"
    for name in PROGRAMS["ceph"]:
        program(tmp_path, name, "")
    assert missing("ceph") is None


def test_what_a_run_left_out_is_named_once_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "@pytest.mark.skipif(True, reason='the page in a browser: Chromium is missing')\n"
        "def test_page(n): pass\n"
        "def test_disk(): pytest.skip('a full disk: run as root')\n"
        "def test_sound(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    _, _, end = done.stdout.partition("not tested here")
    assert end.splitlines()[1:3] == [
        "a full disk: run as root (1 test)",
        "the page in a browser: Chromium is missing (2 tests)",
    ]
