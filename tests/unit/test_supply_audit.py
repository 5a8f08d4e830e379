"""What `make audit` says: known vulnerabilities by name, and never that all is well where nothing was asked."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "infra" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
SKIPPED = {"name": "ray", "skip_reason": "Dependency not found on PyPI and could not be audited: ray (2.60.0)"}
KNOWN = {"name": "pillow", "version": "11.3.0", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["11.4"]}]}


def test_what_is_known_is_named_with_its_remedy(audit: ModuleType) -> None:
    told, is_known = audit.report("installed", answer(CLEAN, KNOWN))
    assert is_known and "2 of 2 packages checked, 1 known" in told
    assert "pillow 11.3.0: CVE-2026-1, mended in 11.4" in told


def test_what_was_not_asked_is_not_called_clean(audit: ModuleType) -> None:
    """As pip-audit answers, with exit 0, where PyPI's list is out of reach."""
    told, is_known = audit.report("installed", answer(SKIPPED))
    assert "NOT CHECKED" in told and "no known" not in told and not is_known
    told, is_known = audit.report("installed", "", "ConnectionError: no route to host")
    assert "NOT CHECKED" in told and "no route to host" in told and not is_known
    told, _ = audit.report("installed", answer(CLEAN, SKIPPED))
    assert "1 of 2 packages checked, no known vulnerabilities; NOT CHECKED: ray" in told


def test_a_missing_tool_is_no_clean_bill(audit: ModuleType) -> None:
    told, is_known = audit.report("installed", *audit.asked("/nowhere/uvx"))
    assert "NOT CHECKED" in told and not is_known


def test_locks_are_those_with_hashes(audit: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "infra" / "images"
    folder.mkdir(parents=True)
    (folder / "score-serve.txt").write_text("numpy==2.4.6 --hash=sha256:00\n")
    (folder / "build.txt").write_text("hatchling\n")
    assert [path.name for path in audit.locks(tmp_path)] == ["score-serve.txt"]
