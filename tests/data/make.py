"""Make what one version leaves behind, so that every later one can be tried on it: `tests/data/<version>.tar.xz`.

    PYTHONPATH=<checkout of the version> python tests/data/make.py <checkout> tests/data/v0_1.tar.xz

Everything goes through the version's own commands onto an S3 of its own (moto), into the bucket below; the archive
holds the objects of that bucket under their keys. ETags on S3 come from the content, so whoever puts the objects back
has the same versions of them. The network keeps its shapes, but most of its weights are held at zero: they compress.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind the version's own packages
from tests.servers import CREDENTIALS, Faults, faulty_proxy, moto_server

BUCKET = "leukoray-kept"
_LEFT_OUT = ("/", "/_lock", "report/report.html")  # markers of folders; who held it; plots, which nobody reads

_SLIM = '''

_full_build = build


def build(architecture, outputs, **others):
    """The network with all but its first channels held at zero."""
    model = _full_build(architecture, outputs, **others)
    kept = 6
    for value in model.parameters():
        mask = torch.zeros_like(value)
        if value.dim() == 2 and value.shape[1] == 256:  # mean and maximum of 128 channels
            mask[:kept, :kept] = 1
            mask[:kept, 128 : 128 + kept] = 1
        elif value.dim() >= 2:
            mask[:kept, :kept] = 1
        else:
            mask[:kept] = 1
        with torch.no_grad():
            value.mul_(mask)
        value.register_hook(lambda gradient, mask=mask: gradient * mask)
    return model
'''


class Maker:
    """Runs commands of a version against a store."""

    def __init__(self, checkout: Path, scratch: Path, endpoint: str) -> None:
        self._code, self._scratch, self.endpoint = scratch / "code", scratch, endpoint
        for room in ("pipeline", "jobs", "serving"):
            shutil.copytree(checkout / room, self._code / room)
        for file in self._code.rglob("*.py"):
            text = file.read_text()
            if "\ndef build(architecture: str" in text:
                file.write_text(text + _SLIM)
        self.client = boto3.client("s3", endpoint_url=endpoint)
        self.client.create_bucket(Bucket=BUCKET)

    def start(self, job: str, *arguments: str, endpoint: str | None = None) -> subprocess.Popen:
        flags = [] if job == "samples" else ["--s3-endpoint", endpoint or self.endpoint, "--s3-region", "us-east-1"]
        environment = {**os.environ, **CREDENTIALS, "PYTHONPATH": str(self._code)}
        command = [sys.executable, "-m", f"jobs.{job}", *arguments, *flags]
        return subprocess.Popen(command, cwd=self._code, env=environment)

    def run(self, job: str, *arguments: str, code: int = 0) -> None:
        print(f"--- {job} {' '.join(arguments)}", flush=True)
        assert self.start(job, *arguments).wait() == code

    def kill_when(self, process: subprocess.Popen, pattern: str) -> None:
        """SIGKILL to a job and all it has started, as soon as an object is there."""
        while not any(re.search(pattern, key) for key in self.names()):
            assert process.poll() is None, f"ended before {pattern} was there"
            time.sleep(0.05)
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, 30)

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def samples(self) -> dict[str, bytes]:
        """Labelled images under cells/, images to be scored under night/: loose, in a tar, a tgz and a zip."""
        folder = self._scratch / "cells"
        size = ("--width", "64", "--height", "64")
        self.run("samples", "--out", str(folder), "--images", "24", "--subjects", "12", "--archive-images", "24", *size)
        night = self._scratch / "cells-archive"
        found = {f"cells/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*.jpg")}
        found |= {f"night/{p.relative_to(night)}": p.read_bytes() for p in night.rglob("*") if p.is_file()}
        found["night/night_3.tgz"] = _tgz([folder / key.removeprefix("cells/") for key in sorted(found)[:5]])
        return found


def _tgz(files: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.size = file.stat().st_size
            archive.addfile(info, io.BytesIO(file.read_bytes()))
    return buffer.getvalue()


@contextlib.contextmanager
def _held_back(endpoint: str, ending: str) -> Iterator[str]:
    """A store where one object is never handed out."""
    is_over = threading.Event()
    wait = lambda path, count: is_over.wait() if path.endswith(ending) else None  # noqa: E731
    with faulty_proxy(endpoint, Faults(before_get=wait)) as proxy:
        yield proxy
        is_over.set()


def make(maker: Maker) -> dict[str, Any]:
    """Everything into the bucket; what a reader must know of it."""
    root = f"s3://{BUCKET}"
    samples = maker.samples()
    late = max(key for key in samples if key.startswith("night/loose/S"))
    for key, data in samples.items():
        if key != late:
            maker.put(key, data)
    maker.run("ingest", f"{root}/cells", "--out", f"{root}/manifest")
    training = ("train", f"{root}/manifest", "--out", f"{root}/models", "--name", "cells", "--input-size", "32")
    training = (*training, "--workers", "1", "--batch-size", "4", "--learning-rate", "0.01")
    maker.run(*training, "--epochs", "30", "--patience", "0")
    model = f"{root}/models/cells"
    maker.run("evaluate", f"{root}/manifest", "--model", model, "--out", f"{root}/report", "--split", "validation")
    scoring = ("score", f"{root}/night", "--model", model, "--max-error-share", "0.5")
    maker.run(*scoring, "--out", f"{root}/scores", "--run-id", "night-1")
    maker.put(late, samples[late])
    maker.run(*scoring, "--out", f"{root}/scores", "--run-id", "night-2")
    with _held_back(maker.endpoint, late) as proxy:
        killed = maker.start(*scoring, "--out", f"{root}/killed", "--run-id", "night-1", endpoint=proxy)
        maker.kill_when(killed, r"^killed/.*/parts/part-\d+\.parquet$")
    unfinished = (*training, "--epochs", "6", "--patience", "0")
    maker.kill_when(maker.start(*unfinished), r"/checkpoint_manager_snapshot.json$")
    return {"training": unfinished[1:], "scoring": scoring[1:]}


def pack(maker: Maker, known: dict[str, Any], out: Path) -> None:
    with tarfile.open(out, "w:xz", preset=9) as archive:
        objects = {key: maker.get(key) for key in maker.names() if not key.endswith(_LEFT_OUT)}
        objects["made.json"] = json.dumps(known, indent=1).encode()
        for key in sorted(objects, key=lambda key: (key.rsplit(".", 1)[-1], key)):  # like beside like
            info = tarfile.TarInfo(key)
            info.size = len(objects[key])
            archive.addfile(info, io.BytesIO(objects[key]))
    print(f"{len(objects)} objects, {sum(map(len, objects.values()))} bytes, {out.stat().st_size} packed")


if __name__ == "__main__":
    os.environ.update(CREDENTIALS)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, moto_server() as server:
        endpoint = getattr(server, "endpoint", server)  # 0.1's own helper gives the address itself
        maker = Maker(Path(sys.argv[1]).resolve(), Path(scratch), endpoint)
        pack(maker, make(maker), Path(sys.argv[2]))
