"""What is broken, and which tests have to notice: rooms of promises, each some modules and the tests that hold them."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Room:
    """Modules and test files, as patterns below the root of the repository."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]

    def module_paths(self) -> list[str]:
        return _files(self.modules)

    def test_paths(self) -> list[str]:
        return _files(self.tests)


def _files(patterns: tuple[str, ...]) -> list[str]:
    """Sorted paths below the root; a pattern that fits nothing is a mistake here."""
    found: set[str] = set()
    for pattern in patterns:
        paths = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern) if path.name != "__init__.py"}
        if not paths:
            raise FileNotFoundError(f"tests/mutants/rooms.py: {pattern} fits no file")
        found |= paths
    return sorted(found)


SCORING_TESTS = ("tests/unit/test_scoring*.py",)
ROOMS = {
    "images": Room(
        ("pipeline/images/*.py", "pipeline/images/formats/*.py"),
        tuple(f"tests/unit/test_{name}.py" for name in ("images", "formats", "dicom", "depth", "channels", "noise")),
    ),
    "predictor": Room(
        ("pipeline/model/predictor.py", "pipeline/model/prediction.py"),
        ("tests/unit/test_predictor.py", "tests/unit/test_export.py"),
    ),
    "accounting": Room(
        (
            "pipeline/scoring/commit/*.py",
            "pipeline/scoring/plan/*.py",
            "pipeline/scoring/history/*.py",
            "pipeline/scoring/work/parts.py",
        ),
        SCORING_TESTS,
    ),
    "lock": Room(("pipeline/storage/lock.py",), ("tests/unit/test_lock.py", "tests/integration/test_lock.py")),
    "endpoint": Room(
        (
            "serving/guard.py",
            "serving/intake.py",
            "serving/admission.py",
            "serving/multipart.py",
            "serving/decoding.py",
        ),
        ("tests/unit/test_serving*.py", "tests/unit/test_admission.py", "tests/unit/test_decoding.py"),
    ),
    "protocol": Room(("serving/protocols/oip/tensors.py",), ("tests/unit/test_oip.py",)),
    "leaks": Room(
        ("pipeline/ingest/splits.py", "pipeline/ingest/split_units.py", "pipeline/ingest/copies.py"),
        ("tests/unit/test_splits.py", "tests/unit/test_copies.py", "tests/unit/test_layouts.py"),
    ),
    "numbers": Room(
        ("pipeline/evaluation/intervals.py", "pipeline/evaluation/adverse.py", "pipeline/evaluation/metrics.py"),
        ("tests/unit/test_metrics.py", "tests/unit/test_intervals.py", "tests/unit/test_evaluation.py"),
    ),
}
