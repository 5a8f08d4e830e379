"""The configuration files under infra/jobs are what their jobs take."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.config import parse
from pipeline.base.errors import UsageError
from tests.reference import config_of

FILES = sorted((Path(__file__).resolve().parents[2] / "infra" / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_configuration_of_a_job_is_read_whole(file: Path) -> None:
    config = parse(config_of(file.stem), ["--config", str(file)], prog=file.stem)
    written: dict[str, Any] = yaml.safe_load(file.read_text())
    assert written
    read = {key: getattr(config, key) for key in written}
    assert {key: str(value) for key, value in read.items()} == {key: str(value) for key, value in written.items()}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_key_that_the_job_does_not_know_would_be_refused(file: Path, tmp_path: Path) -> None:
    broken = tmp_path / file.name
    broken.write_text(file.read_text() + "wrokers: 2\n")
    with pytest.raises(UsageError, match="unknown key wrokers"):
        parse(config_of(file.stem), ["--config", str(broken)], prog=file.stem)


def test_there_is_one_for_training_and_one_for_the_nightly_scoring() -> None:
    assert {file.stem for file in FILES} == {"train", "score"}
