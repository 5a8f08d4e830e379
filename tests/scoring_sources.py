"""Sources for scoring tests: many small pictures, some damaged, as files, tar and zip; and how to run and read."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.model.bundle import Bundle
from pipeline.scoring import run as scoring
from pipeline.scoring.commit import commit
from pipeline.scoring.commit.commit import Sizes
from pipeline.scoring.plan.freeze import make_plan
from pipeline.scoring.request import Request, RunOptions, Workforce
from pipeline.scoring.run_folder import Output, RunFolder
from pipeline.scoring.task import ScoringTask
from pipeline.scoring.work.progress import Progress
from pipeline.scoring.work.stream import ReadRules
from pipeline.scoring.work.worker import CHUNK_ROWS, ShardScorer
from pipeline.storage.stores import Stores

ROOT = Path(__file__).resolve().parent.parent
COMPARED = (
    "image_id",
    "uri",
    "member",
    "size_bytes",
    "width",
    "height",
    "format",
    "class_name",
    "probability",
    "decision",
)


def picture(seed: int, size: tuple[int, int] = (160, 120), kind: str = "JPEG") -> bytes:
    """A smooth random picture, encoded."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def contents(count: int, *, bad: bool = True, size: tuple[int, int] = (160, 120)) -> dict[str, bytes]:
    """`count` files by name; with `bad`, one in 40 is damaged."""
    files = {f"S{i % 7:03d}_{i:05d}.jpg": picture(i, size) for i in range(count)}
    if bad:
        for index, name in enumerate(sorted(files)[::40]):
            files[name] = [b"", files[name][: len(files[name]) // 2], b"not an image at all"][index % 3]
    return files


def mixed_files(count: int, size: tuple[int, int] = (160, 120)) -> dict[str, bytes]:
    """A quarter as loose files, and one each in a tar, a compressed tar and a deflated zip: object name -> bytes."""
    files = contents(count, size=size)
    names = sorted(files)
    loose = {f"loose/{name}": files[name] for name in names[::4]}
    packed = {"night.tar": tar({name: files[name] for name in names[1::4]})}
    packed["night.tgz"] = tar({name: files[name] for name in names[2::4]}, "w:gz")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names[3::4]:
            archive.writestr(name, files[name])
    return {**loose, **packed, "night.zip": zipped.getvalue()}


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=cast(Literal["w"], mode)) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def score_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.score", *arguments]


def run_score(
    *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """`leukoray score` in a process of its own, with a Ray of its own."""
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        score_command(*arguments),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def only_run(out: Path) -> Path:
    [run] = [path for path in out.iterdir() if path.is_dir()]
    return run


def read_run(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


def rows(run: Path, kind: str = "predictions") -> pa.Table:
    """All rows of one kind, in id order."""
    files = sorted((run / kind).rglob("*.parquet"))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files]).sort_by("image_id")


def outcome(run: Path) -> dict[str, list[Any]]:
    """What must be the same whatever happened on the way: predictions and quarantine without times and run ids."""
    predictions, quarantine = rows(run).select(list(COMPARED)), rows(run, "quarantine")
    return {
        "predictions": predictions.to_pylist(),
        "quarantine": quarantine.select(["image_id", "uri", "member", "stage", "code"]).to_pylist(),
    }


@dataclass(frozen=True)
class Here:
    """A run without Ray, by the library's own steps: its parts are there once `task` is made and `work` is done."""

    task: ScoringTask
    chunk_rows: int = CHUNK_ROWS

    @classmethod
    def plan(
        cls,
        sources: Sequence[Path | str],
        bundle: Bundle,
        out: Path,
        name: str = "run-1",
        stores: Stores = Stores(),
        chunk_rows: int = CHUNK_ROWS,
        **options: Any,
    ) -> "Here":
        """List and freeze. `options` are those of `Request`."""
        output = Output.at(str(out), stores)
        request = Request(tuple(map(str, sources)), bundle.uri, bundle.info.identity(), **options)
        folder = output.run(name)
        plan = make_plan(output.finished(), folder, request, stores)
        return cls(ScoringTask(folder, request, plan, bundle, stores), chunk_rows)

    def work(self) -> Progress:
        """Every shard to its part."""
        task = self.task
        scorer = ShardScorer(
            task.bundle, task.stores, ReadRules.of(task.request, task.stores), chunk_rows=self.chunk_rows
        )
        progress = Progress(task.plan, 0, 1, lambda text: None)
        for number in range(task.plan.shards):
            last = scorer.score(number, task.folder)
            for account in (*scorer.take_finished(), last):
                progress.add(account)
        return progress

    def finish(
        self,
        progress: Progress | None = None,
        ray: Any = None,
        sizes: Sizes = Sizes(),
        *,
        accepts_damaged: bool = False,
    ) -> dict[str, Any]:
        """Parts to outputs; run.json, as other programs read it."""
        task = self.task
        done = commit.commit(ray, task, sizes=sizes)
        progress = progress or Progress(task.plan, 0, 1, lambda text: None)
        options = RunOptions(Workforce(1), accepts_damaged=accepts_damaged)
        record = scoring.make_record(task, done.counts, progress, options, continues=False)
        commit.finish(task.folder, done.written, record)
        return read_run(Path(task.folder.uri))


def score_here(
    sources: Sequence[Path | str],
    bundle: Bundle,
    out: Path,
    name: str = "run-1",
    *,
    accepts_damaged: bool = False,
    **options: Any,
) -> tuple[RunFolder, dict[str, Any]]:
    """A whole run in this process; its folder and run.json. `options` as of `Here.plan`."""
    here = Here.plan(sources, bundle, out, name, **options)
    return here.task.folder, here.finish(here.work(), accepts_damaged=accepts_damaged)
