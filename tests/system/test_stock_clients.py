"""Clients that nobody here wrote, run unchanged against the service: what they call a standard has to be one."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.settings import ServingSettings
from tests.bundles import make_bundle
from tests.clients import ROOT, run_client
from tests.live import live

KEY = "k1"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=32, synthetic=True).uri


@pytest.fixture(scope="module")
def url(model_uri: str) -> Iterator[str]:
    with live(ServingSettings(model=model_uri)) as address:
        yield address


@pytest.fixture(scope="module")
def guarded_url(model_uri: str) -> Iterator[str]:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    with live(ServingSettings(model=model_uri, api_key_sha256=(digest,))) as address:
        yield address


def schemathesis(url: str, folder: Path, config: str) -> str:
    """Every check that it has, on every route of /openapi.json."""
    (folder / "schemathesis.toml").write_text(config)
    hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(ROOT / "tests" / "clients")}
    command = ["-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--no-color", "--max-examples", "60"]
    return run_client("schemathesis", *command, cwd=folder, env=hooks)


@pytest.mark.parametrize("key", [None, KEY])
def test_schemathesis_finds_nothing_without_keys_and_with_them(
    url: str, guarded_url: str, tmp_path: Path, key: str | None
) -> None:
    config = f'[auth.openapi.APIKeyHeader]\napi_key = "{key}"\n' if key else ""
    said = schemathesis(guarded_url if key else url, tmp_path, config)
    assert "No issues found" in said and "/predict" not in said, said
