"""Configuration: one model, four places a value may come from, and messages that name the flag."""

from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field, ValidationError

from jobs.config import JobConfig, effective, parse, positional
from jobs.train_options import TrainConfig, refuse_idle_workers
from pipeline.base.errors import UsageError
from pipeline.base.plain_yaml import read_yaml


class Color(StrEnum):
    RED = "red"


class Example(JobConfig):
    """An example job."""

    source: list[str] = positional(min_length=1, description="what to read")
    size: int = Field(7, ge=1, description="pixels, 100 % of them")
    rate: float | None = Field(None, gt=0, description="per second")
    tags: list[str] = Field([], description="words")
    mode: Literal["fast", "slow"] = Field("slow", description="how")
    color: Color | None = Field(None, description="which")
    keep: bool = Field(True, description="keep it")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Example.model_fields:
        monkeypatch.delenv(f"LEUKORAY_{name.upper()}", raising=False)


def read(*argv: str) -> Example:
    return parse(Example, argv, prog="leukoray example")


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(text)
    return str(path)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = yaml_file(tmp_path, "size: 20\nrate: 2\n")
    assert read("x").size == 7
    assert read("x", "--config", file).size == 20
    monkeypatch.setenv("LEUKORAY_SIZE", "30")
    assert read("x", "--config", file).size == 30
    assert read("x", "--config", file, "--size", "40").size == 40
    assert read("x", "--config", file).rate == 2.0


def test_a_file_gives_positionals_lists_and_dashed_keys(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "source: [a, b]\ntags: [x]\ns3-anonymous: true\nkeep: false\n")
    config = read("--config", file)
    assert (config.source, config.tags, config.s3_anonymous, config.keep) == (["a", "b"], ["x"], True, False)


def test_lists_take_several_values_and_repeated_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read("a", "b", "--tags", "x", "y", "--tags", "z").tags == ["x", "y", "z"]
    monkeypatch.setenv("LEUKORAY_TAGS", "p,q")
    assert read("a").tags == ["p", "q"]


def test_a_comma_belongs_to_the_name_of_a_file() -> None:
    assert read("slides,2026/", "--tags", "a,b").source == ["slides,2026/"]
    assert read("x", "--tags", "a,b").tags == ["a,b"]


def test_the_environment_gives_positionals_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKORAY_SOURCE", "a,b")
    assert read().source == ["a", "b"]
    assert read("c").source == ["c"]


def test_booleans_have_a_flag_for_each_side() -> None:
    assert read("a", "--no-keep").keep is False
    assert read("a", "--keep").keep is True


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a", "--size", "0"], "--size '0': Input should be greater than or equal to 1"),
        (["a", "--size", "ten"], "--size 'ten': .*valid integer"),
        (["a", "--rate", "-1"], "--rate"),
        (["a", "--mode", "quick"], "--mode 'quick'.*'fast' or 'slow'"),
        (["a", "--color", "blue"], "--color 'blue'.*'red'"),
        (["a", "--siez", "3"], "--siez.*--help"),
        (["a", "--size"], "--size.*expected one argument"),
        ([], "SOURCE is missing: what to read"),
    ],
)
def test_a_bad_value_names_its_flag(argv: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(*argv)


def test_several_bad_values_are_told_at_once() -> None:
    with pytest.raises(UsageError, match=r"--size .*--mode "):
        read("a", "--size", "0", "--mode", "quick")


def test_maps_that_are_merged_give_nothing_twice() -> None:
    """Wherever the map stands that is merged, and though it overrides what it merges itself."""
    text = "a: &a {x: 1}\nd: {i: &b {<<: *a, x: 2}}\nc: {<<: *b}\n"
    assert read_yaml(text)["d"] == {"i": {"x": 2}}
    with pytest.raises(yaml.YAMLError, match="'x' is given twice, again in line 3"):
        read_yaml("a:\n- x: 1\n  x: 2\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("siez: 3\n", "unknown key siez; known keys: .*size"),
        ("- a\n", "found a list"),
        ("a: [\n", "not valid YAML"),
        ("size: 20\nrate: 2\nsize: 21\n", "'size' is given twice, again in line 3"),
        ("s3-anonymous: true\ns3_anonymous: false\n", "s3_anonymous is given twice"),
        ("size: 0\nsource: [a]\n", "--size 0"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read("--config", yaml_file(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match=f"--config {path}"):
            read("--config", str(path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not valid YAML"):
        read("--config", str(tmp_path / "binary.yaml"))


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read("a", "--config", yaml_file(tmp_path, "")) == read("a")


def test_help_shows_every_flag_with_its_default_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read("--help")
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pixels, 100 % of them (default: 7)" in shown
    for name in Example.model_fields:
        assert f"--{name.replace('_', '-')}" in shown or name.upper() in shown


def test_a_configuration_is_frozen_and_shown_as_plain_values() -> None:
    config = read("a", "--color", "red")
    with pytest.raises(ValidationError):
        config.size = 3
    assert effective(config)["color"] == "red"


def test_two_numbers_with_a_colon_are_no_number_of_base_60(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("workers: 2:8\nbatch_size: 0x10\nlearning_rate: 1.5e-2\n")
    found = parse(TrainConfig, ["manifest", "--config", str(tmp_path / "train.yaml")], prog="train")
    assert (found.workers, found.batch_size, found.learning_rate) == ("2:8", 16, 0.015)


@pytest.mark.parametrize(("given", "found"), [("4", (None, 4)), ("2:8", (2, 8)), ("3:3", (3, 3))])
def test_workers_are_a_number_or_the_fewest_and_the_most(given: str, found: tuple[int | None, int]) -> None:
    assert parse(TrainConfig, ["manifest", "--workers", given], prog="train").worker_range == found


@pytest.mark.parametrize("given", ["0", "8:2", "2:", ":8", "two", "1:2:3", "2-8"])
def test_other_workers_are_refused(given: str) -> None:
    with pytest.raises(UsageError, match="--workers"):
        parse(TrainConfig, ["manifest", "--workers", given], prog="train")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--seed", str(2**32)),  # what scikit-learn and torch take
        ("--batch-size", "2000000000"),
        ("--cpus-per-worker", "0.00001"),  # Ray counts in ten thousandths
        ("--costs", "FN=1e300,FP=1e-300"),
        ("--costs", "FN=5,FN=6"),
        ("--costs", "FN=0"),
        ("--costs", "FN"),
    ],
)
def test_numbers_that_nothing_below_can_compute_with_are_refused(flag: str, value: str) -> None:
    with pytest.raises(UsageError, match=flag):
        parse(TrainConfig, ["manifest", flag, value], prog="train")


def test_no_worker_goes_without_an_image_in_every_batch() -> None:
    few = parse(TrainConfig, ["manifest", "--batch-size", "2", "--workers", "3"], prog="train")
    with pytest.raises(UsageError, match="--workers 3: a batch has 2 images"):
        refuse_idle_workers(few)
    one = parse(TrainConfig, ["manifest", "--batch-size", "1"], prog="train")
    assert one.plan([{"CPU": 8.0}]).workers == 1
    assert one.plan([{"CPU": 8.0, "GPU": 4.0}]).workers == 1
