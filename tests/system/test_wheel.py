"""The built wheel alone, in an environment outside the checkout: nothing that a command needs is left behind.

Once beside all libraries of this environment, once beside those alone that `pip install leukoray` brings: the closure
of the wheel's own requirements, without extras.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from jobs.cli import JOBS
from tests.bundles import make_bundle
from tests.images import encoded, scene
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "jobs", "serving")
OF_TRAINING = ("train", "tune", "evaluate", "calibrate", "demo")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Installed:
    """An environment with the wheel, and the libraries of this one; neither the checkout nor its editable install."""

    def __init__(self, wheel: Path, folder: Path, *, base_only: bool = False) -> None:
        self.folder = folder / "venv"
        venv.create(self.folder, with_pip=False)
        self.python = self.folder / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install"]
        subprocess.run([*pip, "--quiet", "--no-index", "--no-deps", str(wheel)], check=True, env=self._environment())
        [site] = self.folder.glob("lib/python*/site-packages")
        if base_only:
            link_required(site)
        else:  # a path in a .pth file is added as it is: the .pth file there that leads to the checkout is not read
            (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}

    def run(self, *command: str) -> str:
        """What a command prints, run in the environment's folder. It has to end well."""
        done = self.start(*command)
        said, _ = done.communicate()
        assert done.returncode == 0, said
        return said

    def start(self, *command: str) -> "subprocess.Popen[str]":
        pipe, joined = subprocess.PIPE, subprocess.STDOUT
        return subprocess.Popen(
            command, cwd=self.folder, env=self._environment(), text=True, stdout=pipe, stderr=joined
        )


def link_required(site: Path) -> None:
    """Link into `site` the packages that the wheel there requires, and those that they require.

    Whole folders, with the bytecode in them, where they are packages; file by file what several share (`google`).
    """
    [wheel] = importlib.metadata.distributions(name="leukoray", path=[str(site)])
    for found in required(wheel, frozenset(), set()):
        for file in found.files or ():
            if ".." in file.parts:  # a command, beside the interpreter
                continue
            packages = (one for one in reversed(file.parents) if Path(found.locate_file(one), "__init__.py").is_file())
            whole = next(packages, file)
            if not (place := site / whole).is_symlink():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(found.locate_file(whole))


def required(
    found: importlib.metadata.Distribution, extras: frozenset[str], done: set[str]
) -> Iterator[importlib.metadata.Distribution]:
    """What a package requires with these extras, and what that requires, each once."""
    for line in found.requires or ():
        wanted = Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras or ("",)):
            continue
        key = f"{wanted.name.lower()}[{','.join(sorted(wanted.extras))}]"
        if key not in done:
            done.add(key)
            inner = importlib.metadata.distribution(wanted.name)
            yield inner
            yield from required(inner, frozenset(wanted.extras), done)


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


@pytest.fixture(scope="module")
def base_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("base"), base_only=True)


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


@pytest.mark.parametrize("job", OF_TRAINING)
def test_a_job_of_training_names_the_extra_that_it_lacks(base_only: Installed, job: str) -> None:
    refused = base_only.start("leukoray", job, *([] if job == "demo" else ["manifest"]))
    said, _ = refused.communicate()
    assert refused.returncode == 5
    assert re.fullmatch(rf"leukoray {job}: \w+ is missing, .*: pip install 'leukoray\[train\]'\n", said), said


def test_without_extras_it_scores_summarizes_and_serves(base_only: Installed, tmp_path: Path) -> None:
    lacking = "import importlib.util as u; print([n for n in ('torch', 'sklearn', 'pandas') if u.find_spec(n)])"
    assert base_only.run(str(base_only.python), "-c", lacking) == "[]\n"
    image, out = encoded(scene(), "JPEG"), str(tmp_path / "out")
    (tmp_path / "archive").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "archive" / name).write_bytes(image)
    model = make_bundle(tmp_path / "models" / "tiny-linear" / "20260101-000000-00000000", size=32).uri
    said = base_only.run("leukoray", "score", str(tmp_path / "archive"), "--model", model, "--out", out)
    assert "listed 2 = scored 2 + quarantined 0" in said
    assert "page: " in base_only.run("leukoray", "summary", out)
    assert "20260101-000000-00000000" in base_only.run("leukoray", "promote", str(Path(model).parent), "--list")
    port = free_port()
    service = base_only.start("leukoray", "serve", model, "--port", str(port), "--replicas", "1")
    try:
        assert service.stdout is not None
        seen = ""
        for line in service.stdout:
            seen += line
            if "/predict" in line:
                break
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", data=image)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert 0 <= json.load(answer)["probability"] <= 1, seen
    finally:
        service.terminate()
        service.communicate()
