"""infra/systemd, infra/aws and infra/slurm are what systemd, Ray, AWS and our own commands take."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from jobs.config import parse
from pipeline.base.resources import check, scoring_plan, training_plan
from tests.reference import config_of

INFRA = Path(__file__).resolve().parents[2] / "infra"
UNITS = sorted(INFRA.glob("systemd/*.service"))
ANALYZE = shutil.which("systemd-analyze")
OWN = "/opt/leukoray/venv/bin"


def settings() -> dict[str, str]:
    """The example of an EnvironmentFile."""
    lines = (INFRA / "systemd" / "leukoray.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def unit(file: Path) -> dict[str, list[str]]:
    """All values by key; a key may come several times."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", file.read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def started(file: Path) -> list[str]:
    """The program and its words after the shell's and systemd's `$NAME`, as the unit would start it."""
    [line] = unit(file)["ExecStart"]
    words = shlex.split(line)
    if words[0] == "/bin/bash":
        words = shlex.split(words[-1].replace("$$", "$").partition("exec ")[2])
    return [word for text in words for word in _filled(text)]


def _filled(word: str) -> list[str]:
    """A `$NAME` alone is split as systemd and the shell do; elsewhere its value takes its place."""
    known = settings()
    if re.fullmatch(r"\$\w+", word):
        return shlex.split(known[word[1:]])
    word = word.replace("${LEUKORAY_HEAD##*:}", known["LEUKORAY_HEAD"].rpartition(":")[2])
    return [re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found[1], found[0]), word)]


def unknown_to_ray(words: list[str]) -> set[str]:
    """Options that `ray start` does not have."""
    known = {option for parameter in start.params for option in parameter.opts}
    return {word.partition("=")[0] for word in words if word.startswith("--")} - known


# ---- systemd ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is missing; apt-get install systemd")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for file in (*UNITS, INFRA / "systemd" / "leukoray-score.timer"):
        (tmp_path / file.name).write_text(file.read_text().replace(OWN, str(Path(sys.executable).parent)))
    done = subprocess.run(
        [str(ANALYZE), "verify", *map(str, tmp_path.iterdir())], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_units_start_our_programs_with_options_that_they_have() -> None:
    for file in UNITS:
        program, job, *arguments = started(file)
        if program == f"{OWN}/ray":
            assert job == "start" and unknown_to_ray(arguments) == set(), file.name
            continue
        assert program == f"{OWN}/leukoray", file.name
        config = parse(config_of(job), arguments, prog=job)
        assert config.address == settings()["LEUKORAY_HEAD"], file.name


def test_an_option_that_ray_does_not_have_would_be_seen() -> None:
    assert unknown_to_ray(["--head", "--dashbord-host=127.0.0.1"]) == {"--dashbord-host"}


def test_what_is_stopped_has_longer_than_a_request_may_take() -> None:
    file = INFRA / "systemd" / "leukoray-endpoint.service"
    _, job, *arguments = started(file)
    longest = parse(config_of(job), arguments, prog=job).request_timeout_s
    assert int(unit(file)["TimeoutStopSec"][0]) >= 2 * longest
    drained = float(settings()["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    for kind in ("head", "worker"):
        ended = int(unit(INFRA / "systemd" / f"leukoray-{kind}.service")["TimeoutStopSec"][0])
        assert ended > drained + 15 and drained > longest, kind


def test_every_unit_runs_as_its_own_account_with_what_the_environment_file_says() -> None:
    assert len(UNITS) == 4
    for file in UNITS:
        found = unit(file)
        assert found["User"] == ["leukoray"] and found["EnvironmentFile"] == ["/etc/leukoray/leukoray.env"]
        assert found["NoNewPrivileges"] == ["yes"] and found["ProtectSystem"] == ["strict"]
        assert "PrivateDevices" not in found and "PrivateIPC" not in found  # GPUs, the object store
    assert settings()["RAY_AUTH_MODE"] == "token"


def test_a_score_that_a_person_must_look_at_is_not_begun_again() -> None:
    found = unit(INFRA / "systemd" / "leukoray-score.service")
    assert found["Restart"] == ["on-failure"]
    assert set(found["RestartPreventExitStatus"][0].split()) == {"1", "2", "3", "4"}  # 5 is the environment's


# ---- AWS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def aws() -> dict[str, Any]:
    return dict(yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text()))


def start_commands(config: dict[str, Any]) -> Iterator[list[str]]:
    for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if line.startswith("ray start "):
            yield shlex.split(line)[2:]


def test_ray_takes_the_cluster_and_installs_nothing_on_the_way(aws: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(aws))
    validate_config(prepared)
    for kind in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[kind] == [], kind
    commands = list(start_commands(prepared))
    assert len(commands) == 2
    assert [unknown_to_ray(words) for words in commands] == [set(), set()]


def test_a_field_that_ray_does_not_know_is_refused(aws: dict[str, Any]) -> None:
    aws["idle_timeout_minuets"] = aws.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(aws))


def refused_by_ec2(node_config: dict[str, Any]) -> str:
    """What is wrong with the fields of an instance, by Amazon's own description of RunInstances."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return str(ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape).generate_report())


def test_amazon_has_the_fields_of_every_kind_of_node(aws: dict[str, Any]) -> None:
    for name, kind in aws["available_node_types"].items():
        assert refused_by_ec2(kind["node_config"]) == "", name
        assert kind["node_config"]["IamInstanceProfile"]["Name"], name
    assert "InstanceTyp" in refused_by_ec2({"InstanceTyp": "m6i.xlarge"})


def test_jobs_find_room_on_the_nodes_that_may_come(aws: dict[str, Any]) -> None:
    kinds = aws["available_node_types"]
    assert kinds[aws["head_node_type"]]["resources"]["CPU"] == 0
    workers = {name: kind for name, kind in kinds.items() if name != aws["head_node_type"]}
    assert aws["max_workers"] >= max(kind["max_workers"] for kind in workers.values())
    for name, kind in workers.items():
        nodes = [kind["resources"]] * kind["max_workers"]
        check(scoring_plan(nodes), nodes)
        if "gpu" in name:
            plan = training_plan(nodes)
            check(plan, nodes)
            assert plan.gpus == kind["max_workers"]


# ---- Slurm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["train", "score"])
def test_the_scripts_of_slurm_end_before_their_time_and_go_back_into_the_queue(job: str) -> None:
    text = (INFRA / "slurm" / f"{job}.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert "requeue" in options and options["signal"].startswith("B:USR1@") and options["open-mode"] == "append"
    assert int(options["signal"].partition("@")[2]) >= 60  # a job ends in seconds, Ray in ten more
    assert text.endswith(f'run {job} "$@"\n')


def test_the_scripts_of_slurm_start_ray_with_options_that_it_has() -> None:
    text = (INFRA / "slurm" / "ray.sh").read_text()
    node = text.partition("\nnode() {")[2].partition("\n}\n")[0]
    words = re.findall(r"--[a-z][a-z-]+", node)
    assert len(words) >= 9
    assert unknown_to_ray([word for word in words if word != "--signal"]) == set()
