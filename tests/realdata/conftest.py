"""Real images that are not part of the repository; their tests are skipped where they are missing."""

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the public data sets: $LEUKORAY_REAL_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("LEUKORAY_REAL_DATA") or _REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real images: none at {folder}; name their folder in LEUKORAY_REAL_DATA")
    return folder
