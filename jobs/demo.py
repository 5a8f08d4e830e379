"""leukoray demo: the whole way of an image, one job after the other, told so that a person can follow.

Every step is a command that could have been typed. This file chooses their options and reads their results.
"""

import contextlib
import json
import mimetypes
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import Field, field_validator

from jobs.common import Clock, finish, job_stores, run
from jobs.config import JobConfig, positional
from pipeline.base.errors import LeukorayError, PlatformError
from pipeline.evaluation.report import words
from pipeline.model.registry import read_pointer
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import ManifestRow, read_info, read_manifest
from pipeline.sources.rows import read_rows
from pipeline.storage.uris import absolute, is_s3

EXAMPLES = """examples:
  leukoray demo                                                on synthetic samples, into out/demo
  leukoray demo /data/taleqani-all --out out/taleqani          on real images
  leukoray demo s3://lab/smears --s3-region eu-central-1
  leukoray demo /data/unlabelled --model out/taleqani/models   scores and serves, trains nothing

Research software, not a medical device."""

SYNTHETIC = "synthetic"
_SAMPLES = ("--images", "480", "--subjects", "80", "--archive-images", "120")
_SUBJECT_OF_SAMPLES = ("--subject-pattern", r"(S\d+)_")
_TRAIN_ON_SAMPLES = ("--architecture", "cnn", "--input-size", "96", "--epochs", "8", "--patience", "3")
_TRAIN_ON_REAL = ("--architecture", "cnn-se", "--input-size", "128", "--epochs", "10", "--patience", "4")
_READY_WITHIN_S = 180.0
_STOPPED_WITHIN_S = 30.0
_LOG_LINES_SHOWN = 12
_INDENT = " " * 13


class DemoConfig(JobConfig):
    """Your images or samples -> manifest -> model -> report -> scores in Parquet -> one answer over HTTP."""

    data: str | None = positional(None, description="folder or s3:// prefix of real images (default: draws samples)")
    out: str = Field("out/demo", description="local folder for everything that is made")
    model: str | None = Field(None, description="bundle or registry to score and serve with, instead of training")
    train_options: str = Field("", description="more options of `leukoray train`, as one string")

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return absolute(value) if value else None

    @field_validator("out")
    @classmethod
    def _local(cls, value: str) -> str:
        if is_s3(value):
            raise ValueError("the demo writes to a local folder; the single jobs write to S3")
        return value.rstrip("/") or "/"


class StepFailed(LeukorayError):
    """A job ended with another exit code than 0."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(config: DemoConfig) -> None:
    clock, story = Clock(), Story(config)
    story.greet()
    source, archive = (config.data, config.data) if config.data else draw_samples(story)
    can_train = ingest(story, source, "manifest")
    evaluated = can_train and not config.model
    if config.model:
        model = config.model
    elif can_train:
        name = model_name(source) if config.data else SYNTHETIC
        model = train(story, "manifest", name, _TRAIN_ON_REAL if config.data else _TRAIN_ON_SAMPLES)
        evaluate(story, model)
    else:
        model = synthetic_model(story)
    scores = score(story, archive, model, () if config.data else _SUBJECT_OF_SAMPLES)
    if evaluated and config.data:
        story.say("images the model learned from are among them: how good it is, the report of the test split tells")
    summary(story, scores)
    serve(story, model)
    story.farewell(clock, model, scores, evaluated)


def model_name(source: str) -> str:
    """The last part of a source as a name in the registry: 'Blood cells [ALL]' is 'Blood-cells-ALL'."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).name).strip("-._")
    return plain or "images"


# ---- the steps -------------------------------------------------------------------------------------------------------


def draw_samples(story: "Story") -> tuple[str, str]:
    """Labelled images and an archive of other subjects: their folders."""
    folder = story.path("samples")
    printed = story.step("samples", "samples", "--out", folder, *_SAMPLES)
    story.say(*(line.rpartition(" in ")[0].rstrip(",") for line in printed[:2]))
    return folder, folder + "-archive"


def ingest(story: "Story", source: str, manifest: str) -> bool:
    """Make a manifest. True when a model can learn from it."""
    folder = story.path(manifest)
    story.step("ingest", "ingest", source, "--out", folder)
    info = read_info(absolute(folder), job_stores(story.config))
    counts = info.counts
    classes = {name: sum(of.values()) for name, of in counts.classes.items() if name != "(none)"}
    splits = ", ".join(f"{counts.splits.get(name, 0):,} {name}" for name in ("train", "validation", "test"))
    story.say(f"layout {info.layout}: {', '.join(f'{n:,} {name}' for name, n in classes.items()) or 'no labels'}")
    story.say(f"split {splits}; {info.split_reason}")
    if len(classes) < 2:
        what = f"one class only ({next(iter(classes))})" if classes else "no labels"
        story.say(f"{what}: these images can be scored, but no model can be trained or evaluated on them")
    return len(classes) > 1


def train(story: "Story", manifest: str, name: str, options: Sequence[str]) -> str:
    """Train on two workers. The folder of the model's versions, with best.json."""
    registry = story.path("models")
    more = shlex.split(story.config.train_options)
    command = ("train", story.path(manifest), "--out", registry, "--name", name, "--workers", "2", *options, *more)
    story.step("train", *command, echo=lambda line: line.startswith("epoch") and "val AUC" in line)
    model = str(Path(registry, name))
    best = read_pointer(model) or {}
    story.say(f"best.json -> {best.get('version')}: {best.get('metric')} {words.number(best.get('value'))}")
    return model


def synthetic_model(story: "Story") -> str:
    """A model for images that none can be trained on; made from samples where there is none yet."""
    model = story.path("models", SYNTHETIC)
    if read_pointer(model) is None:
        story.say("so a model is trained on synthetic samples; what it says of real cells means nothing")
        samples, _ = draw_samples(story)
        ingest(story, samples, "samples-manifest")
        return train(story, "samples-manifest", SYNTHETIC, _TRAIN_ON_SAMPLES)
    story.say(f"so {model} scores them, which learned from synthetic samples: its answers mean nothing")
    return model


def evaluate(story: "Story", model: str) -> None:
    story.step("evaluate", "evaluate", story.path("manifest"), "--model", model, "--out", story.path("report"))
    metrics = json.loads(Path(story.path("report", "metrics.json")).read_text())
    story.say(*words.headline(metrics))
    auc = metrics["metrics"].get("roc_auc")
    if auc:
        story.say(f"ROC-AUC on the test split {words.with_interval(auc)}")


def score(story: "Story", archive: str, model: str, options: Sequence[str]) -> str:
    """Score everything below `archive` into Parquet. The run's folder."""
    command = ("score", archive, "--model", model, "--out", story.path("scores"), "--rescore", *options)
    printed = story.step("score", *command)
    written = next(line for line in reversed(printed) if "results in " in line).partition("results in ")[2]
    folder = story.path("scores", Path(written).name)
    record = json.loads(Path(folder, "run.json").read_text())
    counts = record["counts"]
    codes = ", ".join(f"{count} {code}" for code, count in counts["codes"].items())
    quarantined = f"{counts['quarantined']:,} quarantined" + (f" ({codes})" if codes else "")
    story.say(f"listed {counts['listed']:,} = scored {counts['scored']:,} + {quarantined}, counted in the files")
    return folder


def summary(story: "Story", scores: str) -> None:
    story.step("summary", "summary", scores)
    story.say("counts, histogram, subjects and the most suspicious cells, as a page")


def serve(story: "Story", model: str) -> None:
    """Start the service, send it one image, stop it."""
    name, truth, data = one_image(story)
    port = free_port()
    with story.service("serve", model, "--port", str(port)) as is_running:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, is_running, story.log("serve"))
        answer = post(f"{url}/predict", data, mimetypes.guess_type(name)[0] or "application/octet-stream")
    verdict = answer["decision"] or answer["class_name"]
    story.say(f"POST /predict {name} ({truth}) -> {verdict}, probability {words.number(answer['probability'])}")
    story.say(f"answered in {answer['elapsed_ms']:.0f} ms; the service is stopped")


def one_image(story: "Story") -> tuple[str, str, bytes]:
    """A readable image, of disease and of the test split where there is one: its name, class and bytes."""
    stores = job_stores(story.config)
    found = read_rows(read_manifest(absolute(story.path("manifest")), stores).table, ManifestRow)
    found.sort(key=lambda row: (row.split != "test", row.label != 1))
    for row in found:
        fetched = next(fetch_rows([row], stores))
        if fetched.data:
            return Path(row.member or row.uri).name, row.class_name or "no label", fetched.data
    raise PlatformError(f"{story.path('manifest')}: none of its images can be read now")


# ---- HTTP, as any client would ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, is_running: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline and is_running():
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
            return
        time.sleep(0.2)
    raise PlatformError(f"the service was not ready within {_READY_WITHIN_S:.0f} s; see {log}\n{tail(log)}")


def post(url: str, data: bytes, media_type: str) -> dict[str, Any]:
    request = urllib.request.Request(url, data, {"Content-Type": media_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise PlatformError(f"{url} answered {error.code}: {error.read().decode(errors='replace')[:300]}") from error


# ---- running and telling ---------------------------------------------------------------------------------------------


def tail(log: Path) -> str:
    return "\n".join(f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


class Story:
    """Runs the jobs, keeps what they print in `<out>/logs`, and tells what happens."""

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self._untold: str | None = None  # the step whose seconds stand before the next sentence
        Path(self.path("logs")).mkdir(parents=True, exist_ok=True)

    def path(self, *parts: str) -> str:
        return str(Path(self.config.out, *parts))

    def log(self, name: str) -> Path:
        return Path(self.path("logs", f"{name}.log"))

    def step(self, name: str, *command: str, echo: Callable[[str], bool] = lambda line: False) -> list[str]:
        """Run one job to its end; the lines of its standard output. Raises StepFailed."""
        started = self._begin(name, command)
        lines = []
        with self.log(name).open("w") as log, self._process(command, subprocess.PIPE, log) as process:
            for line in process.stdout or ():
                lines.append(line.rstrip("\n"))
                log.write(line)
                log.flush()
                if echo(line):
                    self._print(_INDENT + line.rstrip())
        if process.returncode:
            raise StepFailed(
                f"step {name} failed; all of {self.log(name)}:\n{tail(self.log(name))}", process.returncode
            )
        self._finish(started)
        return lines

    @contextlib.contextmanager
    def service(self, name: str, *command: str) -> Iterator[Callable[[], bool]]:
        """A job that runs until the block ends; gives a function that says whether it still does."""
        started = self._begin(name, (name, *command))
        with self.log(name).open("w") as log, self._process((name, *command), log, log) as process:
            yield lambda: process.poll() is None
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOPPED_WITHIN_S)
        self._finish(started)

    @contextlib.contextmanager
    def _process(self, command: Sequence[str], out: Any, err: IO[str]) -> Iterator[subprocess.Popen[str]]:
        """The job as a child that does not outlive the block."""
        arguments = [sys.executable, "-m", "jobs.cli", *command, *self._shared_options()]
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True)
        try:
            yield process
            process.wait()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_STOPPED_WITHIN_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _shared_options(self) -> list[str]:
        """Flags that every job knows, as they were given to this one."""
        options = []
        for name in JobConfig.model_fields:
            value = getattr(self.config, name)
            if value is not None and value is not False:
                options += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
        return options

    def _begin(self, name: str, command: Sequence[str]) -> float:
        words_typed = ["leukoray", *command, *self._shared_options()]
        typed = self._wrapped(" ".join(map(shlex.quote, words_typed)), reserve=4)
        self._print(f"\n  {name:<10} $ " + f" \\\n{_INDENT}    ".join(typed))
        return time.monotonic()

    def _finish(self, started: float) -> None:
        self._untold = f"{time.monotonic() - started:.1f} s"

    def say(self, *sentences: str) -> None:
        for sentence in sentences:
            for line in self._wrapped(sentence):
                start = f"{self._untold:>10}   " if self._untold else _INDENT
                self._untold = None
                self._print(start + line)

    def _wrapped(self, text: str, reserve: int = 0) -> list[str]:
        width = max(80, min(130, shutil.get_terminal_size((120, 20)).columns)) - len(_INDENT) - reserve
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)

    def _typed_command(self) -> str:
        """The command's path as short as it can be typed here."""
        command = Path(sys.executable).with_name("leukoray")
        return str(command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command)

    def _print(self, text: str) -> None:
        print(text, flush=True)

    def greet(self) -> None:
        about = f"the images in {self.config.data}" if self.config.data else "synthetic samples"
        self._print(f"The whole way of an image, on {about}, into {self.config.out}/.")
        self._print(
            f"`leukoray` below is {self._typed_command()}. What each command prints is kept in {self.path('logs')}/."
        )
        self._print("Research software, not a medical device.")

    def farewell(self, clock: Clock, model: str, scores: str, evaluated: bool) -> None:
        self._print(f"\nDone in {int(clock.seconds) // 60}:{int(clock.seconds) % 60:02d} minutes.\n\nLook at")
        if evaluated:
            self._print(f"  {self.path('report', 'report.html')}   how good the model is, with its worst mistakes")
        self._print(
            f"  {scores}/   predictions/, quarantine/, summary.html, and subjects.parquet where subjects are known"
        )
        self._print(f"  {model}/   versions of the model, each with its card; best.json points to the best")
        shown = self._typed_command()
        self._print("\nTry next")
        self._print(f"  {shown} serve {model}   then drop an image on http://127.0.0.1:8000")
        if not self.config.data:
            self._print("  make demo DATA=/folder/of/your/images OUT=out/mine")
        query = f"SELECT decision, count(*) FROM '{scores}/predictions/*.parquet' GROUP BY ALL"
        self._print(f'  duckdb -c "{query}"')
        self._print(f"  {shown} score {self.config.data or self.path('samples-archive')} --model {model} --out "
                    f"{self.path('scores')}   reads only what is new")  # fmt: skip


def command(argv: Sequence[str]) -> int:
    return run(DemoConfig, main, prog="leukoray demo", epilog=EXAMPLES, argv=argv)


if __name__ == "__main__":
    finish(command(sys.argv[1:]))
