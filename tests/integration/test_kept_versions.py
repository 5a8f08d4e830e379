"""What earlier versions left behind goes on working: bundles, registries, manifests, outputs, unfinished jobs.

The objects of `tests/data/` are put back onto S3 before each test, where their ETags and so their versions are what
they were.
"""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs import evaluate, migrate, promote, score, summary, train
from pipeline.images.load import Limits, LoadedImage, Preprocessing, load_image
from pipeline.model.predictor import Engine, Predictor
from pipeline.model.registry import resolve
from pipeline.sources.manifest import read_manifest
from serving.model import load_model
from serving.settings import ServingSettings
from tests.kept import ROOT, VERSIONS, Kept, read_kept

from .conftest import S3Server

pytestmark = pytest.mark.usefixtures("ray_cluster")
MODEL = f"{ROOT}/models/cells"
SAME = ["image_id", "uri", "member", "etag", "size_bytes", "width", "height", "format", "class_name", "decision"]


@pytest.fixture(scope="module", params=VERSIONS)
def left(request: pytest.FixtureRequest) -> Kept:
    return read_kept(request.param)


@pytest.fixture
def stored(left: Kept, s3: S3Server) -> Kept:
    left.restore(s3.client())
    return left


@pytest.fixture
def kept(stored: Kept, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """As if today's pixel rules were still those of the version, which gave the same pixels of these images."""
    [digest] = {
        json.loads(data)["preprocessing_digest"] for key, data in stored.objects.items() if key.endswith("/bundle.json")
    }
    monkeypatch.setattr(Preprocessing, "digest", lambda self: digest)
    return stored


@pytest.fixture
def run_score(kept: Kept, s3: S3Server) -> Callable[..., int]:
    """Score what the version scored, with its flags and further ones."""

    def run(*arguments: str) -> int:
        return score.command([*kept.scoring, *arguments, "--workers", "1", *s3.flags])

    return run


def table(s3: S3Server, uri: str) -> pa.Table:
    return pq.ParquetFile(io.BytesIO(s3.stores.of(uri).read(uri).data)).read()


def rows(s3: S3Server, run: str, kind: str = "predictions") -> pa.Table:
    """All rows of one kind of a run, in id order."""
    listed = json.loads(s3.stores.of(run).read(f"{run}/parts.json").data)
    files = [f"{run}/{item['name']}" for item in listed if item["name"].startswith(f"{kind}/")]
    return pa.concat_tables([table(s3, file) for file in files]).sort_by("image_id")


def run_json(s3: S3Server, run: str) -> dict[str, Any]:
    return dict(json.loads(s3.stores.of(run).read(f"{run}/run.json").data))


def latest(s3: S3Server, out: str) -> str:
    """The run below an output that is not one of the kept ones."""
    keys = {item.uri.removeprefix(f"{out}/").split("/")[0] for item in s3.stores.of(out).walk(out)}
    [run] = [key for key in keys if key.startswith("run-")]
    return f"{out}/{run}"


def both_nights(s3: S3Server, kind: str = "predictions") -> pa.Table:
    """What the version found in all images of the source."""
    nights = [rows(s3, f"{ROOT}/scores/night-1", kind)]
    if kind == "predictions":
        nights.append(rows(s3, f"{ROOT}/scores/night-2", kind))
    return pa.concat_tables(nights).sort_by("image_id")


def assert_same(found: pa.Table, before: pa.Table) -> None:
    assert found.select(SAME).to_pylist() == before.select(SAME).to_pylist()
    difference = np.abs(found["probability"].to_numpy() - before["probability"].to_numpy()).max()
    assert difference < 1e-5


def test_a_kept_bundle_gives_the_probabilities_that_it_gave(
    kept: Kept, s3: S3Server, run_score: Callable[..., int]
) -> None:
    assert run_score("--out", f"{ROOT}/anew") == 0
    anew = latest(s3, f"{ROOT}/anew")
    assert_same(rows(s3, anew), both_nights(s3))
    found, before = rows(s3, anew, "quarantine"), both_nights(s3, "quarantine")
    assert found.select(["image_id", "code"]).to_pylist() == before.select(["image_id", "code"]).to_pylist()


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_both_engines_and_the_endpoint_read_a_kept_bundle(kept: Kept, s3: S3Server, engine: Engine) -> None:
    before = both_nights(s3)
    before = before.filter(pc.is_null(before["member"]))
    settings = ServingSettings(model=f"{ROOT}/models", s3_endpoint=s3.endpoint, s3_region="us-east-1")
    loaded = load_model(settings.model, settings)
    predictor = Predictor(resolve(MODEL, s3.stores), engine=engine)
    assert loaded.info.sha256 == predictor.model_sha256 == before["model_sha256"][0].as_py()
    assert before.num_rows >= 3
    for row in before.to_pylist():
        pixels = predictor.load(s3.stores.of(row["uri"]).read(row["uri"]).data).pixels
        for each in (predictor, loaded.predictor):
            [said] = each.predict_each([pixels])
            assert said.probability == pytest.approx(row["probability"], abs=1e-5)


def test_the_next_night_skips_all_that_kept_runs_have_done(s3: S3Server, run_score: Callable[..., int]) -> None:
    before = run_json(s3, f"{ROOT}/scores/night-2")["counts"]
    assert run_score("--out", f"{ROOT}/scores") == 0
    night = run_json(s3, latest(s3, f"{ROOT}/scores"))["counts"]
    assert night["scored"] == night["quarantined"] == night["deleted_at_source"] == 0
    assert night["listed"] == night["skipped"] == before["listed"]
    again = before["skipped_reasons"]["unchanged_quarantined"]
    assert night["skipped_reasons"] == {"unchanged": night["listed"] - again, "unchanged_quarantined": again}


def test_an_unfinished_kept_run_is_continued_and_adds_up(
    kept: Kept, s3: S3Server, run_score: Callable[..., int]
) -> None:
    out = f"{ROOT}/killed"
    [part] = [key for key in kept.objects if key.startswith("killed/") and "/parts/" in key]
    done = table(s3, f"{ROOT}/{part}").select(["image_id", "scored_at"]).to_pylist()
    assert run_score("--out", out) == 0
    run = run_json(s3, f"{out}/night-1")
    assert run["continued"] and run["progress"]["resumed_images"] == len(done)
    found = rows(s3, f"{out}/night-1")
    assert_same(found, both_nights(s3))
    ids = [row["image_id"] for row in done]
    stayed = found.filter(pc.is_in(found["image_id"], pa.array(ids))).select(["image_id", "scored_at"]).to_pylist()
    assert stayed == sorted(done, key=lambda row: row["image_id"])
    assert run["counts"]["listed"] == run["counts"]["scored"] + run["counts"]["quarantined"] == 32


def test_kept_runs_are_summarized(kept: Kept, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    for night, words in (("night-1", "28 images scored"), ("night-2", "1 image scored")):
        assert summary.command([f"{ROOT}/scores/{night}", *s3.flags]) == 0
        assert words in capsys.readouterr().out
    assert summary.command([f"{ROOT}/scores", *s3.flags]) == 0
    assert "night-2" in capsys.readouterr().out
    assert summary.command([f"{ROOT}/killed/night-1", *s3.flags]) == 3
    assert "run the same `leukoray score` command again first" in capsys.readouterr().err


def test_what_a_kept_run_quarantined_is_tried_again(kept: Kept, s3: S3Server) -> None:
    bad = rows(s3, f"{ROOT}/scores/night-1", "quarantine")
    [loose] = [row["uri"] for row in bad.to_pylist() if row["member"] is None]
    s3.stores.of(loose).write(loose, kept.objects["cells/healthy/S000_0000.jpg"])
    retry = ["--retry-quarantined", f"{ROOT}/scores/night-1", "--max-error-share", "1", "--workers", "1"]
    assert score.command([*retry, *s3.flags]) == 0
    run = latest(s3, f"{ROOT}/scores")
    assert rows(s3, run)["uri"].to_pylist() == [loose]
    assert rows(s3, run, "quarantine").num_rows == bad.num_rows - 1


def test_a_kept_registry_is_listed_and_pointed_in(kept: Kept, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    version = json.loads(kept.objects["models/cells/best.json"])["version"]
    assert promote.command([MODEL, "--version", version, "--list", *s3.flags]) == 0
    shown = capsys.readouterr().out
    assert f"* {version}" in shown and "unusable" not in shown
    now = json.loads(s3.stores.of(MODEL).read(f"{MODEL}/best.json").data)
    before = json.loads(kept.objects["models/cells/best.json"])
    added = {"pointer_version": 1, "earlier": []}  # which 0.1 did not write
    assert now | {"updated_at": ""} == added | before | {"updated_at": ""}


def test_a_kept_model_is_evaluated_on_its_kept_manifest_as_before(kept: Kept, s3: S3Server) -> None:
    manifest = read_manifest(f"{ROOT}/manifest", s3.stores)
    assert manifest.table.num_rows == 24
    out = f"{ROOT}/report-anew"
    arguments = [manifest.uri, "--model", MODEL, "--out", out, "--split", "validation", "--workers", "1"]
    assert evaluate.command([*arguments, *s3.flags]) == 0
    tables = [table(s3, f"{uri}/predictions.parquet") for uri in (f"{ROOT}/report", out)]
    before, found = (each.sort_by("image_id").to_pylist() for each in tables)
    assert [row["image_id"] for row in found] == [row["image_id"] for row in before]
    for new, old in zip(found, before, strict=True):
        assert new["probability"] == pytest.approx(old["probability"], abs=1e-5)
        assert new["decision"] == old["decision"]


@pytest.mark.slow
def test_an_unfinished_kept_training_starts_over_under_todays_pixel_rules(
    stored: Kept, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {key.split("/")[3] for key in stored.objects if key.startswith("models/cells/.runs/")}
    assert train.command([*stored.training, "--num-cpus", "4", *s3.flags]) == 0
    told = capsys.readouterr().out
    assert "epoch   1/6" in told and "epoch   6/6" in told
    walked = s3.stores.of(MODEL).walk(f"{MODEL}/.runs")
    assert {item.uri.removeprefix(f"{MODEL}/.runs/").split("/")[0] for item in walked} > before


def test_a_kept_model_is_brought_to_todays_pixel_rules_and_says_the_same_of_8_bit_images(
    stored: Kept, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    scoring = [*stored.scoring, "--out", f"{ROOT}/scores", "--workers", "1", *s3.flags]
    assert score.command(scoring) == 3
    assert "is of other pixel rules" in capsys.readouterr().err
    assert migrate.command([MODEL, "--scores", f"{ROOT}/scores", *s3.flags]) == 0
    assert "probabilities move by 0.0000 on average, 0.0000 at most; 0 decisions change" in capsys.readouterr().out
    assert score.command(scoring) == 0
    before = both_nights(s3)
    assert_same(rows(s3, latest(s3, f"{ROOT}/scores")), before)


@pytest.fixture
def other_pixels(monkeypatch: pytest.MonkeyPatch) -> str:
    """Rules of another digest, under which red and blue change places; the digest."""
    monkeypatch.setattr(Preprocessing, "digest", lambda self: "f" * 64)
    monkeypatch.setattr(Predictor, "load", lambda self, data, limits=Limits(): _swapped(load_image(data, self.size)))
    return "f" * 64


def _swapped(image: LoadedImage) -> LoadedImage:
    return replace(image, pixels=np.ascontiguousarray(image.pixels[..., ::-1]))


def test_after_a_change_of_pixel_rules_one_command_gets_the_nights_going_again(
    kept: Kept, s3: S3Server, run_score: Callable[..., int], other_pixels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = f"{ROOT}/scores"
    assert run_score("--out", scores) == 3
    refused = capsys.readouterr().err.strip().splitlines()[-1]
    way_on = refused.split("`leukoray ")[1].split("`")[0].split()
    assert way_on[0] == "migrate"
    arguments = [argument.replace("OUTPUT", scores) for argument in way_on[1:]]
    assert migrate.command([*arguments, "--dry-run", *s3.flags]) == 0
    told = capsys.readouterr().out
    assert "on 29 images scored before" in told and "nothing was written" in told
    assert run_score("--out", scores) == 3
    capsys.readouterr()

    assert migrate.command([*arguments, *s3.flags]) == 0
    assert "best.json points to it" in capsys.readouterr().out
    new = resolve(MODEL, s3.stores)
    old = json.loads(kept.objects["models/cells/best.json"])["version"]
    assert new.info.preprocessing_digest == other_pixels and new.info.migrated["from_version"] == old
    assert 0 < new.info.migrated["mean"] < new.info.migrated["largest"] < 1
    assert "29 images scored before" in new.file("MODEL_CARD.md").decode()
    before = {key for key in kept.objects if f"/{old}/" in key}
    assert all(s3.stores.of(ROOT).read(f"{ROOT}/{key}").data == kept.objects[key] for key in before)

    assert run_score("--out", scores) == 0
    assert "rows of the model under 2 pixel rules" in capsys.readouterr().out
    night = latest(s3, scores)
    assert run_json(s3, night)["counts"]["scored"] == 29 and run_json(s3, night)["counts"]["skipped"] == 0
    assert set(rows(s3, night)["preprocessing_digest"].to_pylist()) == {other_pixels}
    assert table(s3, f"{scores}/night-1/predictions/part-00000.parquet").num_rows == 28, "old rows stay"

    assert migrate.command([MODEL, *s3.flags]) == 0, "a second time there is nothing to do"
    assert "nothing to do" in capsys.readouterr().out
    assert migrate.command([*arguments, *s3.flags]) == 0
    assert "is there already" in capsys.readouterr().out
    assert migrate.command([scores, *s3.flags]) == 0
    assert "29 rows of ffffffffffff" in capsys.readouterr().out


def test_migrate_has_nothing_to_do_with_what_is_read_as_it_is(
    kept: Kept, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ("models", "models/cells", "manifest", "scores", "killed"):
        assert migrate.command([f"{ROOT}/{path}", *s3.flags]) == 0
        assert "nothing to do" in capsys.readouterr().out
    assert migrate.command([f"{ROOT}/cells", *s3.flags]) == 3
    stored = {item.uri.removeprefix(f"{ROOT}/") for item in s3.stores.of(ROOT).walk(ROOT)}
    assert stored == set(kept.objects)
