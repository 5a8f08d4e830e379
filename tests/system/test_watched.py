"""A real Prometheus with the shipped configuration beside real jobs and a real endpoint: what boards and alerts ask for
is there, under these names and labels.
"""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.model.bundle import Bundle
from pipeline.model.drift import FEWEST_IMAGES
from pipeline.samples import generate
from serving.rule import Rule
from serving.settings import ServingSettings
from tests.asgi import picture
from tests.bundles import make_familiar_bundle, reference_of_noise
from tests.live import live, on_trial
from tests.watched import PATIENCE_S, SHIPPED, Prometheus, jobs, prometheus

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="boards and alerts asked of a real Prometheus: it is missing; apt-get install prometheus",
    ),
]
IMAGES = 48
# Which job tells what a panel shows, by the beginning of the metrics' names
ENDPOINT, INGEST, SCORE, TRAIN, EVALUATE = (
    "leukoray_", "ray_leukoray_ingest_", "ray_leukoray_score_", "ray_leukoray_train_", "ray_leukoray_evaluate_",
)  # fmt: skip
BOARDS = {
    "serve": {
        "Answers a second, by status": ENDPOINT,
        "Latency of /predict": ENDPOINT,
        "Errors a second, by code": ENDPOINT,
        "Where the time goes, mean": ENDPOINT,
        "Requests in work; images in a forward pass": ENDPOINT,
        "Replicas, by model": ENDPOINT,
        "Decisions, share": ENDPOINT,
        "Unlike the images of training, share": ENDPOINT,
        "Images without a prediction, by why": ENDPOINT,
        "Probabilities": ENDPOINT,
        "Drift of probabilities (PSI)": ENDPOINT,
        "Drift of looks: distance as a share of its limit": ENDPOINT,
    },
    "candidate": {
        "Images compared a second, or why not": ENDPOINT,
        "Decisions changed, share of the images compared": ENDPOINT,
        "Images of the last hour, by both decisions": ENDPOINT,
        "Difference of probabilities, candidate less the other": ENDPOINT,
        "Forward pass an image, mean": ENDPOINT,
        "Images of the last hour, unlike those of training by both": ENDPOINT,
        "Requests a second, by who answered": ENDPOINT,
        "The rule: figures as shares of its limits": ENDPOINT,
        "Replicas that have the candidate": ENDPOINT,
    },
    "quality": {
        "Scoring: quarantined, share of what was tried": SCORE,
        "Scoring: quarantined images, by code": SCORE,
        "Scoring: account of the last run": SCORE,
        "Scoring: unlike the images of training, share": SCORE,
        "Endpoint: unlike the images of training, share": ENDPOINT,
        "Endpoint: images without a prediction, by why": ENDPOINT,
        "Endpoint: decisions, share": ENDPOINT,
        "Endpoint: drift of probabilities (PSI), and what chance gives": ENDPOINT,
        "Endpoint: distance from the model's own images, of its limit": ENDPOINT,
    },
    "score": {
        "Images a second": SCORE,
        "Megabytes a second": SCORE,
        "Where workers spend their time, share": SCORE,
        "Images and shards left": SCORE,
        "Lag of the night: time since the last accepted run ended": SCORE,
        "How long the run in work has taken": SCORE,
    },
    "train": {
        "Epoch": TRAIN,
        "Loss": TRAIN,
        "On validation": TRAIN,
        "Images a second": TRAIN,
        "Waiting for images, share": TRAIN,
        "Steps of the epoch": TRAIN,
    },
    "evaluate": {
        "Ingest: images a second": INGEST,
        "Ingest: images left to read": INGEST,
        "Ingest: what could not be listed, or not be read, by code": INGEST,
        "Ingest: images of the last manifest, by split": INGEST,
        "Evaluation: images a second, by step": EVALUATE,
        "Evaluation: images left, by step": EVALUATE,
        "Evaluation: images that could not be read, by code": EVALUATE,
        "Evaluation: figures of the last one": EVALUATE,
        "Time in work; time since the last was done": "",
    },
}
# What these runs came to
COUNTED = {
    "sum(ray_leukoray_ingest_images_total)": IMAGES + 2,
    "sum(ray_leukoray_ingest_read_total)": IMAGES,
    'sum(ray_leukoray_ingest_problems_total{code="not_found"})': 1,
    'sum(ray_leukoray_ingest_unread_total{code="truncated"})': 1,
    'sum(ray_leukoray_ingest_unread_total{code="empty"})': 1,
    'max(ray_leukoray_ingest_split_images{split="test"})': IMAGES + 2,
    "max(ray_leukoray_ingest_left)": 0,
    'sum(ray_leukoray_score_quarantined_total{code="truncated"})': 1,
    'max(ray_leukoray_score_run_images{what="scored"})': IMAGES,
    'max(ray_leukoray_score_run_images{what="quarantined"})': 3,
    'sum(ray_leukoray_evaluate_images_total{step="test"})': IMAGES + 2,
    'sum(ray_leukoray_evaluate_images_total{step="audit"})': 8,
    'sum(ray_leukoray_evaluate_quarantined_total{step="test",code="truncated"})': 1,
    'max(ray_leukoray_evaluate_left{step="test"})': 0,
    'count(ray_leukoray_evaluate_figure{figure="roc_auc"})': 1,
    'sum(leukoray_images_refused_total{code="unsupported_format"})': 2,
    'sum(leukoray_candidate_images_total{outcome="compared"})': 2 * (FEWEST_IMAGES + 1),
    'sum(leukoray_candidate_decisions_total{candidate="positive"})': 2 * (FEWEST_IMAGES + 1),
}


def known_bundle(folder: Path, images: list[bytes], bias: float = 0.0) -> Bundle:
    """A model that knows its own images, so that the endpoint tells of drift and of images unlike them."""
    return make_familiar_bundle(folder, images, threshold=0.5, bias=bias, **reference_of_noise())


def post(url: str, body: bytes) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(f"{url}/predict", body, method="POST"), timeout=60).close()
    except urllib.error.HTTPError as error:
        assert error.code == 415


def ask_for_answers(url: str, strange: bytes) -> None:
    for seed in range(FEWEST_IMAGES):
        post(url, picture("PNG", seed=seed))
    post(url, strange)
    post(url, b"no image")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Beside jobs that are done and an endpoint that goes on to answer."""
    folder = tmp_path_factory.mktemp("watched")
    generate(folder / "images", images=IMAGES, subjects=12, width=96, height=72)
    own = [picture("PNG", seed=seed) for seed in range(100, 180)]
    bundle, candidate = known_bundle(folder / "bundle", own), known_bundle(folder / "candidate", own, bias=50.0)
    one = min((folder / "images").rglob("*.jpg"))
    (one.parent / "S001_gone.jpg").symlink_to("/nowhere/S001_gone.jpg")
    (one.parent / "S001_empty.jpg").write_bytes(b"")
    (one.parent / "S001_cut.jpg").write_bytes(one.read_bytes()[:600])
    # of no request's answer, or next to none: it is compared on all
    begin = on_trial(candidate, share=1e-9, rule=Rule(min_images=1000, max_changed_share=0.1))
    with (
        live(ServingSettings(model=bundle.uri), begin) as url,
        prometheus(folder, url.removeprefix("http://")) as found,
    ):
        ask_for_answers(url, one.read_bytes())
        with jobs(folder):
            ask_for_answers(url, one.read_bytes())
            yield found


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((SHIPPED / "boards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield path.stem, panel


def wait_for(watched: Prometheus, expressions: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """What Prometheus says of each, as soon as it has something to say of all."""
    found: dict[str, list[dict[str, Any]]] = {}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for name, expression in expressions.items():
            if name not in found:
                told = watched.now(expression)
                found |= {name: told} if told else {}
        if len(found) == len(expressions):
            return found
        missing = {name: text for name, text in expressions.items() if name not in found}
        assert time.monotonic() < deadline, f"no data: {json.dumps(missing, indent=1)}"
        time.sleep(0.5)


def test_every_target_is_scraped(watched: Prometheus) -> None:
    wait_for(watched, {"endpoint": 'up{job="leukoray"} == 1', "jobs": 'up{job="ray"} == 1'})


def test_every_panel_has_data_of_the_job_that_it_is_of(watched: Prometheus) -> None:
    shown: dict[str, dict[str, Any]] = {}
    for board, panel in panels():
        shown.setdefault(board, {})[panel["title"]] = panel
    assert {board: set(of) for board, of in shown.items()} == {board: set(of) for board, of in BOARDS.items()}
    queries = {
        f"{board} / {title} / {target['refId']}": target
        for board, of in shown.items()
        for title, panel in of.items()
        for target in panel["targets"]
    }
    found = wait_for(watched, {name: target["expr"] for name, target in queries.items()})
    for name, target in queries.items():
        board, title, _ = name.split(" / ")
        names = re.findall(r"\b(?:ray_)?leukoray_\w+", target["expr"])
        assert names and all(one.startswith(BOARDS[board][title]) for one in names), name
        labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        for one in found[name]:
            assert labels <= set(one["metric"]), f"{name}: its legend names what {one['metric']} has not"


def test_panels_show_what_was_done(watched: Prometheus) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        told = {text: [one["value"] for one in watched.now(text)] for text in COUNTED}
        wrong = {text: told[text] for text, count in COUNTED.items() if told[text] != [count]}
        if not wrong:
            return
        assert time.monotonic() < deadline, wrong
        time.sleep(0.5)


def rules_of(watched: Prometheus) -> dict[str, Any]:
    return {rule["name"]: rule for group in watched.asked("rules")["groups"] for rule in group["rules"]}


def test_every_alert_is_loaded_and_compares_what_there_is(watched: Prometheus) -> None:
    """Where nothing is wrong an alert has no data, nor has one that asks for what does not exist: so each comparison is
    asked for its outcome, which is there on either side of the limit."""
    shipped = yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"]
    expressions = {rule["alert"]: rule["expr"] for group in shipped for rule in group["rules"]}
    assert set(rules_of(watched)) == set(expressions)
    told = {name: re.sub(r"(==|>|<)(?!=)", r"\1 bool", text) for name, text in expressions.items()}
    assert all("bool" in text for text in told.values())
    told["LeukorayErrors"] = told["LeukorayErrors"].replace('"5.."', '"4.."')  # nothing failed by the service's fault
    told["LeukorayTrainingStuck"] = told["LeukorayTrainingStuck"].replace("offset 30m", "")  # nothing is as old here
    wait_for(watched, told)
    deadline = time.monotonic() + PATIENCE_S
    while {rule["health"] for rule in rules_of(watched).values()} != {"ok"}:
        assert time.monotonic() < deadline, rules_of(watched)
        time.sleep(0.5)


def test_boards_are_drawn_without_grafana(watched: Prometheus, tmp_path: Path) -> None:
    command = [sys.executable, str(SHIPPED / "draw.py"), watched.url, "--minutes", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in tmp_path.glob("*.png")} == set(BOARDS)
