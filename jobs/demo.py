"""leukoray demo: the whole way of an image, one job after the other, told so that a person can follow.

Every step is a command that could have been typed. This file chooses their options and reads their results.
"""

import contextlib
import json
import mimetypes
import re
import shlex
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from jobs.common import DIRECT, Clock, job, job_stores, start
from jobs.config import JobConfig, positional
from jobs.story import Story, typed_command
from pipeline.base.errors import PlatformError
from pipeline.base.extras import refuse_without_training
from pipeline.evaluation.report import words
from pipeline.model.registry import ModelFolder
from pipeline.scoring.run_folder import Output
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import SPLITS, ManifestRow, read_info, read_manifest
from pipeline.sources.rows import read_rows
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, is_s3

EXAMPLES = """examples:
  leukoray demo                                                on synthetic samples, into out/demo
  leukoray demo /data/taleqani-all --out out/taleqani          on real images
  leukoray demo s3://lab/smears --s3-region eu-central-1
  leukoray demo /data/unlabelled --model out/taleqani/models   scores and serves, trains nothing

Research software, not a medical device."""

SYNTHETIC = "synthetic"
_IMAGES, _SUBJECTS, _ARCHIVE_IMAGES = 480, 80, 120  # of the samples
_SUBJECT_OF_SAMPLES = ("--subject-pattern", r"(S\d+)_")
_TRAIN_ON_SAMPLES = ("--input-size", "96", "--epochs", "6")  # the default recipe, shorter
_READY_WITHIN_S = 180.0


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


def main(config: DemoConfig) -> None:
    refuse_without_training()
    clock, stores, story = Clock(), job_stores(config), Story(config.out, config)
    greet(config, story)
    source, archive = (config.data, config.data) if config.data else draw_samples(story)
    can_train = ingest(story, source, "manifest", stores)
    evaluated = can_train and not config.model
    more = shlex.split(config.train_options)
    if config.model:
        model = config.model
    elif can_train:
        chosen = () if config.data else _TRAIN_ON_SAMPLES
        model = train(story, "manifest", model_name(config.data) if config.data else SYNTHETIC, *chosen, *more)
        evaluate(story, model)
    else:
        model = synthetic_model(story, more, stores)
    scores = score(story, archive, model, stores, *(() if config.data else _SUBJECT_OF_SAMPLES))
    if evaluated and config.data:
        story.say("images the model learned from are among them: how good it is, the report of the test split tells")
    story.step("summary", scores)
    story.say("counts, histogram, subjects and the most suspicious cells, as a page")
    serve(story, model, stores)
    farewell(config, story, clock, model, scores, evaluated)


def model_name(source: str) -> str:
    """The last part of a source as a name in the registry: 'Blood cells [ALL]' is 'Blood-cells-ALL'."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).name).strip("-._")
    return plain or "images"


# ---- the steps: a command, and what its records say of it ------------------------------------------------------------


def draw_samples(story: Story) -> tuple[str, str]:
    """Labelled images and an archive of other subjects: their folders."""
    folder = story.path("samples")
    counts = ("--images", str(_IMAGES), "--subjects", str(_SUBJECTS), "--archive-images", str(_ARCHIVE_IMAGES))
    story.step("samples", "--out", folder, *counts)
    story.say(f"{_IMAGES} synthetic images of {_SUBJECTS} subjects, half of them with leukemia")
    story.say(f"{_ARCHIVE_IMAGES} synthetic images without labels, some in archives, and files damaged on purpose")
    return folder, folder + "-archive"


def ingest(story: Story, source: str, manifest: str, stores: Stores) -> bool:
    """Make a manifest. True when a model can learn from it."""
    folder = story.path(manifest)
    story.step("ingest", source, "--out", folder)
    info = read_info(folder, stores)
    classes = {name: sum(of.values()) for name, of in info.counts.classes.items() if name != "(none)"}
    splits = ", ".join(f"{info.counts.splits.get(name, 0):,} {name}" for name in SPLITS)
    story.say(f"layout {info.layout}: {', '.join(f'{n:,} {name}' for name, n in classes.items()) or 'no labels'}")
    story.say(f"split {splits}; {info.split_reason}")
    if len(classes) < 2:
        what = f"one class only ({next(iter(classes))})" if classes else "no labels"
        story.say(f"{what}: these images can be scored, but no model can be trained or evaluated on them")
    return len(classes) > 1


def train(story: Story, manifest: str, name: str, *given: str) -> str:
    """Train on two workers. The folder of the model's versions, with best.json."""
    registry = story.path("models")
    flags = ("--out", registry, "--name", name, "--workers", "2", "--cache", story.path("pixels"), *given)
    story.step("train", story.path(manifest), *flags, shown="epoch")
    model = str(Path(registry, name))
    best = ModelFolder(model).pointer()
    assert best is not None, "training ends with a pointer"
    story.say(f"best.json -> {best.version}: {best.metric} {words.number(best.value)}")
    return model


def synthetic_model(story: Story, more: Sequence[str], stores: Stores) -> str:
    """A model for images that none can be trained on; made from samples where there is none yet."""
    model = story.path("models", SYNTHETIC)
    if ModelFolder(model).pointer() is not None:
        story.say(f"so {model} scores them, which learned from synthetic samples: its answers mean nothing")
        return model
    story.say("so a model is trained on synthetic samples; what it says of real cells means nothing")
    samples, _ = draw_samples(story)
    ingest(story, samples, "samples-manifest", stores)
    return train(story, "samples-manifest", SYNTHETIC, *_TRAIN_ON_SAMPLES, *more)


def evaluate(story: Story, model: str) -> None:
    report = story.path("report")
    story.step("evaluate", story.path("manifest"), "--model", model, "--out", report)
    metrics = json.loads(Path(report, "metrics.json").read_text())
    story.say(*words.headline(metrics), *words.reach(metrics["reach"]))
    auc = metrics["metrics"].get("roc_auc")
    if auc:
        story.say(f"ROC-AUC on the test split {words.with_interval(auc)}")


def score(story: Story, archive: str, model: str, stores: Stores, *given: str) -> str:
    """Score everything below `archive` into Parquet. The run's folder."""
    out = story.path("scores")
    story.step("score", archive, "--model", model, "--out", out, "--rescore", *given)
    folder, record = Output.at(absolute(out), stores).finished()[-1]
    counts = record.counts
    codes = ", ".join(f"{count} {code}" for code, count in counts.codes.items())
    quarantined = f"{counts.quarantined:,} quarantined" + (f" ({codes})" if codes else "")
    story.say(f"listed {counts.listed:,} = scored {counts.scored:,} + {quarantined}, counted in the files")
    return story.path("scores", folder.run_id)


def serve(story: Story, model: str, stores: Stores) -> None:
    """Start the service, send it one image, stop it."""
    name, truth, data = one_image(story.path("manifest"), stores)
    url = f"http://127.0.0.1:{free_port()}"
    with story.service("serve", model, "--port", url.rpartition(":")[2]) as is_running:
        if not wait_until_ready(url, is_running):
            raise PlatformError(
                f"the service ended, or was not ready within {_READY_WITHIN_S:.0f} s; all of {story.log('serve')}:\n"
                + story.log_end("serve")
            )
        answer = ask(f"{url}/predict", data, mimetypes.guess_type(name)[0] or "application/octet-stream")
    verdict = answer["decision"] or answer["class_name"]
    story.say(f"POST /predict {name} ({truth}) -> {verdict}, probability {words.number(answer['probability'])}")
    story.say(f"answered in {answer['elapsed_ms']:.0f} ms; the service is stopped")


def one_image(manifest: str, stores: Stores) -> tuple[str, str, bytes]:
    """A readable image, of disease and of the test split where there is one: its name, class and bytes."""
    found = read_rows(read_manifest(manifest, stores).table, ManifestRow)
    found.sort(key=lambda row: (row.split != "test", row.label != 1))
    for row in found:
        fetched = next(fetch_rows([row], stores))
        if fetched.data:
            return Path(row.member or row.uri).name, row.class_name or "no label", fetched.data
    raise PlatformError(f"{manifest}: none of its images can be read now")


# ---- HTTP, as any client would ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, is_running: Callable[[], bool]) -> bool:
    """True when /readyz has answered, False when the service ended before or took too long."""
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline and is_running():
        with contextlib.suppress(PlatformError):
            ask(f"{url}/readyz")
            return True
        time.sleep(0.2)
    return False


def ask(url: str, data: bytes | None = None, media_type: str = "application/octet-stream") -> dict[str, Any]:
    """The JSON answer of a GET, or of a POST of `data`. Raises PlatformError."""
    try:
        with DIRECT.open(urllib.request.Request(url, data, {"Content-Type": media_type}), timeout=60) as it:
            return dict(json.load(it))
    except urllib.error.HTTPError as error:
        raise PlatformError(f"{url} answered {error.code}: {error.read().decode(errors='replace')[:300]}") from error
    except OSError as error:
        raise PlatformError(f"{url} does not answer: {error}") from error


# ---- first and last words --------------------------------------------------------------------------------------------


def greet(config: DemoConfig, story: Story) -> None:
    about = f"the images in {config.data}" if config.data else "synthetic samples"
    print(f"The whole way of an image, on {about}, into {config.out}/.")
    print(f"`leukoray` below is {typed_command()}. What each command prints is kept in {story.path('logs')}/.")
    print("Research software, not a medical device.", flush=True)


def farewell(config: DemoConfig, story: Story, clock: Clock, model: str, scores: str, evaluated: bool) -> None:
    shown, again = typed_command(), config.data or story.path("samples-archive")
    print(f"\nDone in {int(clock.seconds) // 60}:{int(clock.seconds) % 60:02d} minutes.\n\nLook at")
    if evaluated:
        print(f"  {story.path('report', 'report.html')}   how good the model is, with its worst mistakes")
    print(f"  {scores}/   predictions/, quarantine/, summary.html, and subjects.parquet where subjects are known")
    print(f"  {model}/   versions of the model, each with its card; best.json points to the best")
    print(f"\nTry next\n  {shown} serve {model}   then drop an image on http://127.0.0.1:8000")
    if not config.data:
        print("  make demo DATA=/folder/of/your/images OUT=out/mine")
    print(f"  duckdb -c \"SELECT decision, count(*) FROM '{scores}/predictions/*.parquet' GROUP BY ALL\"")
    print(f"  {shown} score {again} --model {model} --out {story.path('scores')}   reads only what is new")


command = job("demo", DemoConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
