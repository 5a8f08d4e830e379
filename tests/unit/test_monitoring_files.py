"""infra/monitoring: every metric, label and value that rules and the board ask for is one that /metrics has."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from serving.monitoring.exposition import written
from serving.monitoring.recorder import OOD_LABELS
from serving.monitoring.state import COUNTERS, HISTOGRAMS, State

FOLDER = Path(__file__).parents[2] / "infra" / "monitoring"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing; apt-get install prometheus")
# Each alert beside the series that raise it; one sample a minute.
RULE_TESTS = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'up{{job="leukoray"}}', values: '0x200'}}
    alert_rule_test:
      - {{eval_time: 10m, alertname: LeukorayDown, exp_alerts: [{{exp_labels: {{severity: page, job: leukoray}}}}]}}
      - {{eval_time: 10m, alertname: LeukorayNoReplica, exp_alerts: []}}
  - interval: 1m
    input_series:
      - {{series: 'up{{job="leukoray"}}', values: '1x200'}}
      - {{series: 'leukoray_requests_total{{route="/predict",method="POST",status="200"}}', values: '0+90x200'}}
      - {{series: 'leukoray_requests_total{{route="/predict",method="POST",status="503"}}', values: '0+10x200'}}
      - {{series: 'leukoray_errors_total{{code="overloaded",status="503"}}', values: '0+10x200'}}
      - {{series: 'leukoray_replicas{{sha256="a"}}', values: '1x200'}}
      - {{series: 'leukoray_model_info{{name="m",version="1",sha256="a"}}', values: '1x200'}}
      - {{series: 'leukoray_drift_psi{{sha256="a"}}', values: '0.6x200'}}
      - {{series: 'leukoray_drift_psi_by_chance{{sha256="a"}}', values: '0.1x200'}}
      - {{series: 'leukoray_drift_images{{sha256="a"}}', values: '500x200'}}
    alert_rule_test:
      - {{eval_time: 90m, alertname: LeukorayErrors, exp_alerts: [{{exp_labels: {{severity: page}}}}]}}
      - eval_time: 90m
        alertname: LeukorayScoresDrift
        exp_alerts: [{{exp_labels: {{severity: ticket, sha256: a}}}}]
      - {{eval_time: 90m, alertname: LeukorayDown, exp_alerts: []}}
      - {{eval_time: 90m, alertname: LeukorayNoReplica, exp_alerts: []}}
      - {{eval_time: 90m, alertname: LeukorayTwoModels, exp_alerts: []}}
      - {{eval_time: 90m, alertname: LeukorayModelRefused, exp_alerts: []}}
"""


def expressions() -> list[str]:
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    board = json.loads((FOLDER / "dashboard.json").read_text())
    alerts = [rule["expr"] for group in rules for rule in group["rules"]]
    return alerts + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def series_names() -> set[str]:
    """As they stand in the text of /metrics: histograms by their three kinds of series."""
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", written(State()).decode(), re.MULTILINE)
    return {
        name + ending
        for name, kind in kinds
        for ending in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {name for text in expressions() for name in re.findall(r"leukoray_[a-z_]+", text)}
    assert asked, "nothing is asked for"
    assert asked - series_names() == set()


def test_every_label_that_is_chosen_by_exists() -> None:
    labels = {f"leukoray_{metric.name}": set(metric.labels) for metric in (*COUNTERS, *HISTOGRAMS)}
    chosen = [found for text in expressions() for found in re.findall(r"(leukoray_[a-z_]+)\{([^}]*)\}", text)]
    assert chosen
    for name, matchers in chosen:
        metric = re.sub(r"_(total|bucket|sum|count)$", "", name)
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            assert label in labels[metric] | {"le"}, f"{name} by {label}"
            if label == "ood":
                assert set(value.split("|")) <= set(OOD_LABELS.values())


def test_the_board_has_a_place_for_each_panel() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels) == len({panel["id"] for panel in panels})


@needs_promtool
def test_promtool_takes_the_files() -> None:
    for check in (["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"]):
        done = subprocess.run([str(PROMTOOL), *check], cwd=FOLDER, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_are_raised_by_what_they_name_and_by_nothing_else(tmp_path: Path) -> None:
    test = tmp_path / "alerts_test.yml"
    annotations = {
        rule["alert"]: rule["annotations"]
        for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    cases = yaml.safe_load(RULE_TESTS.format(rules=FOLDER / "alerts.yml"))
    for case in cases["tests"]:
        for rule in case["alert_rule_test"]:
            for alert in rule["exp_alerts"]:
                alert["exp_annotations"] = annotations[rule["alertname"]]
    test.write_text(yaml.safe_dump(cases))
    done = subprocess.run([str(PROMTOOL), "test", "rules", str(test)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
