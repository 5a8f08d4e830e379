"""Scoring under faults, each in a process and a Ray of its own: no image is lost or doubled, and the user is told."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline.model.bundle import Bundle
from tests.bundles import make_bundle
from tests.scoring_sources import (
    ROOT,
    contents,
    mixed_files,
    only_run,
    outcome,
    picture,
    read_run,
    rows,
    run_score,
    score_command,
    tar,
    write_files,
)
from tests.servers import Faults, S3Server, faulty_proxy

from .chaos import VICTIMS, chaos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.mark.chaos
def test_kills_of_each_kind_lose_and_double_nothing() -> None:
    seed = int(os.environ.get("LEUKORAY_CHAOS_SEED", "3"))
    tally = chaos(6, seed, where=("disk", "s3"), images=400, kills_a_run=3)
    assert tally.differences == []
    assert all(tally.kills[victim] for victim in VICTIMS), f"the kills came too late to mean anything: {tally}"


def test_a_store_that_fails_one_request_in_twenty_loses_nothing(s3: S3Server, bundle: Bundle, tmp_path: Path) -> None:
    files = contents(240, bad=False)
    uri = s3.upload("faulty", files)
    names = sorted(files)
    faults = Faults(
        share=0.05, latency_s=0.05, stall_s=30.0, denied=frozenset(names[:2]), gone=frozenset(names[2:3]), seed=5
    )
    with faulty_proxy(s3.endpoint, faults) as endpoint:
        done = run_score(uri, "--model", bundle.uri, "--out", str(tmp_path / "out"), env=s3.at(endpoint).env)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "out")
    assert read_run(run)["counts"]["codes"] == {"access_denied": 2, "not_found": 1}
    assert rows(run).num_rows == 237
    assert faults.failed > 0 and read_run(run)["progress"]["fetch_attempts"] > 240


def test_an_object_replaced_between_list_and_get_is_scored_as_it_is_now(
    s3: S3Server, bundle: Bundle, tmp_path: Path
) -> None:
    client = s3.client()
    uri = s3.upload("replaced", contents(20, bad=False))
    fresh = picture(4242)

    def replace(path: str, _: int) -> None:
        if path.endswith("S003_00003.jpg"):
            client.put_object(Bucket=s3.bucket, Key="replaced/S003_00003.jpg", Body=fresh)

    with faulty_proxy(s3.endpoint, Faults(before_get=replace)) as endpoint:
        done = run_score(uri, "--model", bundle.uri, "--out", str(tmp_path / "out"), env=s3.at(endpoint).env)
    assert done.returncode == 0, done.stderr
    [row] = [row for row in rows(only_run(tmp_path / "out")).to_pylist() if row["uri"].endswith("S003_00003.jpg")]
    assert row["size_bytes"] == len(fresh)
    assert row["etag"] == client.head_object(Bucket=s3.bucket, Key="replaced/S003_00003.jpg")["ETag"].strip('"')


def test_credentials_that_expire_mid_run_are_renewed_from_their_file(
    s3: S3Server, bundle: Bundle, tmp_path: Path
) -> None:
    uri = s3.upload("expiring", contents(150, bad=False))
    secrets_file = tmp_path / "credentials"
    secrets_file.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = x\n")
    faults = Faults()

    def expire(_: str, gets: int) -> None:
        if gets == 60:
            faults.expired_keys.add("old")
            secrets_file.write_text("[default]\naws_access_key_id = new\naws_secret_access_key = x\n")

    faults.before_get = expire
    with faulty_proxy(s3.endpoint, faults) as endpoint:
        env = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": str(secrets_file),
            "AWS_REGION": "us-east-1",
        }
        env |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
        done = run_score(uri, "--model", bundle.uri, "--out", str(tmp_path / "out"), env=env)
    assert done.returncode == 0, done.stderr
    assert rows(only_run(tmp_path / "out")).num_rows == 150


def test_an_outage_stops_the_run_and_the_same_command_finishes_it(s3: S3Server, bundle: Bundle, tmp_path: Path) -> None:
    uri = s3.upload("outage", contents(200, bad=False))
    faults = Faults()

    def break_down(_: str, gets: int) -> None:
        faults.is_down = faults.is_down or gets == 80

    faults.before_get = break_down
    arguments = (uri, "--model", bundle.uri, "--out", str(tmp_path / "out"))
    with faulty_proxy(s3.endpoint, faults) as endpoint:
        env = s3.at(endpoint).env
        first = run_score(*arguments, env=env, timeout_s=400)
        assert first.returncode == 5 and "does not answer" in first.stderr, first.stderr
        faults.before_get, faults.is_down = None, False
        second = run_score(*arguments, env=env)
    assert second.returncode == 0, second.stderr
    assert rows(only_run(tmp_path / "out")).num_rows == 200


@pytest.mark.parametrize("packing", ["files", "tgz"])
def test_a_picture_that_kills_the_decoder_costs_that_picture_only(packing: str, bundle: Bundle, tmp_path: Path) -> None:
    """A decoder with a bug, planted from outside: bytes with a mark end the process that decodes them."""
    plant = tmp_path / "plant"
    plant.mkdir()
    (plant / "sitecustomize.py").write_text(
        "import ctypes, simplejpeg\n"
        "sound = simplejpeg.decode_jpeg\n"
        "def decode_jpeg(data, *a, **k):\n"
        "    if b'END-OF-PROCESS' in data[-64:]:\n"
        "        ctypes.string_at(0)\n"
        "    return sound(data, *a, **k)\n"
        "simplejpeg.decode_jpeg = decode_jpeg\n"
    )
    files = contents(130, bad=False)
    culprit = sorted(files)[70]
    files[culprit] += b"END-OF-PROCESS"
    source = write_files(tmp_path / "in", files if packing == "files" else {"night.tgz": tar(files, "w:gz")})
    done = run_score(
        str(source), "--model", bundle.uri, "--out", str(tmp_path / "out"), env={"PYTHONPATH": f"{plant}:{ROOT}"}
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "out")
    [bad] = rows(run, "quarantine").to_pylist()
    assert (Path(bad["member"] or bad["uri"]).name, bad["code"]) == (culprit, "crashed_decoder")
    assert rows(run).num_rows == 129


def test_a_full_disk_stops_the_run_and_the_same_command_finishes_it(bundle: Bundle, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a full disk: no right to mount a small one; run as root")
    try:
        source = write_files(tmp_path / "in", contents(400))
        arguments = (str(source), "--model", bundle.uri, "--out", str(disk / "scores"), "--max-error-share", "0.2")
        first = run_score(*arguments)
        assert first.returncode == 5 and "full" in first.stderr, first.stderr
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        second = run_score(*arguments)
        assert second.returncode == 0, second.stderr
        assert run_score(*arguments[:-3], str(tmp_path / "whole"), *arguments[-2:]).returncode == 0
        assert outcome(only_run(disk / "scores")) == outcome(only_run(tmp_path / "whole"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def _marked(mark: dict[str, str]) -> list[list[str]]:
    """Command lines of the processes that have this in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark.items() <= process.environ().items() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline()[:3])
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_told_to_end_says_one_line_leaves_nothing_and_continues(
    number: int, code: int, bundle: Bundle, tmp_path: Path
) -> None:
    source = write_files(tmp_path / "in", mixed_files(500, (640, 480)))
    arguments = [str(source), "--model", bundle.uri, "--out", str(tmp_path / "out"), "--max-error-share", "0.2"]
    mark = {"LEUKORAY_TEST_RUN": tmp_path.name}
    environment = {**os.environ, **mark}
    process = subprocess.Popen(score_command(*arguments), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("run-*/_work/parts/part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    told = time.monotonic()
    errors = "" if number == signal.SIGKILL else process.communicate(timeout=60)[1]
    assert process.wait() == code
    own = [line for line in errors.splitlines() if not line.startswith("score  ")]
    assert len(own) == (number != signal.SIGKILL) and all("continues" in line for line in own), errors
    while (left := _marked(mark)) and time.monotonic() - told < 10:
        time.sleep(0.1)
    assert not left, f"of Ray there are still {left}"
    assert run_score(*arguments).returncode == 0
    run = read_run(only_run(tmp_path / "out"))
    assert run["continued"] and run["progress"]["resumed_images"] > 0


def test_two_runs_on_one_output_do_not_mix(bundle: Bundle, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", contents(300, bad=False, size=(640, 480)))
    arguments = [str(source), "--model", bundle.uri, "--out", str(tmp_path / "out")]
    first = subprocess.Popen(score_command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "out" / "_lock").exists():
        time.sleep(0.02)
    second = run_score(*arguments)
    assert second.returncode == 5 and "another run is writing here" in second.stderr
    assert first.wait(timeout=120) == 0
    assert rows(only_run(tmp_path / "out")).num_rows == 300
