"""What lies where ours is to go, and is none of ours or was edited by a person, stays as it is."""

import importlib
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs import evaluate
from jobs import ingest as job
from jobs.cli import module_of
from pipeline.base.errors import InputError
from pipeline.evaluation.by_subject import table_of_subjects
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.own_files import refuse_foreign, refuse_foreign_comparison
from pipeline.evaluation.recognized import table_of_met
from pipeline.evaluation.study.flow import Flow, draw
from pipeline.sources.manifest import read_manifest
from pipeline.storage.filled_in import sealed, unsealed, write_beside_edited
from pipeline.storage.lock import locked
from pipeline.storage.stores import Stores
from tests.images import encoded, scene
from tests.kept import read_kept


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(8):
        path = tmp_path / "in" / ("healthy", "leukemia")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(scene(40 + number), "PNG"))
    return tmp_path / "in"


def ingested(source: Path, out: Path) -> int:
    return job.command([str(source), "--no-near-copies", "--out", str(out)])


@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00007.parquet", "manifest.json"])
@pytest.mark.parametrize("content", ["a table", "no table"])
def test_files_of_others_are_not_replaced(
    name: str, content: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir()
    if content == "no table":
        path.write_bytes(b'{"name": "app"}' if name.endswith("json") else b"ours")
    else:
        pq.write_table(pa.table({"uri": ["a"], "amount": [3]}), path)
    before = path.read_bytes()
    assert ingested(source, path.parent) == 3
    assert f"{path} is of no manifest" in capsys.readouterr().err
    assert path.read_bytes() == before and [item.name for item in path.parent.iterdir()] == [name]


FINDINGS = ["croissant.json", "problems.json", "near_copies.csv", "near_copies.html"]


@pytest.mark.parametrize("name", FINDINGS)
@pytest.mark.parametrize("is_beside_ours", [True, False])
def test_files_of_others_by_the_names_of_findings_are_not_replaced(
    name: str, is_beside_ours: bool, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / name
    if is_beside_ours:  # an older version wrote fewer files
        assert ingested(source, path.parent) == 0
    path.parent.mkdir(exist_ok=True)
    before = b'{"conformsTo": "http://mlcommons.org/croissant/1.0"}' if name == "croissant.json" else b"mine"
    path.write_bytes(before)
    assert ingested(source, path.parent) == 3
    assert f"{path} is of no manifest" in capsys.readouterr().err
    assert path.read_bytes() == before and (is_beside_ours or [*path.parent.iterdir()] == [path])


def test_findings_that_an_interrupted_ingest_left_are_ours(source: Path, tmp_path: Path) -> None:
    (source / "healthy" / "broken.png").symlink_to("nowhere.png")
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    for kind in ("PNG", "JPEG"):  # a pair of near copies
        image = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
        (source / "healthy" / f"pair.{kind.lower()}").write_bytes(encoded(image, kind))
    out = tmp_path / "out"
    command = [str(source), "--out", str(out)]
    assert job.command(command) == 0
    assert all((out / name).exists() for name in FINDINGS) and len((out / "problems.json").read_text()) > 9
    for name in ("manifest.json", "part-00000.parquet"):
        (out / name).unlink()
    assert job.command(command) == 0
    assert read_manifest(str(out)).table.num_rows == 10


def test_two_ingests_into_one_folder_write_one_after_the_other(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(job, "_WRITING_S", 0.1)
    with locked(str(out), "the other", Stores()):
        assert ingested(source, out) == 5
    assert "another run is writing here (the other" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["_lock"]
    assert ingested(source, out) == 0 and read_manifest(str(out)).table.num_rows == 8


@pytest.mark.parametrize("lost", ["nothing", "manifest.json", "part-00000.parquet", "half of manifest.json"])
def test_a_manifest_of_ours_is_replaced_also_where_it_is_not_whole(lost: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ingested(source, out) == 0
    if lost.startswith("half"):
        (out / "manifest.json").write_bytes((out / "manifest.json").read_bytes()[:40])
    elif lost != "nothing":
        (out / lost).unlink()
    assert ingested(source, out) == 0
    assert read_manifest(str(out)).table.num_rows == 8


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("subjects.csv", b"subject_id,diagnosis\nP1,AML\n"),
        ("recognized.csv", b"uri,who\n"),
        ("metrics.json", b'{"split": 0.2}'),
        ("predictions.parquet", b"ours"),
        ("report.html", b"<title>of the ward</title>"),
        ("run.json", b'{"run_id": "1", "job": "transfer-check"}'),
    ],
)
def test_an_evaluation_replaces_and_removes_nothing_of_others(
    name: str, text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(text)
    command = [str(tmp_path / "manifest"), "--model", str(tmp_path / "model"), "--out", str(tmp_path)]
    assert evaluate.command(command) == 3
    assert f"{tmp_path / name} is of no evaluation" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == text


OF_COMPARISON = ["comparison.json", "comparison.html", "comparison.parquet", "run.json"]
OF_TRANSFER = ["transfer.json", "transfer.html", "run.json"]


@pytest.mark.parametrize(
    ("name", "told", "command"),
    [
        *((name, "comparison by evaluate", ["evaluate", "manifest", "--model", "a", "b"]) for name in OF_COMPARISON),
        *((name, "transfer check", ["transfer-check", "images", "--model", "a"]) for name in OF_TRANSFER),
        *((name, "explanation", ["explain", "images", "--model", "a"]) for name in ("explained.csv", "run.json")),
        *(
            (name, "comparison by promote", ["promote", "m", "--version", "v", "--protocol", "p", "--by", "me"])
            for name in OF_COMPARISON
        ),
    ],
)
def test_no_command_replaces_what_another_made(
    name: str, told: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out" / name
    path.parent.mkdir()
    path.write_text('{"run_id": "1", "job": "score", "models": 2}')
    before = path.read_bytes()
    job_of = importlib.import_module(f"jobs.{module_of(command[0])}")
    assert job_of.command([*command[1:], "--out", str(path.parent)]) == 3
    assert f"{path} is of no {told} and would be replaced" in capsys.readouterr().err
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path]


def test_an_evaluation_of_ours_is_replaced_also_one_of_0_1(tmp_path: Path) -> None:
    kept = {key: data for key, data in read_kept("v0_1").objects.items() if key.startswith("report/")}
    for key, data in kept.items():
        (tmp_path / key.removeprefix("report/")).write_bytes(data)
    (tmp_path / "recognized.csv").write_text(table_of_met(cast(Outcomes, SimpleNamespace(scored=[]))))
    (tmp_path / "subjects.csv").write_text(table_of_subjects({"rows": []}, None))
    refuse_foreign(str(tmp_path))
    assert {"report/metrics.json", "report/predictions.parquet"} <= set(kept)


@pytest.mark.parametrize("models", [["a"], ["a", "b"]])
def test_a_record_of_one_model_and_one_of_several_never_replace_each_other(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"run_id": "1", "job": "evaluate", "configuration": {"model": models}}
    (tmp_path / "run.json").write_text(json.dumps(kept))
    of_one, of_several = partial(refuse_foreign, str(tmp_path)), partial(refuse_foreign_comparison, str(tmp_path))
    own, other = (of_one, ["b", "c"]) if len(models) == 1 else (lambda: of_several("evaluate"), ["a"])
    own()
    assert evaluate.command(["m", "--model", *other, "--out", str(tmp_path)]) == 3
    assert f"{tmp_path / 'run.json'} is of no " in capsys.readouterr().err
    assert json.loads((tmp_path / "run.json").read_text()) == kept


def test_a_diagram_of_somebody_elses_study_stays(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    flow = tmp_path / "study" / "flow.svg"
    flow.write_text('<svg xmlns="http://www.w3.org/2000/svg">the ward</svg>')
    refuse_foreign(str(tmp_path))  # no study is asked for
    for refused in (partial(refuse_foreign, study=True), partial(refuse_foreign_comparison, job="promote")):
        with pytest.raises(InputError, match=f"{flow} is of no "):
            refused(str(tmp_path))
    parts = dict.fromkeys(("train", "validation", "test"), (2, 1))
    flow.write_text(draw(Flow({}, 6, 0, {}, 6, parts, "subjects", "test", {}, 2)))
    refuse_foreign(str(tmp_path), study=True)


@given(st.text(), st.integers(0, 10_000), st.characters())
def test_a_document_is_told_from_an_edited_one(text: str, at: int, added: str) -> None:
    whole = sealed(text)
    assert unsealed(whole) == text
    at %= len(whole) + 1
    edited = whole[:at] + added + whole[at:]
    assert unsealed(edited) is None


def test_an_edited_document_stays_and_the_new_one_goes_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "CARD.md"
    assert write_beside_edited(str(card), "first", Stores()) == str(card)
    assert write_beside_edited(str(card), "second", Stores()) == str(card) and card.read_text().startswith("second")
    card.write_text(card.read_text().replace("second", "license: MIT"))
    mine = card.read_bytes()
    assert capsys.readouterr().out == ""
    for text in ("third", "fourth"):
        beside = Path(write_beside_edited(str(card), text, Stores()))
        assert (beside.name, beside.read_text()) == ("CARD.2.md", sealed(text)) and card.read_bytes() == mine
    assert f"{card}: edited" in capsys.readouterr().out
    beside.write_text("of an older version\n")
    assert write_beside_edited(str(card), "fifth", Stores()) == str(tmp_path / "CARD.3.md")
