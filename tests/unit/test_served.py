"""Which applications a service of several models has."""

from pathlib import Path

import pytest

from jobs.serve import ServeConfig
from jobs.served import applications
from pipeline.base.errors import InputError
from tests.bundles import make_bundle


def test_the_first_model_is_at_the_root_and_each_other_below_its_name(tmp_path: Path) -> None:
    bundles = [make_bundle(tmp_path / name, size=16, name=name) for name in ("one", "two")]
    served = applications([bundle.uri for bundle in bundles], bundles)
    assert [(one.application, one.prefix) for one in served] == [("leukoray", "/"), ("leukoray-two", "/models/two")]
    assert [one.url("http://x") for one in served] == ["http://x", "http://x/models/two"]


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    bundles = [make_bundle(tmp_path / place, size=16, name="one") for place in ("a", "b")]
    with pytest.raises(InputError, match="both models named 'one'"):
        applications(["a", "b"], bundles)


def test_a_configuration_may_name_one_model_or_several() -> None:
    assert ServeConfig(model="m").model == ["m"]  # type: ignore[arg-type]  # as a YAML file has it
    assert ServeConfig(model=["m", "n"], grpc_port=9000).model == ["m", "n"]
    with pytest.raises(ValueError, match="--grpc-port 8000 is that of HTTP"):
        ServeConfig(model=["m"], grpc_port=8000)
