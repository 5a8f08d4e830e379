"""Night after night in one output: what is tried again, what counts as news, what a retry reads."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import InputError
from pipeline.ingest.annotate import IngestOptions
from pipeline.ingest.draft import ingest
from pipeline.model.bundle import Bundle
from pipeline.scoring.commit.partition import Partition
from pipeline.scoring.history.retry import read_retry
from pipeline.sources.manifest import ManifestInfo, write_manifest
from tests.bundles import make_bundle
from tests.scoring_sources import contents, picture, rows, tar, write_files
from tests.scoring_sources import score_here as score


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


def rows_of(folder: Any, kind: str) -> list[dict[str, Any]]:
    return rows(Path(folder.uri), kind).to_pylist() if Path(folder.uri, kind).exists() else []


def test_what_fails_every_night_is_no_news_after_the_first(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", contents(30, bad=False)), tmp_path / "out"
    (source / "latest.jpg").symlink_to("nowhere")
    _, first = score([source], bundle, out, "run-1")
    assert first["counts"]["quarantined"] == 1 and first["counts"]["quarantined_again"] == 0
    _, second = score([source], bundle, out, "run-2")
    counts = second["counts"]
    assert (counts["quarantined"], counts["quarantined_again"], counts["skipped"]) == (1, 1, 30)
    assert second["error_share"] == 0.0 and second["status"] == "complete"
    (source / "new.jpg").write_bytes(b"")
    _, third = score([source], bundle, out, "run-3")
    assert third["error_share"] == 1.0, "one new image, one new failure"


def test_permanent_failures_of_the_listing_are_skipped_until_they_change(bundle: Bundle, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    archive = tar({"../x.jpg": picture(1), "y.jpg": picture(2)})
    write_files(source, {"a.tar": archive})
    score([source], bundle, out, "run-1")
    _, second = score([source], bundle, out, "run-2")
    assert (second["counts"]["quarantined"], second["counts"]["skipped"]) == (0, 2)
    write_files(source, {"a.tar": tar({"../x.jpg": picture(1), "y.jpg": picture(3)})})
    _, third = score([source], bundle, out, "run-3")
    assert (third["counts"]["quarantined"], third["counts"]["scored"]) == (1, 1)


@pytest.mark.parametrize("packed", [None, "w", "w:gz"])
def test_images_of_formats_that_are_not_read_are_quarantined_once(
    packed: str | None, bundle: Bundle, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    files = {"a.jpg": picture(1), "b.svs": b"slide", "c.czi": b"slide", "notes.txt": b"text"}
    write_files(source, files if packed is None else {"x.tgz" if packed == "w:gz" else "x.tar": tar(files, packed)})
    _, first = score([source], bundle, out, "run-1")
    assert (first["counts"]["scored"], first["counts"]["codes"]) == (1, {"unsupported_format": 2})
    assert (first["counts"]["left_out"], first["status"]) == ({".txt": 1}, "too_many_errors")
    _, second = score([source], bundle, out, "run-2")
    assert (second["counts"]["quarantined"], second["counts"]["skipped"]) == (0, 3)
    _, third = score([source], bundle, tmp_path / "other", "run-1", include=("*.jpg",))
    assert (third["counts"]["quarantined"], third["status"]) == (0, "complete")


def test_an_image_that_is_not_read_does_not_hide_what_has_gone_from_its_archive(bundle: Bundle, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    members = {"a.jpg": picture(1), "b.jpg": picture(2), "c.svs": b"slide"}
    write_files(source, {"x.tar": tar(members)})
    score([source], bundle, out, "run-1")
    del members["b.jpg"]
    write_files(source, {"x.tar": tar(members)})
    _, second = score([source], bundle, out, "run-2")
    assert second["counts"]["deleted_at_source"] == 1


def test_a_raised_limit_lets_the_images_beyond_the_old_one_in(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", {"a.jpg": picture(1), "b.jpg": b""}), tmp_path / "out"
    _, first = score([source], bundle, out, "run-1", max_pixels=100)
    assert first["counts"]["codes"] == {"too_many_pixels": 1, "empty": 1}
    _, second = score([source], bundle, out, "run-2")
    assert (second["counts"]["scored"], second["counts"]["skipped_reasons"]) == (1, {"unchanged_quarantined": 1})


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archives_follow_a_raised_limit_and_their_old_damage_is_no_news(
    bundle: Bundle, tmp_path: Path, mode: str
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    name = "a.tar" if mode == "w" else "a.tar.gz"
    members = {"big.jpg": picture(1, (400, 300)), "small.jpg": picture(2, (60, 40)), "bad.jpg": b"no image"}
    write_files(source, {name: tar(members, mode)})
    _, first = score([source], bundle, out, "run-1", max_pixels=10_000)
    assert first["counts"]["codes"] == {"too_many_pixels": 1, "unsupported_format": 1}
    _, second = score([source], bundle, out, "run-2")
    assert (second["counts"]["scored"], second["counts"]["skipped"]) == (1, 2)
    write_files(source, {name: tar({**members, "new.jpg": picture(3)}, mode)})
    _, third = score([source], bundle, out, "run-3")
    assert (third["counts"]["quarantined"], third["counts"]["quarantined_again"]) == (1, 1)
    assert third["error_share"] == 0.0


def test_runs_follow_one_another_by_time_and_not_by_name(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", {"a.jpg": b""}), tmp_path / "out"
    score([source], bundle, out, "zz")
    (source / "a.jpg").write_bytes(picture(1))
    score([source], bundle, out, "aa")
    _, third = score([source], bundle, out, "mm")
    assert third["counts"]["skipped_reasons"] == {"unchanged": 1}


def test_a_retry_is_not_stopped_by_what_is_still_missing(bundle: Bundle, tmp_path: Path) -> None:
    names = ["P1_a.jpg", "P2_b.jpg", "P3_c.jpg"]
    source = write_files(tmp_path, {"list.csv": "\n".join(["uri", *(f"in/{name}" for name in names)]).encode()})
    write_files(tmp_path / "in", {"P1_a.jpg": picture(1)})
    pattern = r"(P\d)_"
    first, run = score([source / "list.csv"], bundle, tmp_path / "out", "run-1", subject_pattern=pattern)
    assert run["counts"]["codes"] == {"not_found": 2}
    write_files(tmp_path / "in", {"P2_b.jpg": picture(2)})
    again_options = {"retry_of": first.uri, "subject_pattern": pattern}
    second, again = score([source / "list.csv"], bundle, tmp_path / "out", "run-2", **again_options)
    assert (again["counts"]["scored"], again["counts"]["codes"]) == (1, {"not_found": 1})
    [row] = rows_of(second, "predictions")
    assert Path(row["uri"]).name == "P2_b.jpg" and row["subject_id"] == "P2"


def test_a_retry_keeps_subjects_and_reads_what_was_never_listed(bundle: Bundle, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    whole = tar({f"m{n}.jpg": picture(n) for n in range(4)})
    write_files(source, {"P7_bad.jpg": b"", "ok.jpg": picture(9), "a.tar": whole[:4000]})
    first, run = score([source], bundle, out, "run-1", subject_pattern=r"(P\d)_")
    seen = run["counts"]["scored"]
    write_files(source, {"P7_bad.jpg": picture(8), "a.tar": whole})
    second, _ = score([source], bundle, out, "run-2", retry_of=first.uri)
    found = {row["member"] or Path(row["uri"]).name: row["subject_id"] for row in rows_of(second, "predictions")}
    assert found == {"P7_bad.jpg": "P7", **{f"m{n}.jpg": None for n in range(4)}} and seen < 5


def test_a_retry_of_nothing_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {"a.jpg": picture(1)})
    first, _ = score([source], bundle, tmp_path / "out", "run-1")
    with pytest.raises(InputError, match="nothing to retry"):
        read_retry(first)


def test_a_group_that_took_no_part_is_the_default_partition() -> None:
    partition = Partition.parse(r"site=(?:site-(\w+))?/")
    assert partition.value("/data/x.jpg") == "__HIVE_DEFAULT_PARTITION__"
    assert partition.value("site-a/x.jpg") == "a"


def test_failures_of_the_listing_lie_in_their_partition_too(bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "site-a"
    source.mkdir()
    os.symlink("nowhere", source / "x.jpg")
    folder, _ = score([source], bundle, tmp_path / "out", partition_by=r"site=/site-(\w+)/")
    assert [path.parent.name for path in Path(folder.uri).glob("quarantine/*/*.parquet")] == ["site=a"]


def test_a_limit_counts_new_work_night_after_night(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", contents(25, bad=False)), tmp_path / "out"
    nights = [score([source], bundle, out, f"run-{n}", limit=10)[1]["counts"] for n in range(3)]
    assert [counts["scored"] for counts in nights] == [10, 10, 5]
    (source / "S000_00000.jpg").write_bytes(picture(99))
    _, changed = score([source], bundle, out, "run-4", limit=10)
    assert changed["counts"]["scored"] == 1


def test_what_fails_every_night_uses_up_no_limit(bundle: Bundle, tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(6)]
    source = write_files(tmp_path, {"list.csv": "\n".join(["uri", *(f"in/{name}" for name in names)]).encode()})
    write_files(tmp_path / "in", {name: picture(n) for n, name in enumerate(names) if n >= 3})
    out = tmp_path / "out"
    nights = [score([source / "list.csv"], bundle, out, f"run-{n}", limit=2)[1]["counts"] for n in range(2)]
    assert [counts["scored"] for counts in nights] == [2, 1]


def test_a_retry_given_twice_scores_nothing_twice(bundle: Bundle, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {"good.jpg": picture(1), "bad.jpg": b"", "worse.jpg": b"no image"})
    out = tmp_path / "out"
    first, _ = score([source], bundle, out, "run-1")
    (source / "bad.jpg").write_bytes(picture(2))
    _, mended = score([source], bundle, out, "run-2", retry_of=first.uri)
    _, again = score([source], bundle, out, "run-3", retry_of=first.uri)
    assert (mended["counts"]["scored"], mended["counts"]["quarantined"]) == (1, 1)
    assert (again["counts"]["scored"], again["counts"]["skipped"], again["counts"]["quarantined"]) == (0, 1, 1)
    assert again["counts"]["skipped_reasons"] == {"unchanged": 1}
    _, rescored = score([source], bundle, out, "run-4", retry_of=first.uri, rescore=True)
    assert rescored["counts"]["scored"] == 1, "unless it is asked for"


def test_what_a_manifest_says_of_subjects_and_sites_is_in_the_scores(bundle: Bundle, tmp_path: Path) -> None:
    write_files(tmp_path / "in", contents(12, bad=False))
    names = sorted(path.relative_to(tmp_path / "in").as_posix() for path in (tmp_path / "in").rglob("*.*"))
    rows_of_table = [f"{name},P{n % 3},{'NS'[n % 2]},{60 + n},yes" for n, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["path,patient,hospital,Age at diagnosis,fresh", *rows_of_table]))
    draft = ingest([str(tmp_path / "in")], IngestOptions(labels=str(tmp_path / "t.csv")))
    for units in ("subjects", "blocks"):
        write_manifest(str(tmp_path / units), [draft.table], ManifestInfo(units=units))
        folder, _ = score([tmp_path / units], bundle, tmp_path / "out" / units, "run")
        table = rows(Path(folder.uri))
        expected = draft.table.sort_by("image_id")
        assert table["meta_site"].to_pylist() == expected["site"].to_pylist()
        assert table["meta_Age_at_diagnosis"].to_pylist() == [
            str(age) for age in expected["Age_at_diagnosis"].to_pylist()
        ]
        assert set(table["meta_fresh"].to_pylist()) == {"true"}
        is_kept = table["subject_id"].to_pylist() == expected["subject_id"].to_pylist()
        assert is_kept == (units == "subjects")  # blocks stand in for subjects where there is a split


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_what_has_no_column_for_being_too_much_is_told(mode: str, bundle: Bundle, tmp_path: Path) -> None:
    said = {f"key{n:03d}": str(n) for n in range(259)}
    night = tar({"a.jpg": picture(1), "a.json": json.dumps(said).encode()}, mode)
    source = write_files(tmp_path / "in", {"night.tar" if mode == "w" else "night.tgz": night})
    folder, run = score([source], bundle, tmp_path / "out")
    [row] = rows_of(folder, "predictions")
    assert {name: row[f"meta_{name}"] for name in said if f"meta_{name}" in row} == dict(list(said.items())[:256])
    assert (run["counts"]["meta_left_out"], run["counts"]["meta_first"]) == (3, ["key256", "key257", "key258"])
    [note] = folder.record().notes
    assert note.startswith("3 keys of sidecars") and "key256, key257, key258" in note
