"""The whole way of an image on each kind of S3: a mock, Ceph's gateway, and rclone's server, which heeds no conditions.

Sources, manifest, model, report and scores all lie on the store. Its operations one by one: test_store_contract.py.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs import doctor, evaluate, ingest, score, train
from pipeline.base.errors import PlatformError
from pipeline.model.registry import resolve
from pipeline.storage import lock
from pipeline.storage.abilities import Abilities, ask, ask_conditions, for_writing
from pipeline.storage.types import Conditions, StoreError, UnsupportedError
from serving.settings import ServingSettings
from tests.live import live
from tests.scoring_sources import ROOT, score_command
from tests.servers import REGION, Faults, S3Server, faulty_proxy
from tests.stores import missing, rclone_store
from tests.training_data import CLASSES, cell_images

KNOWN = {
    "s3": Abilities(Conditions.QUOTED, ranges=True, checks_digests=False, long_keys=True),
    "ceph": Abilities(Conditions.BARE, ranges=True, checks_digests=True, long_keys=True),
    "rclone": Abilities(Conditions.NONE, ranges=True, checks_digests=True, long_keys=True),
}
IMAGES = 45
TRAIN = [
    "--architecture",
    "cnn",
    "--input-size",
    "32",
    "--batch-size",
    "8",
    "--workers",
    "2",
    "--cpus-per-worker",
    "0.5",
    "--epochs",
    "1",
]


@pytest.fixture(params=sorted(KNOWN))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(name: str, request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(name)
    return found


def test_a_store_is_asked_what_it_can_and_keeps_nothing_of_it(name: str, store: S3Server) -> None:
    folder = f"s3://{store.bucket}/asked"
    assert ask(store.stores, folder) == KNOWN[name]
    assert not store.stores.of(folder).is_folder(folder)


def test_doctor_says_what_a_store_can(name: str, store: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.command(["--out", f"s3://{store.bucket}/asked", *store.flags])
    said = " ".join(line for line in capsys.readouterr().out.splitlines() if "--out" in line)
    assert ("one run at a time" in said) == (name != "rclone")
    assert ("--single-writer" in said) == (name == "rclone")


def test_doctor_reads_an_image_and_looks_at_the_store_s_clock(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"s3://{s3.bucket}/listed"
    s3.stores.of(source).write(f"{source}/a.jpg", b"x")
    with faulty_proxy(s3.endpoint, Faults(denied=frozenset({"a.jpg"}))) as proxy:
        flags = ["--source", source, "--out", f"s3://{s3.bucket}/asked", *s3.at(proxy).flags]
        now = time.time
        monkeypatch.setattr("pipeline.storage.s3.time.time", lambda: now() - 600)
        assert doctor.command(flags) == 5
    said = capsys.readouterr().out
    assert f"fail  s3             {source}/a.jpg" in said, said
    ahead = re.search(r"warn  s3 clock       (\d+) s ahead", said)
    assert ahead is not None and 500 <= int(ahead[1]) <= 601, said  # less what the store took, in whole seconds


@pytest.mark.parametrize(
    ("heeds", "found"),
    [
        ("heeded", Conditions.QUOTED),
        ("bare", Conditions.BARE),
        ("ignored", Conditions.NONE),
        ("unknown", Conditions.NONE),
    ],
)
def test_how_a_store_heeds_conditions_is_found_out_though_answers_are_lost(
    s3: S3Server, heeds: Any, found: Conditions
) -> None:
    folder = f"s3://{s3.bucket}/heeds"
    with faulty_proxy(s3.endpoint, Faults(conditions=heeds, lost_answers=2)) as proxy:
        assert ask_conditions(s3.at(proxy).stores, folder) is found
    assert not s3.stores.of(folder).is_folder(folder)


def test_who_may_write_where_no_conditions_are_heeded_must_vouch_for_it(s3: S3Server) -> None:
    folder = f"s3://{s3.bucket}/vouched"
    said: list[str] = []
    with faulty_proxy(s3.endpoint, Faults(conditions="ignored")) as proxy:
        stores = s3.at(proxy).stores
        with pytest.raises(PlatformError, match="does not heed conditional writes, so two runs could write here"):
            for_writing(stores, folder, single_writer=False, say=said.append)
        vouched = for_writing(stores, folder, single_writer=True, say=said.append)
    assert vouched.s3.conditions is Conditions.NONE and not vouched.of(folder).is_conditional
    assert len(said) == 1 and "no lock is held" in said[0]
    assert for_writing(s3.stores, folder, single_writer=True, say=said.append).of(folder).is_conditional
    assert len(said) == 1, "a vouched store that can lock does"


def test_a_store_that_sends_whole_objects_for_parts_is_refused_and_told(s3: S3Server) -> None:
    folder = f"s3://{s3.bucket}/parts"
    with faulty_proxy(s3.endpoint, Faults(ignores_ranges=True)) as proxy:
        stores = s3.at(proxy).stores
        assert not ask(stores, folder).ranges
        stores.of(folder).write(f"{folder}/x", b"0123456789")
        with pytest.raises(UnsupportedError, match="sends whole objects where a part is asked for"):
            stores.of(folder).read_range(f"{folder}/x", 2, 3)


def test_a_write_that_meets_another_in_flight_is_sent_again(s3: S3Server) -> None:
    uri = f"s3://{s3.bucket}/conflict/x"
    faults = Faults(conflicts=2)
    with faulty_proxy(s3.endpoint, faults) as proxy:
        etag = s3.at(proxy).stores.of(uri).create(uri, b"ours")
        assert etag is not None and s3.stores.of(uri).read(uri).data == b"ours"
        faults.conflicts = 2
        assert s3.at(proxy).stores.of(uri).replace(uri, b"newer", etag) is not None


def test_where_etags_are_empty_a_version_is_told_by_its_time(s3: S3Server) -> None:
    reason = missing("rclone")
    if reason:
        pytest.skip(reason)
    with rclone_store(etag_hash="") as server:
        store, uri = server.stores.of("s3://"), f"s3://{server.bucket}/a/x"
        store.write(uri, b"12345")
        listed = store.head(uri)
        assert listed is not None and listed.etag and list(store.walk(f"s3://{server.bucket}/a")) == [listed]
        assert store.read_range(uri, 1, 2, listed.etag).data == b"23"
        time.sleep(1.1)
        store.write(uri, b"54321")
        with pytest.raises(StoreError, match="replaced since it was listed"):
            store.read_range(uri, 1, 2, listed.etag)


@pytest.mark.parametrize("name", ["ceph", "s3"])
@pytest.mark.parametrize("answers", ["come", "are lost"])
def test_a_lock_holds_where_etags_are_bare(
    name: str, store: S3Server, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    """As on Ceph's gateway, which is not there everywhere: in front of the mock stands a proxy that wants them so."""
    monkeypatch.setattr(lock, "RENEW_S", 0.1)
    faults = Faults(conditions="bare" if name == "s3" else "heeded")
    out = f"s3://{store.bucket}/bare"
    with faulty_proxy(store.endpoint, faults) as proxy:
        stores = for_writing(store.at(proxy).stores, out, single_writer=False, say=print)
        faults.lost_answers = 3 if answers == "are lost" else 0
        with lock.locked(out, "ours", stores) as check:
            time.sleep(1.0)
            check()
            with pytest.raises(PlatformError, match="another run is writing here"), lock.locked(out, "second", stores):
                pass
        assert faults.lost_answers == 0
    assert store.stores.of(out).head(f"{out}/_lock") is None


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_whole_way_goes_on_a_store(
    ray_cluster: Any, name: str, store: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, vouched = f"s3://{store.bucket}/way", ["--single-writer"] if name == "rclone" else []
    manifest, models, scores = f"{root}/manifest", f"{root}/models", f"{root}/scores"
    paths = {Path(row["uri"]): row["class_name"] for row in cell_images(tmp_path, IMAGES, classes=3)}
    store.upload("way/cells", {f"{kind}/{path.name}": path.read_bytes() for path, kind in paths.items()})
    labels = ["--positive", "early", "late", "--negative", "healthy", "--split-rule", "images"]
    assert ingest.command([f"{root}/cells", "--out", manifest, *labels, *store.flags]) == 0
    training = [manifest, "--out", models, "--task", "multiclass", *TRAIN, *store.flags]
    if name == "rclone":
        assert train.command(training) == 5
        assert "--single-writer" in capsys.readouterr().err
    assert train.command([*training, *vouched]) == 0
    bundle = resolve(f"{models}/leukoray", store.stores)
    assert bundle.info.classes == tuple(sorted(CLASSES))
    assert bundle.info.positive_classes == ("early", "late")
    assert bundle.file("report/history.json")
    assert not [item for item in store.stores.of(models).walk(models) if "checkpoint_0" in item.uri], "closed"
    report = f"{root}/report"
    assert evaluate.command([manifest, "--model", models, "--out", report, "--split", "validation", *store.flags]) == 0
    measured = json.loads(read(store, f"{report}/metrics.json"))
    assert measured["images"] == bundle.info.training["images"]["validation"] > 0
    predicted = pq.read_table(pa.BufferReader(read(store, f"{report}/predictions.parquet")))
    right = pc.mean(pc.equal(predicted["class_name"], predicted["called"])).as_py()
    assert right == pytest.approx(measured["metrics"]["accuracy"]["value"])
    assert b"not a medical device" in read(store, f"{report}/report.html").lower()

    scoring = [f"{root}/cells", "--model", models, "--out", scores, *store.flags]
    if name == "rclone":
        assert score.command(scoring) == 5
        assert "two runs could write here at once" in capsys.readouterr().err
        assert not store.stores.of(scores).is_folder(scores)
    _kill_one_while_it_runs(store, scoring, vouched, capsys)
    assert score.command([*scoring, *vouched]) == 0
    assert "continuing " in capsys.readouterr().out
    assert counts(store, scores) == [(IMAGES, IMAGES, 0, 0)]
    assert score.command([*scoring, *vouched]) == 0
    assert counts(store, scores) == [(IMAGES, IMAGES, 0, 0), (IMAGES, 0, 0, IMAGES)]
    assert store.stores.of(scores).head(f"{scores}/_lock") is None

    settings = ServingSettings(model=models, s3_endpoint=store.endpoint, s3_region=REGION)
    with live(settings) as url:
        answer = httpx.post(f"{url}/predict", content=next(iter(paths)).read_bytes(), timeout=60)
    assert answer.status_code == 200 and answer.json()["class_name"] in CLASSES


def read(store: S3Server, uri: str) -> bytes:
    return store.stores.of(uri).read(uri).data


def _kill_one_while_it_runs(
    store: S3Server, scoring: list[str], vouched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with a Ray of its own is ended by kill -9 once its plan is frozen; until then no other gets in."""
    scores = scoring[scoring.index("--out") + 1]
    environment = {**os.environ, **store.env}
    command = score_command(*scoring, *vouched)
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(store, scores, "/plan.json", run)
        if not vouched:
            assert score.command(scoring) == 5
            assert f"another run is writing here (new run, process {run.pid}" in capsys.readouterr().err
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert not [item for item in store.stores.of(scores).walk(scores) if item.uri.endswith("/_SUCCESS")], "too late"


def _wait_for(store: S3Server, scores: str, end: str, run: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not any(item.uri.endswith(end) for item in store.stores.of(scores).walk(scores)):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def counts(store: S3Server, scores: str) -> list[tuple[int, int, int, int]]:
    """(listed, scored, quarantined, skipped) of each finished run, by its record, and by the rows that lie there."""
    found, place = [], store.stores.of(scores)
    for item in sorted(place.walk(scores), key=lambda item: item.uri):
        if item.uri.endswith("/run.json"):
            said = json.loads(read(store, item.uri))["counts"]
            run = item.uri.rpartition("/")[0]
            files = [file.uri for file in place.walk(f"{run}/predictions")]
            rows = [pq.read_table(pa.BufferReader(read(store, file)))["image_id"] for file in files]
            ids = [value for column in rows for value in column.to_pylist()]
            assert len(ids) == len(set(ids)) == said["scored"]
            found.append((said["listed"], said["scored"], said["quarantined"], said["skipped"]))
    return found
