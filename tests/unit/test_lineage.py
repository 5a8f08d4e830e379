"""What jobs tell a collector of lineage: valid events with data sets and counts, no secret, no patient, no delay."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs import evaluate, ingest, lineage, score, train
from pipeline.base.lineage import Step
from pipeline.base.secrets import without_secrets
from pipeline.scoring.run import Result
from pipeline.sources.manifest import read_manifest
from tests.bundles import make_bundle
from tests.lineage import collecting, of_file
from tests.scoring_sources import contents, score_here, write_files
from tests.training_data import cell_images, manifest_of


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OPENLINEAGE", "LEUKORAY_LINEAGE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "smears"
    cell_images(folder / "healthy", 3)
    cell_images(folder / "blast", 3, seed=1)
    return folder


def run_ingest(source: Path, out: Path, *more: str) -> int:
    return ingest.command([str(source), "--out", str(out), "--no-near-copies", *more])


def test_ingest_tells_its_source_and_the_manifest_by_its_digest(images: Path, tmp_path: Path) -> None:
    told = tmp_path / "lineage" / "events.jsonl"
    assert run_ingest(images, tmp_path / "manifest", "--lineage", str(told)) == 0
    start, complete = of_file(told)
    assert [start["eventType"], complete["eventType"]] == ["START", "COMPLETE"]
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert start["job"]["name"] == "ingest" and start["job"]["namespace"] == "leukoray"
    assert [(one["namespace"], one["name"]) for one in start["inputs"]] == [("file", str(images))]
    [source], [manifest] = complete["inputs"], complete["outputs"]
    assert source["inputFacets"]["dataQualityMetrics"]["rowCount"] == 6
    digest = read_manifest(str(tmp_path / "manifest")).info.digest
    assert manifest["facets"]["version"]["datasetVersion"] == digest
    assert manifest["outputFacets"]["outputStatistics"]["rowCount"] == 6
    assert complete["run"]["facets"]["processing_engine"]["name"] == "leukoray"


def test_a_second_job_appends_to_the_file(images: Path, tmp_path: Path) -> None:
    told = tmp_path / "events.jsonl"
    for _ in range(2):
        assert run_ingest(images, tmp_path / "manifest", "--lineage", f"file://{told}") == 0
    assert [event["eventType"] for event in of_file(told)] == ["START", "COMPLETE"] * 2
    assert len({event["run"]["runId"] for event in of_file(told)}) == 2


def test_a_failed_job_says_how_it_failed_and_keeps_its_sentence_to_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "subject_id": "Meier"} for row in cell_images(tmp_path / "images", 12)]
    manifest, told = manifest_of(rows, tmp_path / "manifest", split_rule="subjects").uri, tmp_path / "events.jsonl"
    assert train.command([manifest, "--out", str(tmp_path / "models"), "--lineage", str(told)]) == 3
    assert "Meier" in capsys.readouterr().err
    start, fail = of_file(told)
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert [one["name"] for one in fail["inputs"]] == [manifest] and fail["outputs"] == []
    error = fail["run"]["facets"]["errorMessage"]
    assert error["message"].startswith("exit code 3, input (") and error["programmingLanguage"] == "PYTHON"
    assert "Meier" not in told.read_text()


def test_what_fails_before_anything_is_read_has_started_too(tmp_path: Path) -> None:
    told = tmp_path / "events.jsonl"
    command = [str(tmp_path / "nowhere"), "--model", str(tmp_path), "--out", str(tmp_path), "--lineage", str(told)]
    assert evaluate.command(command) == 3
    assert [event["eventType"] for event in of_file(told)] == ["START", "FAIL"]


def test_score_tells_its_reconciled_counts(tmp_path: Path) -> None:
    """A night without news, which starts no Ray."""
    source = write_files(tmp_path / "night", contents(80))
    bundle = make_bundle(tmp_path / "models" / "tiny" / "v1", name="tiny", version="v1", synthetic=True)
    out, told = tmp_path / "scores", tmp_path / "events.jsonl"
    _, first = score_here([source], bundle, out)
    assert first["counts"]["quarantined"] == 2
    assert score.command([str(source), "--model", bundle.uri, "--out", str(out), "--lineage", str(told)]) == 0
    start, complete = of_file(told)
    assert [one["name"] for one in start["inputs"]] == [str(source), str(tmp_path / "models" / "tiny")]
    night, model = sorted(complete["inputs"], key=lambda one: "dataQualityMetrics" not in one["inputFacets"])
    assert model["facets"]["version"]["datasetVersion"] == "v1"
    assert model["facets"]["datasetType"]["datasetType"] == "MODEL"
    account = complete["run"]["facets"]["leukoray_account"]
    assert account["listed"] == 80 == account["scored"] + account["quarantined"] + account["skipped"]
    reconciled = night["inputFacets"]["dataQualityAssertions"]["assertions"][0]
    assert reconciled["success"] and reconciled["expected"] == reconciled["actual"] == "80"
    [scores] = complete["outputs"]
    assert scores["name"] == str(out) and scores["facets"]["version"]["datasetVersion"] == account["run_id"]


def test_quarantined_rows_are_counted_by_code_and_columns_are_told(tmp_path: Path) -> None:
    from jobs.lineage_datasets import account_of, read_by, written_by
    from jobs.lineage_events import teller

    source = write_files(tmp_path / "night", contents(120))
    folder, record = score_here([source], make_bundle(tmp_path / "model", synthetic=True), tmp_path / "scores")
    result, told = Result(folder, folder.record()), tmp_path / "events.jsonl"
    tell = teller("score", "scores", str(told))
    read, written = tuple(read_by(result, [str(source)])), (written_by(result),)
    tell(Step("COMPLETE", datetime.now(UTC), read, written, "", account_of(result)))
    [event] = of_file(told)
    [night], [scores] = event["inputs"], event["outputs"]
    codes = record["counts"]["codes"]
    assert codes == event["run"]["facets"]["leukoray_account"]["codes"] and sum(codes.values()) == 3
    metrics = night["inputFacets"]["dataQualityMetrics"]
    assert metrics["rowCount"] == 120 and metrics["columnMetrics"]["code"]["count"] == 3
    assert metrics["columnMetrics"]["code"]["nullCount"] == 117
    checks = night["inputFacets"]["dataQualityAssertions"]["assertions"]
    by_code = {check["name"]: int(check["actual"]) for check in checks if check.get("column") == "code"}
    assert by_code == codes and not any(check["success"] for check in checks if check.get("column") == "code")
    assert scores["outputFacets"]["outputStatistics"]["rowCount"] == 117
    assert scores["outputFacets"]["outputStatistics"]["fileCount"] == 1
    columns = {column["name"]: column for column in scores["facets"]["schema"]["fields"]}
    assert "calibrated" in columns["probability"]["description"] and columns["prob_positive"]["type"] == "float"
    assert scores["facets"]["tags"]["tags"][0]["key"] == "synthetic"
    picked = folder.table(folder.outputs("predictions")[0], ["uri"])["uri"][0].as_py()
    assert picked not in told.read_text()


def test_events_reach_a_server_with_the_key_and_without_it_in_them(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "planted-key")
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "lab")
    parent = "01900000-0000-7000-8000-000000000000"
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", f"airflow/night.score/{parent}")
    with collecting() as server:
        assert run_ingest(images, tmp_path / "a", "--lineage", server.url) == 0
        assert run_ingest(images, tmp_path / "b", "--lineage", server.url + "/own/place") == 0
    assert [path for path, _, _ in server.requests] == ["/api/v1/lineage"] * 2 + ["/own/place"] * 2
    assert {key for _, key, _ in server.requests} == {"Bearer planted-key"}
    assert not any(b"planted-key" in body for _, _, body in server.requests)
    assert [event["eventType"] for event in server.events] == ["START", "COMPLETE"] * 2
    assert {event["job"]["namespace"] for event in server.events} == {"lab"}
    assert {event["run"]["facets"]["parent"]["run"]["runId"] for event in server.events} == {parent}


def test_the_librarys_own_variable_is_heeded_and_can_be_switched_off(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as server:
        monkeypatch.setenv("OPENLINEAGE_URL", server.url)
        assert run_ingest(images, tmp_path / "a") == 0
        monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
        assert run_ingest(images, tmp_path / "b") == 0
    assert [event["eventType"] for event in server.events] == ["START", "COMPLETE"]


def test_a_collector_that_refused_and_is_back_has_all_events_in_order(images: Path, tmp_path: Path) -> None:
    with collecting() as server:
        server.refusals.append(404)
        assert run_ingest(images, tmp_path / "a", "--lineage", server.url) == 0
    assert [event["eventType"] for event in server.events] == ["START", "COMPLETE"]
    assert server.events[0]["eventTime"] < server.events[1]["eventTime"]


def test_a_collector_that_never_answers_costs_a_warning_and_a_bounded_time(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lineage, "_LAST_S", 0.2)
    with collecting(answers=False) as server:
        before = time.monotonic()
        assert run_ingest(images, tmp_path / "a", "--lineage", server.url) == 0
        assert time.monotonic() - before < 20  # the server would have been silent for 30
    assert (tmp_path / "a" / "manifest.json").exists()
    assert "no answer in 0.2 s; the job is not affected" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["http://127.0.0.1:9", "/proc/no/such/folder"])
def test_a_place_that_takes_nothing_costs_a_warning(
    images: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_ingest(images, tmp_path / "a", "--lineage", place) == 0
    assert f"warning: lineage ({place})" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["http://me:planted@host", "https://host/?token=planted", "s3://bucket/events"])
def test_what_is_no_place_or_holds_a_secret_is_refused_and_not_repeated(
    images: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_ingest(images, tmp_path / "a", "--lineage", place) == 2
    told = capsys.readouterr()
    assert "--lineage" in told.err and "planted" not in told.out + told.err


def test_secrets_of_the_librarys_variables_are_in_no_warning(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with collecting() as server:
        server.refusals += [401] * 9
        monkeypatch.setenv("OPENLINEAGE_URL", server.url.replace("http://", "http://me:planted@"))
        assert run_ingest(images, tmp_path / "a") == 0
    told = capsys.readouterr()
    assert "401" in told.err and "planted" not in told.out + told.err


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("at http://me:pw@host/x: 401", "at http://host/x: 401"),
        ("'https://host/a?token=1' is out", "'https://host/a' is out"),
        ("http://me:p@ss@host/x and https://host/x@y", "http://host/x and https://host/x@y"),
        ('["http://host","me@host"]', '["http://host","me@host"]'),
        ("night_?.tar and a@b", "night_?.tar and a@b"),
        ("postgresql+psycopg2://u:p@h/db", "postgresql+psycopg2://h/db"),
        ("s3://bucket/a@b?c", "s3://bucket/a@b?c"),
    ],
)
def test_secrets_of_addresses_are_left_out(text: str, left: str) -> None:
    assert without_secrets(text) == left


def test_pseudonyms_take_the_place_of_sources(images: Path, tmp_path: Path) -> None:
    key, told = tmp_path / "key", tmp_path / "events.jsonl"
    key.write_text(os.urandom(32).hex())
    key.chmod(0o600)
    source = images.rename(tmp_path / "Meier")
    flags = ("--pseudonymize", str(key), "--lineage", str(told))
    assert run_ingest(source, tmp_path / "manifest", *flags) == 0
    [_, complete] = of_file(told)
    assert complete["inputs"][0]["namespace"] == "hidden" and "Meier" not in told.read_text()


def test_without_the_extra_an_option_is_refused_and_a_variable_is_told(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lineage.importlib.util, "find_spec", lambda name: None)
    assert run_ingest(images, tmp_path / "a", "--lineage", "events.jsonl") == 2
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    assert run_ingest(images, tmp_path / "a") == 0
    assert capsys.readouterr().err.count("leukoray[lineage]") == 2


def test_a_rehearsal_is_no_run(tmp_path: Path) -> None:
    source = write_files(tmp_path / "night", contents(4, bad=False))
    bundle, told = make_bundle(tmp_path / "model"), tmp_path / "events.jsonl"
    flags = ["--out", str(tmp_path / "scores"), "--lineage", str(told), "--dry-run"]
    assert score.command([str(source), "--model", bundle.uri, *flags]) == 0
    assert not told.exists()


def test_what_cannot_be_described_costs_a_warning(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "events.jsonl"

    def out(*_: object) -> object:
        raise OSError("the store is out")

    monkeypatch.setattr(ingest, "of_manifest", out)
    assert run_ingest(images, tmp_path / "a", "--lineage", str(told)) == 0
    assert "the store is out" in capsys.readouterr().err
    assert [event["eventType"] for event in of_file(told)] == ["START", "COMPLETE"]
