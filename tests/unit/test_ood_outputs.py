"""What scoring, evaluation and serving tell of images unlike those of training; outputs from before they told it."""

import asyncio
import io
import json
import re
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import summary as job
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import EvaluationWorker
from pipeline.evaluation.reach import threshold_of
from pipeline.evaluation.report.card import render_card
from pipeline.evaluation.result import evaluation
from pipeline.model.bundle import Bundle
from pipeline.model.predictor import Predictor
from pipeline.scoring.run_folder import RECORD, RunFolder
from pipeline.scoring.summary.page import render_page
from pipeline.scoring.summary.summary import find_run, summarize
from pipeline.sources.manifest import MANIFEST_SCHEMA, Manifest, ManifestInfo, ManifestRow
from pipeline.sources.rows import Access
from pipeline.storage.stores import Stores
from serving.engine import Engine
from serving.model import load_model
from serving.routes import create_app
from serving.settings import ServingSettings
from tests.bundles import make_familiar_bundle
from tests.scoring_sources import score_here, write_files

OWN, FOREIGN = 30, 6


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def cell(seed: int) -> bytes:
    """A dark disc somewhere about the middle of a pink field."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48] - 24 + rng.uniform(-4, 4, (2, 1, 1))
    disc = np.exp(-(((x**2 + y**2) / rng.uniform(60, 140)) ** 2))[..., None]
    return png(np.array([225, 185, 205]) * (1 - disc * [0.5, 0.7, 0.3]) + rng.normal(0, 5, (48, 48, 3)))


def foreign(seed: int) -> bytes:
    """Black, white, gray, noise, stripes, another stain."""
    rng = np.random.default_rng(seed)
    stripes = np.where(np.arange(48)[:, None, None] % 8 < 4, 20, 240) * np.ones((48, 48, 3))
    noise = rng.integers(0, 256, (48, 48, 3))
    with Image.open(io.BytesIO(cell(seed))) as image:
        stained = np.asarray(image)[:, :, ::-1].astype(int) - [60, 0, 60]
    kinds = [np.zeros((48, 48, 3)), np.full((48, 48, 3), 255), np.full((48, 48, 3), 128), noise, stripes, stained]
    return png(np.asarray(kinds[seed % FOREIGN]))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    own = [cell(seed) for seed in range(1000, 1260)]
    return make_familiar_bundle(tmp_path_factory.mktemp("bundle") / "m", own, threshold=0.3)


def files() -> dict[str, bytes]:
    own = {f"own_{seed:02d}.png": cell(seed) for seed in range(OWN)}
    return own | {f"foreign_{seed}.png": foreign(seed) for seed in range(FOREIGN)}


@pytest.fixture
def run(bundle: Bundle, tmp_path: Path) -> RunFolder:
    return score_here([str(write_files(tmp_path / "in", files()))], bundle, tmp_path / "out")[0]


def test_rows_say_which_images_are_unlike_the_training_images(run: RunFolder, bundle: Bundle) -> None:
    [file] = Path(run.uri, "predictions").rglob("*.parquet")
    rows = pq.ParquetFile(file).read().to_pylist()
    flagged = {Path(row["uri"]).name for row in rows if row["is_ood"]}
    assert {name for name in files() if name.startswith("foreign")} <= flagged
    assert len(flagged) <= FOREIGN + 2
    predictor = Predictor(bundle)
    for row in rows[::7]:
        (said,) = predictor.predict_each([predictor.load(Path(row["uri"].removeprefix("file://")).read_bytes()).pixels])
        assert row["ood_score"] == pytest.approx(said.ood_score, rel=1e-4)  # type: ignore[union-attr]
        assert row["decision"] == said.decision  # type: ignore[union-attr]
    assert run.record().counts.out_of_distribution == len(flagged)


def test_a_summary_tells_how_many_and_warns(run: RunFolder) -> None:
    found = summarize(run)
    flagged = found.run.counts.out_of_distribution
    told = next(line for line in job.account(found) if "look unlike" in line)
    assert told.startswith(f"{flagged} of 36 images (") and "Do not trust" in told
    assert f"{flagged} unlike the training images" in found.headline()
    assert [row["is_ood"] for row in found.strangest] == [True] * flagged
    scores = [row["ood_score"] for row in found.strangest]
    assert scores == sorted(scores, reverse=True)
    page = render_page(found, {})
    assert "The strangest" in page and page.count("unlike the training images</small>") >= flagged


def test_few_flags_are_told_without_a_warning(bundle: Bundle, tmp_path: Path) -> None:
    own = {f"own_{seed:02d}.png": cell(seed) for seed in range(OWN)}
    found = summarize(score_here([str(write_files(tmp_path / "in", own))], bundle, tmp_path / "out")[0])
    assert "Do not trust" not in found.run.ood_note and "look unlike" in found.run.ood_note
    assert not found.run.is_far_from_training


def test_outputs_of_versions_that_flagged_nothing_are_still_read(run: RunFolder) -> None:
    [file] = Path(run.uri, "predictions").rglob("*.parquet")
    table = pq.ParquetFile(file).read()
    pq.write_table(table.drop_columns(["ood_score", "is_ood"]), file)
    record = json.loads(run.read(RECORD))
    del record["counts"]["out_of_distribution"], record["model"]["ood"]
    run.write(RECORD, json.dumps(record).encode())
    old = summarize(find_run(run.uri, Stores()))
    assert old.strangest == [] and old.run.ood_note == ""
    assert not any("unlike" in line for line in job.account(old))
    assert "The strangest" not in render_page(old, {})
    assert len(old.highest) == 12


def test_a_later_run_goes_on_with_an_output_that_has_no_such_columns(
    run: RunFolder, bundle: Bundle, tmp_path: Path
) -> None:
    [file] = Path(run.uri, "predictions").rglob("*.parquet")
    table = pq.ParquetFile(file).read()
    pq.write_table(table.drop_columns(["ood_score", "is_ood"]), file)
    write_files(tmp_path / "in", {"new.png": foreign(0)})
    again = score_here([str(tmp_path / "in")], bundle, tmp_path / "out", name="run-2")[0].record().counts
    assert (again.scored, again.skipped, again.out_of_distribution) == (1, OWN + FOREIGN, 1)


def test_an_evaluation_reports_the_share_of_its_split(bundle: Bundle, tmp_path: Path) -> None:
    rows = []
    for number, (name, data) in enumerate(files().items()):
        path = tmp_path / name
        path.write_bytes(data)
        place = (number, str(path), None, Access.FILE, None, None, len(data), "x", None)
        rows.append(ManifestRow(*place, number % 2, "blast", f"s{number // 3}", "test"))
    outcomes = Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows))
    manifest = Manifest("m", MANIFEST_SCHEMA.empty_table(), ManifestInfo(source=["x"]))
    found = evaluation(bundle, manifest, "test", outcomes, threshold_of(bundle.info), Resampling(100))
    assert outcomes.is_ood is not None
    flagged, record = int(outcomes.is_ood.sum()), found.record({})["ood"]
    assert FOREIGN <= flagged <= FOREIGN + 2
    assert (record["flagged"], record["images"], record["share"]) == (flagged, 36, flagged / 36)
    assert record["false_flag_rate"] == pytest.approx(0.01)
    table = outcomes.table(0.3)
    assert sum(table["is_ood"].to_pylist()) == flagged
    assert str(table.schema.field("ood_score").type) == "float"
    assert any("look unlike" in warning for warning in found.warnings)
    page = found.report(0, Stores())
    assert "Images unlike those of training" in page and f"{flagged} of 36 images" in page
    assert re.search(r"flagged beyond a distance of \d+\.\d\d, as 1 % of images like", render_card(bundle.info))


def test_an_answer_carries_the_flag_beside_an_unchanged_decision(bundle: Bundle) -> None:
    settings = ServingSettings(model=bundle.uri)
    engine = Engine(settings, load_model(bundle.uri, settings))

    async def ask(data: bytes) -> dict[str, object]:
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            answer: dict[str, object] = (await http.post("/predict", content=data)).json()
            return answer

    own, strange = (asyncio.run(ask(data)) for data in (cell(3), foreign(3)))
    assert own["is_ood"] is False and strange["is_ood"] is True
    assert bundle.info.ood is not None and isinstance(strange["ood_score"], float)
    assert strange["ood_score"] > (bundle.info.ood.threshold or 0.0) > own["ood_score"]  # type: ignore[operator]
    assert strange["decision"] in ("positive", "negative")
    assert strange["model"]["ood"]["threshold"] == bundle.info.ood.threshold  # type: ignore[index]
