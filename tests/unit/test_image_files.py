"""What images are built from and the Compose file, held against the checkout: sources, locks, flags, ports, mounts."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from jobs.cli import JOBS
from jobs.config import parse
from jobs.serve import ServeConfig

ROOT = Path(__file__).resolve().parents[2]
IMAGES, COMPOSE = ROOT / "infra" / "images", ROOT / "infra" / "compose"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
EXTRAS = {
    "score-serve": {"dicom", "heic", "lineage", "privacy", "signing"},
    "train": {"train", "pretrained", "dicom", "heic", "lineage", "privacy", "signing"},
}


def locked(image: str) -> dict[str, list[tuple[Version, str]]]:
    """Of each package its versions (one a marker) and their digests, by normalized name."""
    entries = re.findall(r"^([\w.-]+)==([^\s;]+)[^\n]*\n((?:    --hash=[^\n]*\n?)+)", lock_text(image), re.M)
    found: dict[str, list[tuple[Version, str]]] = {}
    for name, version, digests in entries:
        found.setdefault(canonicalize_name(name), []).append((Version(version), digests))
    return found


def lock_text(image: str) -> str:
    return (IMAGES / f"{image}.txt").read_text()


def wanted(extras: set[str]) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += [line for line in project["optional-dependencies"][extra] if not line.startswith("leukoray[")]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("image", EXTRAS)
def test_the_lock_covers_what_pyproject_asks_for(image: str) -> None:
    """A raised bound or a new dependency without `make lock` fails here."""
    packages = locked(image)
    for one in wanted(EXTRAS[image]):
        versions = packages.get(canonicalize_name(one.name))
        assert versions, f"{one.name} is not in {image}.txt: make lock"
        assert all(one.specifier.contains(version) for version, _ in versions), f"{one}: make lock"


@pytest.mark.parametrize("image", ["score-serve", "train", "build"])
def test_every_line_of_a_lock_has_a_version_and_a_digest(image: str) -> None:
    assert len(locked(image)) > 3
    starts = [line for line in lock_text(image).splitlines() if line and not line.startswith(" ")]
    assert len(starts) == sum(len(versions) for versions in locked(image).values())
    assert all("sha256:" in digests for versions in locked(image).values() for _, digests in versions)


def test_the_extras_of_the_locks_are_those_of_the_script_that_makes_them() -> None:
    script = (IMAGES / "lock.sh").read_text().replace("\\\n", " ")
    for image, extras in EXTRAS.items():
        [line] = [line for line in script.splitlines() if f"{image}.txt" in line and "pyproject.toml" in line]
        assert set(re.findall(r"--extra (\S+)", line)) == extras


def test_score_serve_locks_nothing_of_training() -> None:
    assert (
        not {"torch", "torchvision", "scikit-learn", "tensorboard", "onnxscript", "pandas"}
        & locked("score-serve").keys()
    )
    assert {"torch", "torchvision", "nvidia-cublas"} <= locked("train").keys()


def test_without_cuda_the_rest_of_the_train_lock_stays(tmp_path: Path) -> None:
    """What install.sh leaves of the lock where $TORCH_INDEX brings torch: all but torch and what only CUDA needs."""
    [program] = re.findall(r"awk '([^']+)'", (IMAGES / "install.sh").read_text())
    rest = subprocess.run(
        ["awk", program, str(IMAGES / "train.txt")], check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    names = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", rest, re.M)}
    gone = locked("train").keys() - names
    assert {"torch", "torchvision", "triton"} <= gone
    assert all(name in {"torch", "torchvision", "triton"} or name.startswith(("nvidia-", "cuda-")) for name in gone)
    assert rest.count("--hash=") > 1000 and not re.search(r"^ +--hash", rest.splitlines()[0])


def test_what_the_image_copies_is_there_and_let_through() -> None:
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", (IMAGES / "Dockerfile").read_text(), re.M)
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in " ".join(sources).split():
        assert (ROOT / source).exists(), source
        assert source in let_through, source
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"  # data and outputs stay outside by default
    for script in re.findall(r"infra/images/\w+\.sh", (IMAGES / "Dockerfile").read_text()):
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be run"


def test_the_images_run_as_nobody_special() -> None:
    stages = (IMAGES / "Dockerfile").read_text().split("\nFROM ")
    for target in ("score-serve", "train"):
        [stage] = [stage for stage in stages if re.match(rf"\S+ AS {target}\n", stage)]
        assert "\nUSER 1000:1000\n" in stage and "\nHEALTHCHECK " in stage
        assert "org.opencontainers.image.version" in stage


@pytest.mark.skipif(HADOLINT is None, reason="hadolint: it has no wheel for this machine")
def test_hadolint_finds_nothing() -> None:
    assert HADOLINT is not None
    subprocess.run([HADOLINT, str(IMAGES / "Dockerfile")], check=True)


# ---- Compose ---------------------------------------------------------------------------------------------------------

SERVICE_KEYS = {
    "image", "command", "environment", "volumes", "ports", "restart", "depends_on", "read_only", "tmpfs", "shm_size",
    "cap_drop", "security_opt", "profiles", "healthcheck",
}  # fmt: skip


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return found


def words(service: dict[str, Any]) -> list[str]:
    """The command as Compose gives it, with the defaults of its variables."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in service["command"]]


def test_compose_uses_keys_of_the_specification_and_names_what_it_has(compose: dict[str, Any]) -> None:
    assert {key for key in compose if not key.startswith("x-")} == {"name", "services", "volumes"}
    for name, service in compose["services"].items():
        assert service.keys() <= SERVICE_KEYS, (name, service.keys() - SERVICE_KEYS)
        depends = service.get("depends_on", [])
        assert set(depends) <= compose["services"].keys()
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", [])), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (COMPOSE / source).exists() if source.startswith(".") else source in compose["volumes"], volume


def test_what_compose_runs_of_ours_is_read_only_and_understood(compose: dict[str, Any]) -> None:
    ours = {name: one for name, one in compose["services"].items() if "LEUKORAY_IMAGE" in one["image"]}
    assert ours.keys() == {"head", "worker", "endpoint", "bucket"}
    assert all(one["read_only"] and one["tmpfs"][0].startswith("/tmp:uid=1000") for one in ours.values())
    program, job, *flags = words(ours["endpoint"])
    assert program == "leukoray" and job in JOBS
    config = parse(ServeConfig, flags, prog="leukoray serve")
    assert (config.host, config.port) == ("0.0.0.0", 8000)


@pytest.mark.parametrize("name", ["head", "worker"])
def test_ray_knows_the_flags_of_the_nodes(compose: dict[str, Any], name: str) -> None:
    from ray.scripts.scripts import start

    program, command, *flags = words(compose["services"][name])
    assert (program, command) == ("ray", "start")
    known = {option for parameter in start.params for option in parameter.opts}
    assert {flag.split("=")[0] for flag in flags} <= known


def test_prometheus_asks_services_at_the_ports_they_open(compose: dict[str, Any]) -> None:
    asked = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    targets = [
        target for job in asked["scrape_configs"] for static in job["static_configs"] for target in static["targets"]
    ]
    assert {target.split(":")[0] for target in targets} == {"endpoint", "head", "worker"}
    for target in targets:
        name, port = target.split(":")
        assert any(port in word for word in words(compose["services"][name])), target
    for rules in asked["rule_files"]:
        assert (ROOT / "infra" / rules).is_file()


def test_grafana_reads_the_boards_where_compose_puts_them(compose: dict[str, Any]) -> None:
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    [provider] = yaml.safe_load((COMPOSE / "grafana" / "dashboards.yml").read_text())["providers"]
    assert mounts["../monitoring/boards"] == provider["options"]["path"]
    assert list((ROOT / "infra" / "monitoring" / "boards").glob("*.json"))
    [source] = yaml.safe_load((COMPOSE / "grafana" / "datasources.yml").read_text())["datasources"]
    address = source["url"].removeprefix("http://").split(":")
    assert address[0] in compose["services"] and any(
        address[1] in port for port in compose["services"][address[0]]["ports"]
    )
