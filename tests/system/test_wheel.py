"""The built wheel alone, in an environment outside the checkout: nothing that a command needs is left behind."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from jobs.cli import JOBS
from tests.bundles import make_bundle

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "jobs", "serving")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Installed:
    """An environment with the wheel, and the libraries of this one; neither the checkout nor its editable install."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.folder = folder / "venv"
        venv.create(self.folder, with_pip=False)
        self.python = self.folder / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install"]
        subprocess.run([*pip, "--quiet", "--no-index", "--no-deps", str(wheel)], check=True, env=self._environment())
        [site] = self.folder.glob("lib/python*/site-packages")
        # A path in a .pth file is added as it is: the .pth file there that leads to the checkout is not read.
        (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}

    def run(self, *command: str) -> str:
        """What a command prints, run in the environment's folder. It has to end well."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("installed"))


def test_every_file_of_the_packages_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert any(name.endswith(".j2") for name in packed)
    assert packed == ours


def test_modules_are_those_of_the_wheel(installed: Installed) -> None:
    for package in PACKAGES:
        said = installed.run(str(installed.python), "-c", f"import {package}; print({package}.__file__)")
        assert Path(said.strip()).is_relative_to(installed.folder), said


@pytest.mark.parametrize("job", JOBS)
def test_every_command_tells_its_options(installed: Installed, job: str) -> None:
    said = installed.run("leukoray", job, "--help")
    assert f"leukoray {job}" in said and "--help" in said


def test_the_whole_way_of_an_image_but_training(installed: Installed, tmp_path: Path) -> None:
    """Ingest, report, scores, summary and an answer over HTTP, with every template on the way."""
    model = make_bundle(tmp_path / "model", size=32)
    samples, out = tmp_path / "samples", tmp_path / "out"
    sizes = ("--images", "48", "--subjects", "12", "--width", "96", "--height", "96", "--workers", "1")
    installed.run("leukoray", "samples", "--out", str(samples), *sizes)
    said = installed.run("leukoray", "demo", str(samples), "--model", model.uri, "--out", str(out))
    assert "POST /predict" in said
    [run] = (out / "scores").glob("run-*")
    assert (run / "_SUCCESS").exists() and "<svg" in (run / "summary.html").read_text()
    report = str(tmp_path / "report")
    installed.run("leukoray", "evaluate", str(out / "manifest"), "--model", model.uri, "--out", report)
    assert "<svg" in Path(report, "report.html").read_text()
