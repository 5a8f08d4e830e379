"""The limit: one process a core, the fastest decoder and ONNX Runtime, no framework, no checks, no output.

It gives the pixels of `pipeline.images.load` for baseline JPEGs, so its probabilities are ours; `limit_variants` shows
what else was tried. Images come from a folder, from tars (by offset), or from an S3 prefix (plain unsigned GETs).
"""

import multiprocessing
import os
import tarfile
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import simplejpeg
from numpy.typing import NDArray

from tests.benchmarks.inputs import INPUT_SIZE
from tests.benchmarks.measure import contender_arguments, report

Item = tuple[str, int, int]  # path or URL, offset, bytes; bytes 0: the whole file
_REMOTE_THREADS = 16


def list_items(source: str) -> list[Item]:
    if source.startswith("s3://"):
        return _list_s3(source)
    folder = Path(source)
    archives = sorted(folder.glob("*.tar"))
    if not archives:
        return [(str(path), 0, 0) for path in sorted(folder.glob("*.jpg"))]
    items: list[Item] = []
    for path in archives:
        with tarfile.open(path) as archive:
            items += [(str(path), member.offset_data, member.size) for member in archive]
    return items


def _list_s3(source: str) -> list[Item]:
    import boto3

    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    base = f"{os.environ['AWS_ENDPOINT_URL']}/{bucket}/"
    return [(base + urllib.parse.quote(each["Key"]), 0, 0) for page in pages for each in page.get("Contents", [])]


def reader(items: list[Item]) -> Callable[[Item], bytes]:
    if items[0][0].startswith("http"):
        import urllib3

        connections = urllib3.PoolManager(maxsize=_REMOTE_THREADS)
        return lambda item: connections.request("GET", item[0]).data
    if items[0][2]:
        archives = {path: os.open(path, os.O_RDONLY) for path in {item[0] for item in items}}
        return lambda item: os.pread(archives[item[0]], item[2], item[1])
    return _read_file


def _read_file(item: Item) -> bytes:
    with open(item[0], "rb", buffering=0) as file:
        return file.read()


def decode_into(data: bytes, target: NDArray[np.uint8]) -> None:
    """One baseline JPEG to `target`, uint8 (S, S, 3) RGB: DCT scaling, then one bilinear step."""
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=INPUT_SIZE, min_width=INPUT_SIZE)
    cv2.resize(pixels, (INPUT_SIZE, INPUT_SIZE), dst=target, interpolation=cv2.INTER_LINEAR_EXACT)


def open_session(graph: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _chunks(items: list[Item], batch: int, counter: Any) -> Iterator[list[Item]]:
    """Batches in turn, shared between the processes by a counter."""
    while True:
        with counter.get_lock():
            start = counter.value
            counter.value = start + batch
        if start >= len(items):
            return
        yield items[start : start + batch]


def _read_ahead(chunks: Iterator[list[Item]], read: Callable[[Item], bytes]) -> Iterator[list[bytes]]:
    """Fetch the next two batches in threads while one is computed: only worth it where reading waits."""
    with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
        waiting: deque[list[Future[bytes]]] = deque()
        for chunk in chunks:
            waiting.append([pool.submit(read, item) for item in chunk])
            if len(waiting) > 2:
                yield [future.result() for future in waiting.popleft()]
        for futures in waiting:
            yield [future.result() for future in futures]


def score(items: list[Item], graph: str, batch: int, counter: Any, results: "SimpleQueue[Any]") -> None:
    """One process: put (finished batches, sum of probabilities) on `results`."""
    cv2.setNumThreads(1)
    session, read = open_session(graph), reader(items)
    pixels = np.empty((batch, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    chunks = _chunks(items, batch, counter)
    remote = items[0][0].startswith("http")
    encoded = _read_ahead(chunks, read) if remote else ([read(item) for item in chunk] for chunk in chunks)
    finished: list[tuple[float, int]] = []
    total = 0.0
    for datas in encoded:
        for data, target in zip(datas, pixels, strict=False):
            decode_into(data, target)
        logits = session.run(None, {"images": pixels[: len(datas)]})[0][:, 0]
        total += float((1 / (1 + np.exp(-logits))).sum())
        finished.append((time.time(), len(datas)))
    results.put((finished, total))


def main() -> None:
    options = contender_arguments(__doc__)
    items = list_items(options.images)
    context = multiprocessing.get_context("fork")  # the libraries are loaded once; no thread or session exists yet
    counter, results = context.Value("q", 0), context.SimpleQueue()
    arguments = (items, f"{options.bundle}/model.onnx", options.batch, counter, results)
    processes = [context.Process(target=score, args=arguments) for _ in range(options.workers)]
    for process in processes:
        process.start()
    parts = [results.get() for _ in processes]
    for process in processes:
        process.join()
    finished = [event for events, _ in parts for event in events]
    report(finished, sum(total for _, total in parts) / len(items))


if __name__ == "__main__":
    main()
