"""A night costs what it lists, however long the history: what of earlier runs can be met is read, the rest is not."""

from pathlib import Path

import pytest

from pipeline.scoring.history.ledger import read_ledger
from pipeline.scoring.plan.freeze import make_plan
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.run_folder import Output
from pipeline.sources.opening import beginnings
from pipeline.storage.stores import Stores
from tests.histories import MadeUp, finished_run, request_of

ROOT, DAYS, A_DAY = "s3://bucket/root", 4, 300


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Runs of four days, each of its own prefix."""
    folder = str(tmp_path_factory.mktemp("out"))
    for day in range(DAYS):
        source = f"{ROOT}/day-{day:02d}"
        finished_run(folder, f"run-{day:02d}", request_of([source]), MadeUp(A_DAY).infos(source))
    return folder


def planned(out: str, source: str, store: MadeUp) -> Plan:
    output = Output.at(out, store.stores)
    folder = output.run("run-now")
    try:
        return make_plan(output.finished(), folder, request_of([source]), store.stores)
    finally:
        folder.discard_listing()


@pytest.mark.parametrize(
    ("source", "known"),
    [
        (f"{ROOT}/day-02", A_DAY),
        (f"{ROOT}/day-02/", A_DAY),
        (f"{ROOT}/day-0[12]/*.jpg", DAYS * A_DAY),  # by what stands before the pattern
        (f"{ROOT}/day-07", 0),
        (ROOT, DAYS * A_DAY),
        (f"{ROOT}/day-02/00000007.jpg", A_DAY),  # of a row group that holds it
    ],
)
def test_rows_of_other_places_are_not_read(source: str, known: int, out: str) -> None:
    output = Output.at(out, Stores())
    below = beginnings([source], MadeUp(0).stores)
    assert len(read_ledger(output.finished(), request_of([source]), below).ids) == known
    assert len(read_ledger(output.finished(), request_of([source])).ids) == DAYS * A_DAY


def test_a_night_of_one_new_day_scores_it_and_notes_nothing_of_others(out: str) -> None:
    made = planned(out, f"{ROOT}/day-{DAYS:02d}", MadeUp(A_DAY, days=DAYS, new=40))
    assert (made.rows, made.skipped, made.files) == (40, {}, [])


def test_a_night_of_the_whole_archive_skips_what_is_known_and_scores_what_is_new(out: str) -> None:
    made = planned(out, ROOT, MadeUp(A_DAY, days=DAYS, new=40))
    assert (made.rows, made.skipped) == (40, {"unchanged": DAYS * A_DAY})


def test_what_has_gone_from_a_day_is_noted_for_that_day_alone(out: str) -> None:
    made = planned(out, f"{ROOT}/day-01", MadeUp(A_DAY - 10))
    assert (made.rows, made.skipped) == (0, {"unchanged": A_DAY - 10})
    assert [(file.name.split("/")[0], file.rows) for file in made.files] == [("skipped", A_DAY - 10), ("deleted", 10)]


def test_a_table_or_a_manifest_may_name_images_anywhere(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("uri\ns3://bucket/a.jpg\n")
    assert beginnings([str(tmp_path / "images.csv")]) is None
    assert beginnings([str(tmp_path), ROOT], MadeUp(0).stores) == (str(tmp_path), "file://", ROOT)
