"""What a job tells as JSON: every line an object, no secret in any, the end last."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.common import job, show_config
from jobs.config import JobConfig
from pipeline.base.errors import IncompleteError
from pipeline.base.log import JsonLines, redacted, speaking_json, tell, under_run
from pipeline.training.display import Display


class Plain(JobConfig):
    """A job without options of its own."""


class Answering(JobConfig):
    """A job whose stdout is data."""

    has_results = True


def told_by(
    main: Callable[[Any], None], capsys: pytest.CaptureFixture[str], *argv: str, config: type[JobConfig] = Plain
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, lines, and what went to stdout."""
    code = job("example", config, main)(argv)
    out = capsys.readouterr()
    return code, [json.loads(line) for line in out.err.splitlines()], out.out


def test_every_line_is_an_object_and_the_end_is_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: Plain) -> None:
        show_config(config)
        print("first\n\nsecond", "half")
        print("\r\x1b[2Kwarning: looks odd", file=sys.stderr)
        under_run("run-1")
        tell(sys.stdout, "9 of 10", done=9, share=float("nan"))
        print("no end of line", end="")

    code, lines, out = told_by(main, capsys, "--log-format", "json", "--num-cpus", "2")
    assert code == 0 and out == ""
    assert [line["message"] for line in lines[1:]] == [
        "first", "second half", "warning: looks odd", "9 of 10", "no end of line", "done",
    ]  # fmt: skip
    assert lines[0]["configuration"]["num_cpus"] == 2 and lines[0]["event"] == "configuration"
    assert [line["level"] for line in lines] == ["info"] * 3 + ["warning"] + ["info"] * 3
    assert {line["job"] for line in lines} == {"example"}
    assert [line.get("run_id") for line in lines] == [None] * 4 + ["run-1"] * 3
    assert (lines[4]["done"], lines[4]["share"]) == (9, None)
    assert {name: lines[-1][name] for name in ("event", "exit_code")} == {"event": "end", "exit_code": 0}
    assert lines[-1]["seconds"] >= 0
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times) and not times[-1].utcoffset()


def test_a_failure_is_a_line_before_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: Plain) -> None:
        raise IncompleteError("too many")

    code, lines, _ = told_by(main, capsys, "--log-format=json")
    assert (code, lines[-1]["exit_code"], lines[-1]["level"]) == (4, 4, "error")
    assert (lines[0]["message"], lines[0]["level"]) == ("leukoray example: too many", "error")


def test_a_bug_has_its_traceback_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: Plain) -> None:
        raise KeyError("name")

    code, lines, _ = told_by(main, capsys, "--log-format", "json")
    assert code == 1 and len(lines) == 2 and "Traceback" in lines[0]["traceback"]


def test_wrong_usage_is_told_as_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LEUKORAY_LOG_FORMAT", "json")
    code, lines, _ = told_by(lambda _: None, capsys, "--none-such")
    assert (code, lines[-1]["event"], lines[-1]["exit_code"]) == (2, "end", 2)
    assert job("example", Plain, lambda _: None)(["--log-format", "text", "--none-such"]) == 2
    assert capsys.readouterr().err.startswith("leukoray example: ")
    monkeypatch.delenv("LEUKORAY_LOG_FORMAT")
    (tmp_path / "job.yaml").write_text("log_format: json")
    _, lines, _ = told_by(lambda _: print("x"), capsys, "--config", str(tmp_path / "job.yaml"))
    assert [line["message"] for line in lines] == ["x", "done"]


def test_results_stay_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    _, lines, out = told_by(lambda _: print("a,b"), capsys, "--log-format", "json", config=Answering)
    assert out == "a,b\n" and [line["event"] for line in lines] == ["end"]


def test_no_secret_is_in_any_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "aws/secret+1",
        "RAY_AUTH_TOKEN": "0123456789ab",
        "HF_TOKEN": "hf_planted",
        "LEUKORAY_API_KEYS": "k" * 9,
        "LEUKORAY_ADMIN_KEYS": "a" * 9,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer planted",
        "PYICEBERG_CATALOG__LAB__CREDENTIAL": "client:planted-word",
        "MINIO_SECRET_KEY": "minio-planted",
    }
    parts = ("Bearer planted", "planted-word")
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)

    def main(config: Plain) -> None:
        show_config(config)
        if config.log_format == "json":
            print("answers", *secrets.values(), *parts)
            tell(sys.stdout, "x", at="https://me:pass-word@host/x", deep=[{"key": "aws/secret+1"}])
        raise IncompleteError("no aws/secret+1 at https://me:pass-word@host")

    for form in ("json", "text"):
        job("example", Plain, main)(["--log-format", form, "--s3-endpoint", "https://me:pass-word@store:9000"])
        out = capsys.readouterr()
        told = out.err + out.out
        assert not [secret for secret in (*secrets.values(), *parts, "pass-word") if secret in told]
        assert "https://store:9000" in told


@given(st.text(), st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_any_text_is_one_line_of_json(text: str, more: str) -> None:
    class Sink:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None: ...

    sink = Sink()
    JsonLines(sink, "example").event(text, field=more)  # type: ignore[arg-type]
    assert sink.text.count("\n") == bool(sink.text)
    if sink.text:
        assert json.loads(sink.text)["field"] == redacted(more)


def test_lines_of_threads_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    def speak(name: str) -> None:
        for number in range(50):
            print(name, number, name)

    with speaking_json("example", has_results=False):
        threads = [threading.Thread(target=speak, args=(name * 3,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    said = [json.loads(line)["message"].split() for line in capsys.readouterr().err.splitlines()]
    assert len(said) == 200 and all(first == last for first, _, last in said)


def test_an_epoch_has_its_figures_beside_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    class Rows:
        def add(self, row: dict[str, float]) -> None: ...

    row = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.25, "val_auc": 0.75, "val_balanced_accuracy": 0.5}
    row |= {"seconds": 1.0, "images_per_s": 10.0, "waiting_share": 0.0}
    with speaking_json("train", has_results=False):
        Display(3, "val_auc", Rows()).show([{"kind": "epoch", "row": row, "best_epoch": 1, "finished": False}])
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["event"], line["epochs"], line["val_auc"], line["left_s"]) == ("epoch", 3, 0.75, 2.0)
    assert line["message"].startswith("epoch   1/3  loss 0.5000")


def test_a_key_is_told_in_no_log() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "key", "ward"], env=os.environ | {"LEUKORAY_LOG_FORMAT": "json"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert "belongs in no log" in json.loads(done.stderr.splitlines()[0])["message"]
