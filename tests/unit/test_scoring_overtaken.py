"""An unfinished run whose images another run does meanwhile; and which of two runs was the later one."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.model.bundle import Bundle
from pipeline.scoring import run as scoring
from pipeline.scoring.plan.freeze import make_plan
from pipeline.scoring.plan.overtaken import overtaken_by
from pipeline.scoring.plan.plan import Plan, find_or_start
from pipeline.scoring.request import Request, RunOptions, Workforce
from pipeline.scoring.run_folder import PLAN, RECORD, Output, RunFolder
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.scoring_sources import contents, picture, rows, score_here, tar, write_files


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


def begin(source: Path, bundle: Bundle, out: Path, **options: object) -> tuple[RunFolder, Plan, Request]:
    """A run that is killed once its listing is frozen."""
    request = Request((str(source),), bundle.uri, bundle.info.identity(), **options)  # type: ignore[arg-type]
    folder, _ = find_or_start(Output.at(str(out), Stores()), request, "unfinished")
    return folder, make_plan(Output.at(str(out), Stores()).finished(), folder, request, Stores()), request


def overtaker(folder: RunFolder, plan: Plan, request: Request, out: Path) -> str | None:
    return overtaken_by(Output.at(str(out), Stores()).finished(), folder, plan, request)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("wrote_earlier", [False, True], ids=["plan of 0.1", "plan"])
def test_what_another_run_did_meanwhile_is_not_scored_again(
    packed: bool, wrote_earlier: bool, bundle: Bundle, tmp_path: Path
) -> None:
    files = contents(6, bad=False)
    source = write_files(tmp_path / "x", {"night.tgz": tar(files, "w:gz")} if packed else files)
    other, out = write_files(tmp_path / "y", {"y.jpg": picture(77)}), tmp_path / "out"
    folder, _, request = begin(source, bundle, out)
    write_files(Path(folder.uri), {"predictions/part-00009.parquet": b"of a commit that was cut short"})
    if not wrote_earlier:
        stored = json.loads(folder.read(PLAN))
        del stored["earlier"], stored["number"]
        folder.write(PLAN, json.dumps(stored).encode())
    score_here([source, other], bundle, out, "run-2")
    said: list[str] = []
    done = scoring.score(str(out), request, bundle, RunOptions(Workforce(1)), Stores(), said.append)
    assert done.folder == folder and (done.record.counts.scored, done.record.counts.skipped) == (0, 6)
    assert "run-2 has done images of it" in said[0]
    names = sorted(path.parent.parent.name for path in out.glob("*/predictions/*.parquet"))
    assert names == ["run-2"] and rows(out / "run-2").num_rows == 7


def test_an_unfinished_run_is_kept_where_the_others_did_other_images(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "x", contents(3, bad=False)), tmp_path / "out"
    score_here([write_files(tmp_path / "z", {"z.jpg": picture(78)})], bundle, out, "run-0")
    folder, plan, request = begin(source, bundle, out)
    assert overtaker(folder, plan, request, out) is None
    score_here([write_files(tmp_path / "y", {"y.jpg": picture(77)})], bundle, out, "run-2")
    another = make_bundle(tmp_path / "another", size=16, seed=9)
    score_here([source], another, out, "run-3")
    assert overtaker(folder, plan, request, out) is None
    score_here([source], bundle, out, "run-4", limit=1)
    assert overtaker(folder, plan, request, out) == "run-4"
    again = Request(**{**asdict(request), "rescore": True})
    assert overtaker(folder, plan, again, out) is None


def test_a_failure_that_may_pass_is_nobodys_image(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "x", {"a.jpg": picture(1)}), tmp_path / "out"
    folder, plan, request = begin(source, bundle, out)
    (source / "a.jpg").rename(tmp_path / "aside.jpg")
    (source / "a.jpg").symlink_to("nowhere")
    score_here([source], bundle, out, "run-2")
    assert rows(out / "run-2", "quarantine")["code"].to_pylist() == ["not_found"]
    assert overtaker(folder, plan, request, out) is None


def test_who_begins_another_request_is_told_of_the_unfinished(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "x", contents(2, bad=False)), tmp_path / "out"
    folder, _, request = begin(source, bundle, out)
    said: list[str] = []
    find_or_start(Output.at(str(out), Stores()), Request(**{**asdict(request), "limit": 1}), "another", said.append)
    assert len(said) == 1 and said[0].startswith(f"unfinished: {folder.uri}, of {source}; ")
    find_or_start(Output.at(str(out), Stores()), request, None, said.append)
    assert len(said) == 1


def test_the_later_of_two_runs_is_told_whatever_the_clocks_say(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "x", {"a.jpg": b"", "b.jpg": picture(2)}), tmp_path / "out"
    ahead, _ = score_here([source], bundle, out, "ahead")
    stored = json.loads(ahead.read(RECORD))
    assert stored["number"] == 1
    ahead.write(RECORD, json.dumps({**stored, "finished_at": "2999-01-01T00:00:00.000+00:00"}).encode())
    write_files(source, {"a.jpg": picture(1)})
    _, second = score_here([source], bundle, out, "second")
    assert (second["number"], second["counts"]["scored"]) == (2, 1)
    _, third = score_here([source], bundle, out, "third")
    assert (third["counts"]["scored"], third["counts"]["skipped"]) == (0, 2)
    assert [run.run_id for run, _ in Output.at(str(out), Stores()).finished()] == ["ahead", "second", "third"]


def test_runs_of_0_1_have_no_number_and_come_first(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "x", {"a.jpg": picture(1)}), tmp_path / "out"
    for name, day in (("b", 1), ("a", 2)):
        folder, _ = score_here([source], bundle, out, name)
        stored = json.loads(folder.read(RECORD))
        del stored["number"]
        folder.write(RECORD, json.dumps({**stored, "finished_at": f"2999-01-0{day}T00:00:00.000+00:00"}).encode())
    score_here([source], bundle, out, "new")
    assert [run.run_id for run, _ in Output.at(str(out), Stores()).finished()] == ["b", "a", "new"]
