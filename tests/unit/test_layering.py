"""What import-linter's contracts cannot see: module names in strings, relative imports, torch on the CPU path."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("pipeline", "jobs", "serving")
CPU_PATH = (
    "pipeline.model.predictor", "pipeline.sources.fetch", "pipeline.sources.listing", "pipeline.ingest.draft",
    "pipeline.model.bundle", "pipeline.scoring.run", "pipeline.scoring.work.worker", "serving.app", "jobs.cli",
    "jobs.ingest", "jobs.samples", "jobs.doctor", "jobs.score", "jobs.serve",
    "jobs.predict",
)  # fmt: skip
MODULE_NAME = re.compile(r"(?:pipeline|jobs|serving)(?:\.\w+)+(?::\w+)?")


def floors() -> list[list[str]]:
    """Rooms from the top down, by the contract in pyproject.toml."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(item["layers"] for item in contracts if item["type"] == "layers")
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def floor_of(module: str) -> tuple[int, str] | None:
    """(how far from the top, room), None for what stands in no room: the packages' own __init__ modules."""
    for depth, rooms in enumerate(floors()):
        for room in rooms:
            if module == room or module.startswith(room + "."):
                return depth, room
    return None


def modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def named_in_strings(source: str) -> set[str]:
    """Modules that string literals name, whole: `"serving.app:Endpoint"` gives `serving.app`."""
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {text.partition(":")[0] for text in strings if isinstance(text, str) and MODULE_NAME.fullmatch(text)}


def climbs(module: str, named: str) -> bool:
    """Whether `module` names one of a room that it could not import."""
    here, there = floor_of(module), floor_of(named)
    return here is not None and there is not None and here[1] != there[1] and there[0] <= here[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_named_in_a_string_is_held_to_the_order_of_imports(path: Path) -> None:
    module = module_name(path)
    assert not [name for name in named_in_strings(path.read_text()) if climbs(module, name)]


def test_a_name_in_a_string_that_climbs_is_found() -> None:
    assert named_in_strings('run("serving.app:Endpoint", "see serving.app")') == {"serving.app"}
    assert climbs("pipeline.scoring.run", "serving.app")
    assert climbs("pipeline.sources.fetch", "pipeline.model.bundle")
    assert not climbs("jobs.serve", "serving.app")
    assert not climbs("pipeline.scoring.run", "pipeline.scoring.plan.freeze")


def test_every_module_stands_in_a_room() -> None:
    homeless = [name for path in modules() if floor_of(name := module_name(path)) is None]
    assert homeless == ["pipeline"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute(path: Path) -> None:
    tree = ast.parse(path.read_text(), str(path))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def test_cpu_scoring_and_serving_import_no_torch() -> None:
    program = f"""
import importlib, sys
for name in {CPU_PATH!r}:
    importlib.import_module(name)
    heavy = sorted(set(sys.modules) & {{"torch", "torchvision"}})
    if heavy:
        sys.exit(f"{{name}} imports {{', '.join(heavy)}}")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_counts_of_replicas_start_without_serve() -> None:
    program = "import serving.monitoring.sharing, sys; sys.exit(', '.join({'ray.serve', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("modules", "late"),
    [
        (("jobs.train",), ("scipy", "sklearn", "matplotlib", "torchvision", "onnxscript", "ray.train")),  # the driver
        (
            ("jobs.train", "pipeline.training.probe", "pipeline.training.publish"),
            ("matplotlib", "ray.train", "ray.data"),
        ),
        (("pipeline.training.features",), ("torch", "scipy", "pandas", "ray.train", "ray.data")),  # what extracts them
        (("pipeline.training.loop",), ("scipy", "sklearn", "matplotlib", "torchvision", "boto3")),  # a worker
        (("pipeline.training.group", "pipeline.training.progress"), ("torch", "scipy", "cv2")),  # Ray's controller
    ],
)
def test_training_starts_without_what_only_its_end_or_others_need(
    modules: tuple[str, ...], late: tuple[str, ...]
) -> None:
    program = f"import {', '.join(modules)}, sys; sys.exit(', '.join(set(sys.modules) & set({late!r})))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == ""
