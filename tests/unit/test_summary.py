"""The account of a run: read back from its files, shown as text and as one page that fetches nothing."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import summary as job
from pipeline.base.errors import Code, IncompleteError, InputError
from pipeline.model.bundle import Bundle
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.summary import advice
from pipeline.scoring.summary.gallery import SIDE, load_pictures
from pipeline.scoring.summary.page import render_page
from pipeline.scoring.summary.summary import GALLERY, Summary, find_run, summarize
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.scoring_sources import mixed_files, score_here, write_files

IMAGES = 120
SUBJECT = r"(S\d{3})_"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), threshold=0.8, review_band=(0.75, 0.85), synthetic=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_files(tmp_path / "source", mixed_files(IMAGES))


@pytest.fixture
def run(source: Path, bundle: Bundle, tmp_path: Path) -> RunFolder:
    return score_here([str(source)], bundle, tmp_path / "scores", subject_pattern=SUBJECT)[0]


@pytest.fixture
def found(run: RunFolder) -> Summary:
    return summarize(run)


def predictions(run: RunFolder) -> pa.Table:
    files = sorted(Path(run.uri, "predictions").rglob("*.parquet"))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def test_the_counts_are_those_of_the_rows(run: RunFolder, found: Summary) -> None:
    table = predictions(run)
    decisions = table["decision"].to_pylist()
    assert sum(found.histogram) == table.num_rows == found.run.counts.scored
    assert found.decisions == {name: decisions.count(name) for name in set(decisions)}
    assert sum(item.rows for item in found.codes) == found.run.counts.quarantined == IMAGES - table.num_rows
    assert {item.code: item.rows for item in found.codes} == found.run.counts.codes
    assert found.subject_count == len(set(table["subject_id"].to_pylist()))


def test_the_gallery_holds_the_highest_and_those_nearest_to_the_threshold(run: RunFolder, found: Summary) -> None:
    rows = sorted(predictions(run).to_pylist(), key=lambda row: -row["probability"])
    assert [row["image_id"] for row in found.highest] == [row["image_id"] for row in rows[:GALLERY]]
    distances = sorted(abs(row["probability"] - 0.8) for row in rows)[:GALLERY]
    assert [abs(row["probability"] - 0.8) for row in found.borderline] == pytest.approx(distances, abs=1e-6)


def test_row_groups_and_files_do_not_change_what_is_found(run: RunFolder, found: Summary) -> None:
    table = predictions(run)
    [name] = [item["name"] for item in json.loads(Path(run.uri, "parts.json").read_text()) if "pred" in item["name"]]
    pq.write_table(table.slice(0, 50), Path(run.uri, name), row_group_size=7)
    pq.write_table(table.slice(50), Path(run.uri, "predictions", "part-00001.parquet"), row_group_size=11)
    parts = [*json.loads(Path(run.uri, "parts.json").read_text()), {"name": "predictions/part-00001.parquet"}]
    Path(run.uri, "parts.json").write_text(json.dumps(parts))
    again = summarize(run)
    assert again.highest == found.highest
    assert again.borderline == found.borderline
    assert again.histogram == found.histogram
    assert again.decisions == found.decisions


def test_a_frequent_code_hides_no_rare_one(tmp_path: Path, bundle: Bundle) -> None:
    files = {f"empty_{i:02d}.jpg": b"" for i in range(40)} | {"text.jpg": b"not an image"}
    found = summarize(score_here([str(write_files(tmp_path / "bad", files))], bundle, tmp_path / "scores")[0])
    assert len(found.quarantined) == GALLERY
    assert {row["code"] for row in found.quarantined} == {"empty", "unsupported_format"}
    assert "Too many images failed" in render_page(found, {})


def test_rows_that_went_missing_after_the_run_are_told(run: RunFolder) -> None:
    [file] = Path(run.uri, "predictions").rglob("*.parquet")
    table = pq.ParquetFile(file).read()
    pq.write_table(table.slice(1), file)
    with pytest.raises(IncompleteError, match="changed after the run"):
        summarize(run)


def test_pictures_come_from_files_and_archives(found: Summary) -> None:
    rows = [*found.highest, *found.borderline]
    assert {Path(row["uri"]).suffix for row in rows} == {".jpg", ".tar", ".tgz", ".zip"}
    pictures = load_pictures(rows)
    for row in rows:
        picture = pictures[row["image_id"]]
        assert picture.pixels is not None, picture.reason
        assert picture.pixels.shape == (SIDE, SIDE, 3)
        assert picture.pixels.dtype == np.uint8


def test_a_source_that_is_gone_or_replaced_gives_a_reason_instead_of_a_picture(source: Path, found: Summary) -> None:
    rows = [*found.highest, *found.borderline]
    os.utime(source / "night.tar", (1, 1))
    (source / "night.zip").unlink()
    (source / "night.tgz").unlink()
    for file in (source / "loose").iterdir():
        file.unlink()
    reasons = {Path(row["uri"]).suffix: load_pictures([row])[row["image_id"]] for row in rows}
    assert all(picture.pixels is None for picture in reasons.values())
    assert "replaced" in reasons[".tar"].reason
    assert "archive is gone" in reasons[".zip"].reason
    assert "gone" in reasons[".jpg"].reason


def test_what_killed_the_decoder_is_not_decoded_again(found: Summary) -> None:
    row = {**found.highest[0], "code": Code.CRASHED_DECODER.value, "stage": "decode"}
    picture = load_pictures([row])[row["image_id"]]
    assert picture.pixels is None
    assert "not decoded again" in picture.reason


def test_slow_archives_do_not_hold_up_the_page(found: Summary) -> None:
    rows = [row for row in found.highest + found.borderline if row["member"] is not None]
    pictures = load_pictures(rows, seconds=-1.0)
    assert all("archives" in pictures[row["image_id"]].reason for row in rows)


def test_the_page_holds_everything_and_fetches_nothing(found: Summary) -> None:
    page = render_page(found, load_pictures([*found.highest, *found.borderline, *found.quarantined]))
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page and "<script" not in page and "url(http" not in page
    assert page.count("data:image/jpeg") == 2 * GALLERY
    assert "not a medical device" in page and "Synthetic." in page
    assert found.headline() in page
    for item in found.codes:
        assert advice.of_code(item.code).remedy in page.replace("&#39;", "'")
    for row in found.subjects:
        assert row["subject_id"] in page


def test_names_of_files_cannot_write_into_the_page(tmp_path: Path, bundle: Bundle) -> None:
    name = "<script>alert(1)<&>.jpg"
    source = write_files(tmp_path / "odd", {name: b"", f"a{name}": mixed_files(4)["loose/S000_00000.jpg"] or b""})
    page = render_page(summarize(score_here([str(source)], bundle, tmp_path / "scores")[0]), {})
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_run_that_found_nothing_new_says_so(source: Path, bundle: Bundle, tmp_path: Path) -> None:
    score_here([str(source)], bundle, tmp_path / "scores")
    second = score_here([str(source)], bundle, tmp_path / "scores", "run-2")[0]
    found = summarize(second)
    assert found.headline() == f"Nothing new to score: {IMAGES} images were done by earlier runs."
    assert "unchanged since" in render_page(found, {})


def test_a_model_without_disease_classes_is_shown_by_its_classes(source: Path, tmp_path: Path) -> None:
    cells = make_bundle(
        tmp_path / "cells", task="multiclass", classes=("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE"), positive_classes=()
    )
    found = summarize(score_here([str(source)], cells, tmp_path / "scores")[0])
    assert not found.decides and found.threshold is None
    assert "positive" not in found.headline()
    page = render_page(found, {})
    assert "Classes named" in page and "threshold" not in page.split("</style>")[1].split("Provenance")[0].lower()


def test_the_latest_finished_run_is_taken_of_an_output(source: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    score_here([str(source)], bundle, out, "zz-first")
    later = score_here([str(source)], bundle, out, "aa-second")[0]
    document = json.loads(Path(later.uri, "run.json").read_text())
    Path(later.uri, "run.json").write_text(json.dumps({**document, "finished_at": "2999-01-01T00:00:00+00:00"}))
    (out / "zz-unfinished" / "_work").mkdir(parents=True)
    (out / "zz-unfinished" / "_work" / "request.json").write_text("{}")
    assert find_run(str(out), Stores()) == later
    with pytest.raises(InputError, match="not finished"):
        find_run(str(out / "zz-unfinished"), Stores())
    with pytest.raises(InputError, match="no scoring run"):
        find_run(str(tmp_path / "elsewhere"), Stores())


def test_the_command_prints_the_account_and_writes_the_page(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "night.html"
    assert job.command([str(Path(run.uri).parent), "--out", str(page), "--no-pictures"]) == 0
    text = capsys.readouterr().out
    counts = json.loads(Path(run.uri, "run.json").read_text())["counts"]
    assert f"listed {IMAGES} = scored {counts['scored']} + quarantined {counts['quarantined']} + skipped 0" in text
    assert "most suspicious subjects" in text and "<- most" in text
    assert str(page) in text and "not a medical device" in text
    assert "pictures were left out" in page.read_text()
    assert job.command([run.uri]) == 0
    assert Path(run.uri, "summary.html").stat().st_size > page.stat().st_size


def test_a_folder_without_a_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.command([str(tmp_path)]) == InputError.exit_code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no scoring run" in error


def test_every_code_has_its_advice() -> None:
    assert set(advice.REMEDIES) == set(Code)
    assert advice.of_code("from_the_future") == advice.UNKNOWN


def test_names_and_digests_are_read_only_where_a_row_is_shown(run: RunFolder, found: Summary) -> None:
    """The wide columns of all other row groups are damaged, and nobody notices."""
    [file] = Path(run.uri, "predictions").rglob("*.parquet")
    pq.write_table(predictions(run).sort_by("probability"), file, row_group_size=5)
    parquet, data = pq.ParquetFile(file), bytearray(file.read_bytes())
    shown = {row["image_id"] for row in (*found.highest, *found.borderline)}
    damaged = 0
    for group in range(parquet.num_row_groups):
        if shown.isdisjoint(parquet.read_row_group(group, ["image_id"])["image_id"].to_pylist()):
            for index in range(parquet.metadata.num_columns):
                column = parquet.metadata.row_group(group).column(index)
                if column.path_in_schema in ("uri", "member", "model_sha256"):
                    begin = column.dictionary_page_offset or column.data_page_offset
                    data[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
                    damaged += 1
    file.write_bytes(data)
    assert damaged > 9
    with pytest.raises(OSError):
        pq.ParquetFile(file).read()
    again = summarize(run)
    assert {row["image_id"] for row in (*again.highest, *again.borderline)} == shown
