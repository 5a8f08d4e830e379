"""Scoring through its command, on one Ray: accounting, resuming, increments, sources, outputs."""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from jobs import score as score_job
from pipeline.base.errors import Code, IncompleteError
from pipeline.model.bundle import Bundle
from pipeline.scoring import run as scoring
from pipeline.scoring.commit.commit import Sizes
from pipeline.scoring.request import Request, RunOptions, Workforce
from pipeline.scoring.run_folder import PARTS, part_file
from pipeline.storage import lock
from pipeline.storage.local import LocalStore
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle, said_of
from tests.scoring_sources import (
    Here,
    contents,
    mixed_files,
    only_run,
    outcome,
    picture,
    read_run,
    rows,
    tar,
    write_files,
)
from tests.servers import Faults, S3Server, faulty_proxy

pytestmark = pytest.mark.usefixtures("ray_cluster")


def score(*arguments: object, share: float = 0.2) -> int:
    return score_job.command([*map(str, arguments), "--workers", "2", "--max-error-share", str(share)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("source"), mixed_files(240))


@pytest.fixture(scope="module")
def unbroken(source: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores")
    assert score(source, "--model", tiny_bundle.uri, "--out", out, "--subject-pattern", r"(S\d{3})_") == 0
    return only_run(out)


def test_every_listed_image_is_scored_or_quarantined(unbroken: Path) -> None:
    counts = read_run(unbroken)["counts"]
    assert counts["listed"] == 240 == counts["scored"] + counts["quarantined"]
    assert rows(unbroken).num_rows == counts["scored"]
    assert rows(unbroken, "quarantine").num_rows == counts["quarantined"] == 6
    for row in rows(unbroken, "quarantine").to_pylist():
        assert row["stage"] in Code(row["code"]).stages, "the reference tells where each code is met"
    assert set(counts["codes"]) == {"empty", "truncated", "unsupported_format"}
    ids = rows(unbroken)["image_id"].to_pylist() + rows(unbroken, "quarantine")["image_id"].to_pylist()
    assert len(set(ids)) == 240


def test_probabilities_are_those_of_the_predictor(unbroken: Path, tiny_bundle: Bundle) -> None:
    files = contents(240)
    for row in rows(unbroken).to_pylist()[::17]:
        data = files[(row["member"] or row["uri"]).rsplit("/", 1)[-1]]
        assert row["probability"] == pytest.approx(said_of(tiny_bundle, data)[0].probability, abs=1e-5)
        assert row["subject_id"] == (row["member"] or row["uri"]).rsplit("/", 1)[-1][:4]


def test_success_comes_with_hashed_parts_and_without_work_files(unbroken: Path) -> None:
    assert (unbroken / "_SUCCESS").exists() and not (unbroken / "_work").exists()
    for item in json.loads((unbroken / "parts.json").read_text()):
        data = (unbroken / item["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (item["bytes"], item["sha256"])


def test_a_run_waits_for_another_on_its_output_and_then_goes_on(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", contents(8, bad=False)), tmp_path / "out"
    with contextlib.ExitStack() as other:
        other.enter_context(lock.locked(str(out), "the other", Stores()))
        end = threading.Timer(2.0, other.close)
        end.start()
        assert score(source, "--model", tiny_bundle.uri, "--out", out, "--wait-for-lock", "300") == 0
        assert end.finished.is_set(), "it went on while the other still held the output"
    assert read_run(only_run(out))["counts"]["scored"] == 8


def test_a_run_gives_up_when_another_holds_its_output_for_longer_than_it_waits(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_files(tmp_path / "in", contents(8, bad=False)), tmp_path / "out"
    with lock.locked(str(out), "the other", Stores()):
        began = time.monotonic()
        assert score(source, "--model", tiny_bundle.uri, "--out", out, "--wait-for-lock", "1") == 5
    assert time.monotonic() - began >= 1.0
    said = capsys.readouterr().err
    assert "another run is writing here" in said and "--wait-for-lock" in said
    assert not [path for path in out.iterdir() if path.is_dir()]


def test_large_runs_are_put_together_by_ray_tasks_with_the_same_rows(
    ray_cluster: Any, unbroken: Path, source: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    here = Here.plan([source], tiny_bundle, tmp_path / "out", subject_pattern=r"(S\d{3})_")
    here.finish(here.work(), ray_cluster, Sizes(file=1, in_driver=0))  # a file a shard
    run = Path(here.task.folder.uri)
    assert len(list((run / "predictions").iterdir())) == 4
    assert outcome(run) == outcome(unbroken)


def test_a_part_of_other_images_stops_the_commit(
    ray_cluster: Any, source: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    here = Here.plan([source], tiny_bundle, tmp_path / "out")
    progress, folder = here.work(), here.task.folder
    folder.write(part_file(1), folder.read(part_file(0)))
    with pytest.raises(IncompleteError, match="holds other images than its shard") as failed:
        here.finish(progress, ray_cluster, Sizes(in_driver=0))
    assert "ray::" not in str(failed.value)
    assert not folder.is_finished


def test_subjects_add_up_to_the_predictions(unbroken: Path) -> None:
    import pyarrow.parquet as pq

    subjects = pq.read_table(unbroken / "subjects.parquet").to_pylist()
    assert sum(row["n_images"] for row in subjects) == rows(unbroken).num_rows
    assert all(row["share_low"] <= row["share_positive"] <= row["share_high"] for row in subjects)


def test_bytes_from_s3_disk_tar_and_zip_give_the_same_rows(
    source: Path, unbroken: Path, tiny_bundle: Bundle, s3: S3Server, tmp_path: Path
) -> None:
    uri = s3.upload("night", mixed_files(240))
    assert score(uri, "--model", tiny_bundle.uri, "--out", tmp_path / "out", *s3.flags) == 0

    def by_name(run: Path) -> dict[str, float]:
        return {(r["member"] or r["uri"]).rsplit("/", 1)[-1]: r["probability"] for r in rows(run).to_pylist()}

    assert by_name(only_run(tmp_path / "out")) == by_name(unbroken)


def test_source_model_and_output_may_all_lie_on_s3(tiny_bundle: Bundle, s3: S3Server) -> None:
    source = s3.upload("all-s3/in", contents(70, bad=False))
    folder = Path(tiny_bundle.uri)
    model = s3.upload("all-s3/model", {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()})
    out = f"s3://{s3.bucket}/all-s3/scores"
    assert score(source, "--model", model, "--out", out, *s3.flags) == 0
    keys = [item["Key"] for item in s3.client().list_objects_v2(Bucket=s3.bucket, Prefix="all-s3/scores/")["Contents"]]
    names = {key.split("/", 3)[3] for key in keys if key.count("/") > 2}
    assert {"_SUCCESS", "run.json", "parts.json", "predictions/part-00000.parquet"} <= names
    assert not any("_work" in name for name in names), "work files stay"
    assert "all-s3/scores/_lock" not in keys, "the lock stays"


def test_a_compressed_archive_on_s3_is_fetched_once_and_never_again(
    tiny_bundle: Bundle, s3: S3Server, tmp_path: Path
) -> None:
    files = contents(1500, bad=False)  # more than one piece of a part
    archive = tar(files, "w:gz")
    s3.upload("once", {"night.tar.gz": archive})
    faults = Faults()
    with faulty_proxy(s3.endpoint, faults) as endpoint:
        arguments = (f"s3://{s3.bucket}/once", "--model", tiny_bundle.uri, "--out", tmp_path / "out")
        assert score(*arguments, "--s3-endpoint", endpoint) == 0
        [first] = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
        assert read_run(first)["counts"]["scored"] == read_run(first)["progress"]["images"] == 1500
        assert faults.sent_bytes <= len(archive) * 1.01
        before = faults.sent_bytes
        assert score(*arguments, "--s3-endpoint", endpoint) == 0
        assert faults.sent_bytes == before, "an unchanged archive was read again"
    [second] = [path for path in (tmp_path / "out").iterdir() if path.is_dir() and path != first]
    assert read_run(second)["counts"]["skipped"] == rows(second, "skipped").num_rows == 1500


def test_next_night_reads_only_what_is_new_or_changed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    files = contents(100)
    source = write_files(tmp_path / "in", files)
    out = tmp_path / "out"
    assert score(source, "--model", tiny_bundle.uri, "--out", out) == 0
    first = only_run(out)
    write_files(source, {"new.jpg": picture(9001), "S001_00001.jpg": picture(9002)})
    (source / "S002_00002.jpg").unlink()
    write_files(first, {"_work/shards/shard-000000.parquet": b"left"})
    assert score(source, "--model", tiny_bundle.uri, "--out", out) == 0
    [second] = [path for path in out.iterdir() if path.is_dir() and path != first]
    assert not (first / "_work").exists(), "work files of a run killed after its end stay"
    counts = read_run(second)["counts"]
    assert {Path(row["uri"]).name for row in rows(second).to_pylist()} == {"new.jpg", "S001_00001.jpg"}
    assert counts["listed"] == 100 and counts["deleted_at_source"] == 1
    assert counts["skipped_reasons"] == {"unchanged": 95, "unchanged_quarantined": 3}


def test_what_is_gone_is_noted_once_and_nothing_else_is_called_gone(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Another source, a filter, a rescoring and a folder that cannot be listed take nothing away."""
    out, files = tmp_path / "out", contents(12, bad=False)
    day = write_files(tmp_path / "day", files)
    night = write_files(tmp_path / "night", {"n.jpg": picture(9001)})

    def gone(*arguments: object) -> list[dict[str, Any]]:
        before = {path.name for path in out.iterdir()} if out.exists() else set()
        assert score(*arguments, "--model", tiny_bundle.uri, "--out", out) == 0
        [run] = [path for path in out.iterdir() if path.is_dir() and path.name not in before]
        found = rows(run, "deleted").to_pylist() if (run / "deleted").exists() else []
        assert read_run(run)["counts"]["deleted_at_source"] == len(found)
        names = {item["name"] for item in json.loads((run / "parts.json").read_text())}
        assert {str(path.relative_to(run)) for path in run.rglob("*.parquet")} == names
        return found

    assert gone(day) == []
    assert gone(night) == []
    assert gone(day, "--rescore") == []
    (day / "S000_00000.jpg").unlink()
    assert gone(day, "--exclude", "S000_*") == []
    [row] = gone(day)
    assert (row["uri"], row["member"]) == (str(day / "S000_00000.jpg"), None)
    assert rows(out / row["earlier_run"]).num_rows == 12
    assert gone(day) == []


def test_another_threshold_scores_again_beside_the_old_rows(source: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    one = write_files(tmp_path / "in", contents(70, bad=False))
    for threshold in ("0.5", "0.9"):
        assert score(one, "--model", tiny_bundle.uri, "--out", tmp_path / "out", "--threshold", threshold) == 0
    runs = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert len({read_run(run)["model"]["sha256"] for run in runs}) == 2
    assert [rows(run).num_rows for run in runs] == [70, 70]


def test_too_many_errors_exit_4_and_keep_the_output(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_files(tmp_path / "in", {"a.jpg": picture(1), "b.jpg": b"", "c.jpg": b"text"})
    assert score(source, "--model", tiny_bundle.uri, "--out", tmp_path / "out", share=0.05) == 4
    assert "empty 1" in capsys.readouterr().err
    run = only_run(tmp_path / "out")
    assert read_run(run)["status"] == "too_many_errors" and rows(run).num_rows == 1


def test_retry_reads_only_what_was_quarantined(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", contents(80))
    out = tmp_path / "out"
    assert score(source, "--model", tiny_bundle.uri, "--out", out) == 0
    first = only_run(out)
    bad = [Path(row["uri"]) for row in rows(first, "quarantine").to_pylist()]
    for index, path in enumerate(bad):
        path.write_bytes(picture(7000 + index))
    assert score("--retry-quarantined", first) == 0, "model and output are those of the run"
    [second] = [path for path in out.iterdir() if path.is_dir() and path != first]
    assert {row["uri"] for row in rows(second).to_pylist()} == set(map(str, bad))


def test_a_retry_keeps_the_threshold_of_its_run_and_refuses_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "model")
    source = write_files(tmp_path / "in", {"a.jpg": picture(1), "b.jpg": b""})
    out = tmp_path / "out"
    assert score(source, "--model", bundle.uri, "--out", out, "--threshold", "0.9", share=1) == 0
    first = only_run(out)
    (source / "b.jpg").write_bytes(picture(2))
    assert score("--retry-quarantined", first) == 0
    [second] = [path for path in out.iterdir() if path.is_dir() and path != first]
    assert read_run(second)["model"] == read_run(first)["model"] and rows(second).num_rows == 1
    make_bundle(tmp_path / "model", seed=5)
    assert score("--retry-quarantined", first) == 3
    assert "name the one to use with --model" in capsys.readouterr().err


def test_a_locked_output_is_refused_in_plain_words(
    source: Path, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with lock.locked(str(out), "somebody's run", Stores()):
        assert score(source, "--model", tiny_bundle.uri, "--out", out) == 5
    assert "somebody's run" in capsys.readouterr().err


class StoppedDisk(LocalStore):
    """The disk of a driver that is interrupted when all parts are there."""

    def write(self, uri: str, data: bytes) -> None:
        if "/predictions/" in uri:
            raise KeyboardInterrupt
        super().write(uri, data)


class WatchedDisk(LocalStore):
    """The disk, noting when each part was written before the first output."""

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}

    def write(self, uri: str, data: bytes) -> None:
        if "/predictions/" in uri and not self.parts:
            self.parts = times(Path(uri).parents[1])
        super().write(uri, data)


def times(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run / PARTS).iterdir()}


def test_a_resumed_run_does_not_touch_finished_parts(
    source: Path, tiny_bundle: Bundle, tmp_path: Path, unbroken: Path
) -> None:
    """Stop after the first parts, as a kill would, and run the same request again."""
    out = tmp_path / "out"
    request = Request((str(source),), tiny_bundle.uri, tiny_bundle.info.identity(), subject_pattern=r"(S\d{3})_")

    def score_on(disk: LocalStore) -> Path:
        options = RunOptions(Workforce(2), max_error_share=0.2)
        done = scoring.score(str(out), request, tiny_bundle, options, Stores(mounts=((str(out), disk),)), print)
        return Path(done.folder.uri)

    with pytest.raises(KeyboardInterrupt):
        score_on(StoppedDisk())
    [run] = [path for path in out.iterdir() if path.is_dir()]
    before = times(run)
    lost = max(before)
    (run / PARTS / lost).unlink()
    disk = WatchedDisk()
    assert score_on(disk) == run
    assert disk.parts.pop(lost) > before.pop(lost)
    assert disk.parts == before
    assert read_run(run)["continued"] and read_run(run)["progress"]["resumed_images"] > 0
    assert outcome(run) == outcome(unbroken)


def test_dry_run_tells_and_writes_nothing(
    source: Path, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(source, "--model", tiny_bundle.uri, "--out", tmp_path / "out", "--dry-run") == 0
    assert "240 images listed" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_partitions_come_from_the_path(tiny_bundle: Bundle, tmp_path: Path) -> None:
    files = {f"site-{site}/{i}.jpg": picture(i) for site in ("a", "b") for i in range(3)}
    source = write_files(tmp_path / "in", files)
    arguments = ("--model", tiny_bundle.uri, "--out", tmp_path / "out", "--partition-by", "site=/site-(\\w+)/")
    assert score(source, *arguments) == 0
    folders = {path.name for path in (only_run(tmp_path / "out") / "predictions").iterdir()}
    assert folders == {"site=a", "site=b"}


def test_webdataset_sidecars_become_columns(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard-000.tar", "w") as archive:
        for i in range(4):
            members = {
                f"{i:04d}.jpg": picture(i), f"{i:04d}.cls": str(i % 2).encode(),
                f"{i:04d}.json": json.dumps({"site": "north", "age": 40 + i}).encode(),
            }  # fmt: skip
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    assert score(tmp_path / "shard-000.tar", "--model", tiny_bundle.uri, "--out", tmp_path / "out") == 0
    table = rows(only_run(tmp_path / "out")).to_pylist()
    assert {row["meta_cls"] for row in table} == {"0", "1"}
    assert {row["meta_site"] for row in table} == {"north"} and {row["meta_age"] for row in table} == {
        "40",
        "41",
        "42",
        "43",
    }


def test_compressed_and_nested_archives_and_their_damage_are_accounted_for(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    files = contents(12, bad=False)
    for mode in ("gz", "bz2", "xz"):
        with tarfile.open(source / f"c.tar.{mode}", f"w:{mode}") as archive:
            _add(archive, files)
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        _add(archive, files)
    with zipfile.ZipFile(source / "outer.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("inner.tar", inner.getvalue())
    (source / "cut.tar").write_bytes(inner.getvalue()[: len(inner.getvalue()) // 2])
    (source / "empty.zip").write_bytes(b"")
    arguments = (source, "--model", tiny_bundle.uri, "--out", tmp_path / "out")
    assert score(*arguments) == 4
    assert "listed at least" in capsys.readouterr().out
    run = only_run(tmp_path / "out")
    counts = read_run(run)["counts"]
    assert counts["listed"] == counts["scored"] + counts["quarantined"] and counts["uncounted"] == 2
    assert counts["scored"] >= 4 * 12 + 4
    assert (run / "_SUCCESS").read_text().strip() == "incomplete"
    bad = {(Path(row["uri"]).name, row["code"]) for row in rows(run, "quarantine").to_pylist()}
    assert ("empty.zip", "empty") in bad and ("cut.tar", "truncated") in bad
    assert score(*arguments) == 4 and score(*arguments, "--accept-damaged-archives") == 0 and score(*arguments) == 0


def _add(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def test_all_workers_work(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Shards are handed out breadth first, so that a run does not land on one worker, however late the other starts."""
    source = write_files(tmp_path / "in", contents(2000, bad=False))
    assert score(source, "--model", tiny_bundle.uri, "--out", tmp_path / "out") == 0
    workers = read_run(only_run(tmp_path / "out"))["progress"]["images_by_worker"]
    assert len(workers) == 2 and min(workers.values()) >= 64


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["/nowhere", "--model", "MODEL"], 3, "does not exist"),
        (["SOURCE", "--model", "/nowhere"], 3, "neither a bundle"),
        (["SOURCE"], 2, "--model is missing"),
        (["--model", "MODEL"], 2, "SOURCES is missing"),
        (["SOURCE", "--model", "MODEL", "--threshold", "7"], 2, "--threshold"),
        (["SOURCE", "--model", "MODEL", "--since", "soon"], 2, "--since"),
        (["SOURCE", "--model", "MODEL", "--partition-by", "x=(("], 2, "--partition-by"),
        (["SOURCE", "--model", "MODEL", "--workers", "64"], 5, "needs"),
        (["SOURCE", "--model", "MODEL", "--no-such-flag"], 2, "--no-such-flag"),
    ],
)
def test_wrong_use_is_one_clear_line(
    arguments: list[str], code: int, words: str, source: Path, tiny_bundle: Bundle, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real = [{"SOURCE": str(source), "MODEL": tiny_bundle.uri}.get(item, item) for item in arguments]
    if "64" in real:
        write_files(tmp_path / "many", contents(64 * 70, bad=False, size=(16, 12)))
        real[0] = str(tmp_path / "many")
    assert score_job.command([*real, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in error and "Traceback" not in error
    assert os.environ.get("RAY_ADDRESS") is None
