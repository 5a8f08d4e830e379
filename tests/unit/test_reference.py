"""docs/reference.md is what the code says, whole."""

from jobs.cli import JOBS
from jobs.config import options
from serving.settings import ServingSettings
from tests import reference


def test_the_reference_is_made_from_the_code_as_it_is() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run `make reference` and commit what it writes"


def test_everything_in_the_reference_says_what_it_means() -> None:
    for job in JOBS:
        for option in options(reference.config_of(job)):
            assert option.meaning, f"leukoray {job} {option.flag}"
    for option in options(ServingSettings):
        assert option.meaning, f"service: {option.name}"
    for name, (schema, _) in reference.FILES.items():
        for field in schema:
            assert (field.metadata or {}).get(b"meaning"), f"{name}: {field.name}"
