"""What a run writes for others to read: run.json keeps its keys, and what older versions wrote is still understood."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import InputError
from pipeline.model.bundle import Bundle
from pipeline.scoring.plan.plan import read_plan
from pipeline.scoring.run_folder import PLAN, RECORD, Output, RunFolder
from pipeline.scoring.summary.summary import summarize
from pipeline.storage.stores import Stores
from pipeline.storage.types import S3Settings
from tests.bundles import make_bundle
from tests.scoring_sources import Here, picture, score_here, write_files

KEYS = {
    "": "run_id job who status exit_code has_output started_at finished_at configuration digests leukoray_version"
    " python packages number schema_version counts error_share max_error_share accepts_damaged model request layout"
    " unit unit_note pixel_rules continued listing_s bytes progress resources notice",
    "counts": "listed scored quarantined quarantined_again skipped deleted_at_source codes remarks in_training "
    "skipped_reasons left_out masks uncounted uncounted_unchanged uncounted_accepted meta_left_out meta_first"
    " out_of_distribution",
    "model": "uri name version sha256 threshold temperature positive_classes preprocessing_digest bit_depth synthetic"
    " unit ood subject_label review_band review features mean_probability",
    "request": "sources model_uri model_sha256 include exclude since limit subject_pattern rescore retry_of max_bytes"
    " max_pixels max_frames partition_by pseudonym_key_id",
    "progress": "images resumed_images elapsed_s images_per_s mb_per_s first_part_s workers images_by_worker"
    " stage_seconds stage_shares bottleneck fetch_attempts",
    "resources": "workers cpus_per_worker gpus_per_worker stall_s",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16, positive_classes=("positive",))


@pytest.fixture
def run(bundle: Bundle, tmp_path: Path) -> RunFolder:
    source = write_files(tmp_path / "in", {"a.jpg": picture(1), "b.jpg": b"", "notes.txt": b"x"})
    return score_here([source], bundle, tmp_path / "out")[0]


def document(run: RunFolder) -> dict[str, Any]:
    return dict(json.loads(run.read(RECORD)))


def test_run_json_has_the_keys_that_others_read(run: RunFolder, bundle: Bundle) -> None:
    found = document(run)
    for part, names in KEYS.items():
        assert list(found[part] if part else found) == names.split(), part
    assert found["counts"]["codes"] == {"empty": 1} and found["counts"]["left_out"] == {".txt": 1}
    assert found["model"]["sha256"] == bundle.info.identity()
    assert found["model"]["positive_classes"] == ["positive"]
    assert found["request"]["include"] == [] and found["request"]["limit"] is None
    assert run.record().model_dump(mode="json") == found


def test_a_record_of_an_older_or_newer_version_is_read(run: RunFolder) -> None:
    found = document(run)
    for part, name in (("counts", "quarantined_again"), ("model", "synthetic"), ("request", "max_frames")):
        del found[part][name]
    for part in ("counts", "model", "request", "progress", "resources"):
        found[part]["from_elsewhere"] = 1
    del found["notice"], found["layout"]
    run.write(RECORD, json.dumps({**found, "from_elsewhere": {}}).encode())
    record = run.record()
    assert (record.counts.quarantined, record.counts.quarantined_again) == (1, 0)
    assert record.request.limits.max_frames == 1000 and not record.model.synthetic
    assert (
        summarize(run).headline() == "1 image scored, 0 positive, 0 to review, 1 quarantined." or record.counts.scored
    )


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"run_id": "run-1"}'])
def test_a_damaged_record_is_one_clear_line(run: RunFolder, data: bytes) -> None:
    run.write(RECORD, data)
    with pytest.raises(InputError, match=r"run-1: its run\.json is damaged \(.*\); score again$") as refused:
        run.record()
    assert "\n" not in str(refused.value)


def test_a_listing_that_an_older_version_froze_is_continued(bundle: Bundle, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {f"{n}.jpg": picture(n) for n in range(3)})
    here = Here.plan([source], bundle, tmp_path / "out")
    folder = here.task.folder
    written = json.loads(folder.read(PLAN))
    folder.write(PLAN, json.dumps({"shards": 1, "rows": 3, "bytes": 7, "deleted": 0, **written}).encode())
    plan = read_plan(folder)
    assert plan == here.task.plan
    assert plan is not None and (plan.shards, plan.rows) == (1, 3)


def test_a_run_on_s3_travels_to_other_processes_with_its_settings() -> None:
    stores = Stores(S3Settings(endpoint="http://localhost:1", region="eu-west-1"))
    run = Output.at("s3://cells/scores", stores).run("night")
    there = pickle.loads(pickle.dumps(run))
    assert there == run and there.file(RECORD) == "s3://cells/scores/night/run.json"
    assert there.store is stores.of("s3://cells/scores")


@pytest.mark.parametrize("data", [b"", b"PAR1PAR1", b"<html>", b"null", b'[{"rows": 1}]'])
@pytest.mark.parametrize("name", ["parts.json", "predictions/part-00000.parquet"])
def test_a_damaged_file_of_a_run_is_one_clear_line(run: RunFolder, name: str, data: bytes) -> None:
    assert run.has(name)
    run.write(name, data)
    with pytest.raises(InputError, match=f"{name}: damaged .*; bring it back from a copy, or delete the folder"):
        list(run.rows("predictions", ["image_id"]))
    with pytest.raises(InputError, match=f"{name}: damaged"):
        summarize(run)
