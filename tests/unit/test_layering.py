"""The rooms: `pipeline` knows neither `jobs` nor `serving`, these know only `pipeline`; no torch on the CPU path."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("pipeline", "jobs", "serving")
FORBIDDEN = {"pipeline": {"jobs", "serving", "tests"}, "jobs": {"serving", "tests"}, "serving": {"jobs", "tests"}}
CPU_PATH = (
    "pipeline.predictor", "pipeline.fetch", "pipeline.listing", "pipeline.ingest", "pipeline.manifest",
    "pipeline.bundle", "pipeline.scoring", "pipeline.scoring.worker", "serving.app", "jobs.cli", "jobs.ingest",
    "jobs.samples", "jobs.doctor", "jobs.score", "jobs.serve",
)  # fmt: skip


def modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """Top-level names imported anywhere in a file, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_the_rooms_below_it(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert not imported_rooms(path) & FORBIDDEN[room]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute(path: Path) -> None:
    tree = ast.parse(path.read_text(), str(path))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def test_cpu_scoring_and_serving_import_no_torch() -> None:
    present = [name for name in CPU_PATH if _exists(name)]
    assert {"pipeline.predictor", "pipeline.fetch", "pipeline.listing", "jobs.ingest"} <= set(present)
    program = f"""
import importlib, sys
for name in {present!r}:
    importlib.import_module(name)
    heavy = sorted(set(sys.modules) & {{"torch", "torchvision"}})
    if heavy:
        sys.exit(f"{{name}} imports {{', '.join(heavy)}}")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def _exists(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
