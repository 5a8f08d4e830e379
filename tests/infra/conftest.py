"""What wants packages of its own is collected where it is asked for: `make test-infra`, or `pytest tests/infra`."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    here = Path(__file__).resolve().parent
    return None if any(path.is_relative_to(here) for path in asked) else True
