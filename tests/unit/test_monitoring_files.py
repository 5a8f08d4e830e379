"""infra/monitoring: what rules and boards ask for is told by /metrics or by jobs, and every alert is raised by it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.evaluation import measured as evaluation
from pipeline.ingest import measured as ingest
from pipeline.scoring import measured as scoring
from pipeline.training import measured as training
from serving.monitoring.exposition import written
from serving.monitoring.recorder import OOD_LABELS
from serving.monitoring.state import COUNTERS, HISTOGRAMS, State

FOLDER = Path(__file__).parents[2] / "infra" / "monitoring"
BOARDS = sorted((FOLDER / "boards").glob("*.json"))
OF_JOBS = (*ingest.MEASURES, *scoring.MEASURES, *training.MEASURES, *evaluation.MEASURES)
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing; apt-get install prometheus")
# Series, one sample a minute; when to look; the alerts that they raise, with their labels; those that they must not.
SOUND = {
    'up{job="leukoray"}': "1x2000",
    'leukoray_replicas{sha256="a"}': "2x2000",
    'leukoray_model_info{name="m",version="1",sha256="a"}': "1x2000",
    'leukoray_requests_total{route="/predict",method="POST",status="200"}': "0+90x2000",
    'leukoray_predictions_total{decision="negative",ood="no"}': "0+90x2000",
    'ray_leukoray_score_finished_seconds{output="s3://x"}': "0+60x2000",
    'ray_leukoray_score_begun_seconds{output="s3://x"}': "0x2000",
    'ray_leukoray_score_images_total{output="s3://x"}': "0+90x2000",
    'ray_leukoray_score_shards_left{output="s3://x"}': "5x2000",
    'ray_leukoray_score_error_share{output="s3://x"}': "0.01x2000",
    'ray_leukoray_train_epochs{model="m"}': "30x2000",
    'ray_leukoray_train_epoch{model="m"}': "1+0x2000",
    'ray_leukoray_train_step{model="m"}': "0+1x2000",
}
PAGE, TICKET = {"severity": "page"}, {"severity": "ticket"}


def of_run(begun: int, bad: bool, minutes: str) -> dict[str, str]:
    """What a run told that began at that minute, by a Ray of its own: a fifth quarantined and unlike, or nothing."""
    name = f'output="s3://x",SessionName="{begun}",WorkerId="01"'
    return {
        f"ray_leukoray_score_begun_seconds{{{name}}}": f"{minutes}{60 * begun}x10",
        f"ray_leukoray_score_error_share{{{name}}}": f"{minutes}{0.2 * bad}x10",
        f'ray_leukoray_score_run_images{{{name},what="out_of_distribution"}}': f"{minutes}{20 * bad}x10",
        f'ray_leukoray_score_run_images{{{name},what="scored"}}': f"{minutes}100x10",
    }


OF_X = {"output": "s3://x"}
CASES: list[tuple[str, dict[str, str], dict[str, dict[str, str]]]] = [
    ("90m", {}, {}),
    ("10m", {'up{job="leukoray"}': "0x200"}, {"LeukorayDown": {**PAGE, "job": "leukoray"}}),
    ("10m", {'leukoray_replicas{sha256="a"}': "0x200"}, {"LeukorayNoReplica": PAGE}),
    ("90m", {'leukoray_errors_total{code="overloaded",status="503"}': "0+10x200"}, {"LeukorayErrors": PAGE}),
    (
        "90m",
        {
            'leukoray_request_seconds_bucket{route="/predict",le="2.5"}': "0+50x200",
            'leukoray_request_seconds_bucket{route="/predict",le="10.0"}': "0+90x200",
            'leukoray_request_seconds_bucket{route="/predict",le="+Inf"}': "0+90x200",
        },
        {"LeukoraySlow": TICKET},
    ),
    ("120m", {'leukoray_images_refused_total{code="corrupt"}': "0+10x200"}, {"LeukorayImagesRefused": TICKET}),
    ("10m", {"leukoray_replicas_refusing": "1x200"}, {"LeukorayModelRefused": TICKET}),
    ("10m", {"leukoray_replicas_with_old_keys": "1x200"}, {"LeukorayOldKeys": PAGE}),
    (
        "10m",
        {'leukoray_model_info{name="m",version="2",sha256="b"}': "1x200", 'leukoray_replicas{sha256="b"}': "1x200"},
        {"LeukorayTwoModels": PAGE},
    ),
    (  # each of two applications has one
        "10m",
        {'leukoray_model_info{application="lineage",name="n",version="2",sha256="b"}': "1x200"},
        {},
    ),
    (
        "500m",
        {'leukoray_predictions_total{decision="negative",ood="yes"}': "0+20x600"},
        {"LeukorayUnlikeTraining": TICKET},
    ),
    (
        "90m",
        {
            'leukoray_drift_psi{sha256="a"}': "0.6x200",
            'leukoray_drift_psi_by_chance{sha256="a"}': "0.1x200",
            'leukoray_drift_images{sha256="a"}': "500x200",
        },
        {"LeukorayScoresDrift": {**TICKET, "sha256": "a"}},
    ),
    (
        "90m",
        {
            'leukoray_drift_distance{sha256="a",statistic="hue"}': "0.6x200",
            'leukoray_drift_limit{sha256="a",statistic="hue"}': "0.5x200",
        },
        {"LeukorayLooksDrift": {**TICKET, "sha256": "a", "statistic": "hue"}},
    ),
    (  # the gauge of a run is gone with it
        "1700m",
        {'ray_leukoray_score_finished_seconds{output="s3://x"}': "0+60x20"},
        {"LeukorayNightNotFinished": {**PAGE, "output": "s3://x"}},
    ),
    (
        "1700m",
        {'ray_leukoray_score_begun_seconds{output="s3://never"}': "0x200"},
        {"LeukorayNightNotFinished": {**PAGE, "output": "s3://never"}},
    ),
    (
        "90m",
        {'ray_leukoray_score_images_total{output="s3://x"}': "500x200"},
        {"LeukorayScoringStuck": {**PAGE, "output": "s3://x"}},
    ),
    (  # at its first image: nothing is counted yet
        "90m",
        {'ray_leukoray_score_shards_left{output="s3://new"}': "5x200"},
        {"LeukorayScoringStuck": {**PAGE, "output": "s3://new"}},
    ),
    (
        "90m",
        {'ray_leukoray_score_error_share{output="s3://x"}': "0.06x20"},
        {"LeukorayQuarantine": {**TICKET, "output": "s3://x"}},
    ),
    (
        "90m",
        {
            'ray_leukoray_score_run_images{output="s3://x",what="out_of_distribution"}': "12x20",
            'ray_leukoray_score_run_images{output="s3://x",what="scored"}': "100x20",
        },
        {"LeukorayScoredUnlikeTraining": {**TICKET, "output": "s3://x"}},
    ),
    ("90m", of_run(10, True, "_x10 ") | of_run(40, False, "_x40 "), {}),  # the last run alone counts
    (
        "90m",
        of_run(10, False, "_x10 ") | of_run(40, True, "_x40 "),
        {"LeukorayQuarantine": TICKET | OF_X, "LeukorayScoredUnlikeTraining": TICKET | OF_X},
    ),
    ("90m", {'ray_leukoray_train_step{model="m"}': "7x200"}, {"LeukorayTrainingStuck": {**TICKET, "model": "m"}}),
    (  # before its first step: nothing is told of any
        "90m",
        {'ray_leukoray_train_epochs{model="new"}': "30x200"},
        {"LeukorayTrainingStuck": {**TICKET, "model": "new"}},
    ),
    ("40m", {'ray_leukoray_train_epochs{model="new"}': "30x200"}, {}),  # so long a start may take
    ("90m", {'ray_leukoray_train_epochs{model="over"}': "30x70"}, {}),
]


def rules() -> dict[str, Any]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def expressions() -> list[str]:
    boards = [json.loads(path.read_text()) for path in BOARDS]
    queries = [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules().values()] + queries


def series_names() -> set[str]:
    """As they stand in the text of /metrics, histograms by their three kinds of series; and those of jobs."""
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", written(State()).decode(), re.MULTILINE)
    endpoint = {
        name + ending
        for name, kind in kinds
        for ending in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    return endpoint | {measure.series for measure in OF_JOBS}


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {name for text in expressions() for name in re.findall(r"(?:ray_)?leukoray_[a-z_]+", text)}
    assert asked, "nothing is asked for"
    assert asked - series_names() == set()
    unseen = {measure.series for measure in OF_JOBS} - asked
    assert not unseen, "a metric that no board shows"


def test_every_label_that_is_chosen_by_exists() -> None:
    labels = {f"leukoray_{metric.name}": set(metric.labels) for metric in (*COUNTERS, *HISTOGRAMS)}
    labels |= {f"ray_{measure.name}": set(measure.labels) for measure in OF_JOBS}
    chosen = [found for text in expressions() for found in re.findall(r"((?:ray_)?leukoray_[a-z_]+)\{([^}]*)\}", text)]
    assert chosen
    for name, matchers in chosen:
        metric = re.sub(r"_(total|bucket|sum|count)$", "", name)
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            assert label in labels[metric] | {"le"}, f"{name} by {label}"
            if label == "ood":
                assert set(value.split("|")) <= set(OOD_LABELS.values())
            if label == "what":
                assert value in scoring.WHAT


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_the_board_has_a_place_for_each_panel(path: Path) -> None:
    panels = json.loads(path.read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels) == len({panel["id"] for panel in panels})


@needs_promtool
def test_promtool_takes_the_files() -> None:
    for check in (["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"]):
        done = subprocess.run([str(PROMTOOL), *check], cwd=FOLDER, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def expected(name: str, labels: dict[str, str]) -> dict[str, Any]:
    told = {
        key: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for key, text in rules()[name]["annotations"].items()
    }
    return {"exp_labels": labels, "exp_annotations": told}


@needs_promtool
def test_every_alert_is_raised_by_what_it_names_and_by_nothing_else(tmp_path: Path) -> None:
    assert {name for *_, raised in CASES for name in raised} == set(rules()), "an alert that is not tried"
    tests = []
    for at, changed, raised in CASES:
        looked = [
            {"eval_time": at, "alertname": name, "exp_alerts": [expected(name, raised[name])] if name in raised else []}
            for name in rules()
        ]
        series = [{"series": name, "values": values} for name, values in (SOUND | changed).items()]
        tests.append({"interval": "1m", "input_series": series, "alert_rule_test": looked})
    whole = {"rule_files": [str(FOLDER / "alerts.yml")], "evaluation_interval": "5m", "tests": tests}
    (tmp_path / "alerts_test.yml").write_text(yaml.safe_dump(whole))
    command = [str(PROMTOOL), "test", "rules", str(tmp_path / "alerts_test.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
