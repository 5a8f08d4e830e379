"""What doctor says of machines and stores that lack something: each finding with its level and what mends it."""

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import doctor
from jobs.doctor_config import DoctorConfig
from jobs.doctor_machine import packages
from jobs.doctor_store import _abilities
from pipeline.base.finding import Finding
from pipeline.base.node_facts import Disk, NodeFacts, judge, judge_beside, judge_store_clock, look
from pipeline.storage.abilities import Abilities
from pipeline.storage.types import Conditions

WELL = NodeFacts(
    cores=8,
    memory_bytes=64 << 30,
    free_memory_bytes=32 << 30,
    shm_free_bytes=16 << 30,
    disks=(Disk("/tmp", "TMPDIR", 100 << 30, True),),
    open_files=65536,
    gpus=0,
    driver="",
    torch_is_cpu_build=False,
    visible_gpus=None,
    versions={"onnxruntime": "1.32.0", "leukoray": "0.1.0, code 12345678"},
)


def wrong(found: list[Finding]) -> list[tuple[str, str, str | None]]:
    return [(one.level, one.name, one.mend) for one in found if one.level != "ok"]


def test_a_machine_that_is_well_has_nothing_to_mend() -> None:
    assert wrong([*judge(WELL), *judge_beside(WELL, WELL, 0.2, 0.1)]) == []
    assert wrong(list(judge(replace(WELL, open_files=-1)))) == []


@pytest.mark.parametrize(
    ("lack", "found"),
    [
        ({"memory_bytes": 1 << 30}, ("warn", "memory", None)),
        ({"shm_free_bytes": 64 << 20}, ("warn", "/dev/shm", "mount -o remount,size=4G /dev/shm")),
        ({"shm_free_bytes": None}, ("warn", "/dev/shm", None)),
        ({"disks": (Disk("/tmp", "TMPDIR", 1 << 20, True),)}, ("fail", "temp folder", None)),
        ({"disks": (Disk("/out", "--out", 1 << 30, True),)}, ("warn", "--out", None)),
        ({"disks": (Disk("/out", "--out", 1 << 40, False),)}, ("fail", "--out", None)),
        ({"open_files": 1024}, ("warn", "open files", "ulimit -n 65536")),
        ({"open_files": 256}, ("fail", "open files", "ulimit -n 65536")),
        ({"gpus": 1}, ("warn", "gpu", "modprobe nvidia")),
        (
            {"gpus": 1, "driver": "580.1", "torch_is_cpu_build": True},
            ("warn", "gpu", "pip install --force-reinstall torch torchvision"),
        ),
    ],
)
def test_what_a_machine_lacks_is_told(lack: dict[str, object], found: tuple[str, str, str | None]) -> None:
    assert wrong(list(judge(replace(WELL, **lack)))) == [found]  # type: ignore[arg-type]


def test_versions_and_drivers_of_a_node_are_held_against_this_machine_s() -> None:
    other = replace(WELL, driver="570.2", versions={"onnxruntime": "1.30.0"})
    found = wrong(list(judge_beside(other, replace(WELL, driver="580.1"), 0.0, 0.0)))
    assert found == [
        ("fail", "onnxruntime", "pip install onnxruntime==1.32.0"),
        ("warn", "leukoray", None),
        ("warn", "gpu", None),
    ]


@pytest.mark.parametrize(
    ("skew_s", "error_s", "level"),
    [(4.0, 0.1, None), (-9.0, 0.1, "warn"), (9.0, 8.0, None), (1000.0, 3.0, "fail"), (-3600.0, 0.1, "fail")],
)
def test_a_clock_counts_as_skewed_by_what_is_known_for_sure(skew_s: float, error_s: float, level: str | None) -> None:
    found = wrong(list(judge_beside(WELL, WELL, skew_s, error_s)))
    assert found == ([] if level is None else [(level, "clock", "chronyc makestep")])
    assert error_s > 5 or judge_store_clock(skew_s).level == (level or "ok")


def test_a_full_disk_is_seen_though_temporary_files_would_go_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert [disk.folder for disk in look([(str(tmp_path / "not" / "yet"), "--out")]).disks] == [
        str(tmp_path),
        str(tmp_path / "not" / "yet"),
    ]


def test_what_a_store_lacks_is_told() -> None:
    well = Abilities(Conditions.QUOTED, ranges=True, checks_digests=True, long_keys=True)
    assert wrong(list(_abilities("s3://lab/out", well))) == []
    poor = Abilities(Conditions.NONE, False, False, False, deletes=False, tells_versions=False)
    found = wrong(list(_abilities("s3://lab/out", poor)))
    assert [(level, name) for level, name, _ in found] == [
        ("fail", "--out"),
        *(("warn", f"--out {name}") for name in ("locks", "ranges", "digests", "names", "etags")),
    ]
    assert [mend for _, name, mend in found if name == "--out locks"] == [
        "leukoray score SOURCE --model MODEL --out s3://lab/out --single-writer"
    ]


def test_doctor_s_findings_are_one_object_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert doctor.command(["--json", "--out", str(tmp_path)]) == 5
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] == 1 and all(
        set(one) == {"level", "name", "text", "mend", "node"} for one in told["findings"]
    )
    [failed] = [one for one in told["findings"] if one["level"] == "fail"]
    assert failed["name"] == "ray token" and "ray get-auth-token" in failed["mend"]


def test_a_package_that_slows_every_process_of_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not among our own: this environment, in which all extras are, lacks it."""
    assert wrong(list(packages(DoctorConfig()))) == []
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.1.0" if "rfc3987" in name else known(name))
    assert wrong(list(packages(DoctorConfig()))) == [("warn", "packages", "pip uninstall rfc3987-syntax")]
