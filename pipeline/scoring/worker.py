"""One shard: fetch, decode, predict, write its part whole. Runs in Ray actors; needs no Ray itself.

Fetching runs ahead in threads; decoding and the model share one lock, so a worker keeps one core busy however many
shards it has open. It opens several, so that a slow object holds up its own shard only.
"""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bundle import Bundle, class_columns
from pipeline.errors import Code, ImageRejected, Stage
from pipeline.fetch import Fetched, fetch_rows
from pipeline.images import Header, Limits, LoadedImage
from pipeline.manifest import to_parquet
from pipeline.predictor import Predictions, Predictor
from pipeline.scoring.outage import fetch_while_up
from pipeline.scoring.records import part_schema
from pipeline.storage import S3Settings, StoreError, store_for

_BATCH = 8  # images a forward pass: activations stay in cache on CPU
_CUDA_BATCH = 128


@dataclass
class Account:
    """What one shard gave, for progress and for the run's account."""

    shard: int
    rows: int = 0
    scored: int = 0
    bytes: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"fetch": 0.0, "decode": 0.0, "predict": 0.0, "write": 0.0}
    )
    attempts: int = 0
    worker: str = ""


@dataclass(frozen=True)
class _Outcome:
    """What became of one row; neither its bytes nor its pixels, so that a shard in work stays small."""

    etag: str
    size_bytes: int
    attempts: int
    header: Header | None
    result: Predictions | ImageRejected
    at: datetime

    @classmethod
    def of(
        cls, fetched: Fetched, header: Header | None, result: Predictions | ImageRejected, at: datetime | None = None
    ) -> "_Outcome":
        size = len(fetched.data) if fetched.data is not None else fetched.row["size_bytes"]
        return cls(fetched.etag, size, fetched.attempts, header, result, at or datetime.now(UTC))


class ShardScorer:
    """Scores shards with one model. `score` may be called from several threads."""

    def __init__(self, bundle: Bundle, s3: S3Settings | None, limits: Limits, decode_threads: int = 1) -> None:
        self.predictor = Predictor(bundle, threads=max(1, decode_threads))
        self._s3, self._limits = s3, limits
        self._schema = part_schema(bundle.info.classes)
        self._compute = threading.Lock()
        self._pool = ThreadPoolExecutor(decode_threads) if decode_threads > 1 else None
        self._batch = _BATCH if self.predictor.engine == "onnx" else _CUDA_BATCH
        self._doing: dict[int, tuple[str, str, float]] = {}

    def doing(self) -> list[tuple[str, str, float]]:
        """(stage, uri, seconds in it) of each open shard: what to name when nothing moves."""
        now = time.monotonic()
        return [(stage, uri, now - since) for stage, uri, since in list(self._doing.values())]

    def score(self, number: int, shard_uri: str, part_uri: str, crashed: frozenset[int] = frozenset()) -> Account:
        """Write the part of one shard. `crashed`: ids known to kill the decoder, not to be decoded again.

        Raises StoreError or PlatformError when the shard cannot be read, the part cannot be written, or the store
        is out altogether; the shard then stays undone.
        """
        account = Account(shard=number)
        thread = threading.get_ident()
        try:
            with store_for(shard_uri, self._s3).open(shard_uri) as file:
                rows = pq.ParquetFile(file).read().to_pylist()
            outcomes = self._predict_all(rows, crashed, account, thread)
            begin = time.perf_counter()
            self._doing[thread] = ("write", part_uri, time.monotonic())
            columns = self._columns(rows, outcomes, account)
            store_for(part_uri, self._s3).write(part_uri, to_parquet(pa.table(columns, schema=self._schema)))
            account.seconds["write"] += time.perf_counter() - begin
        finally:
            self._doing.pop(thread, None)
        account.rows = len(rows)
        account.bytes = sum(row["size_bytes"] for row in rows)
        return account

    def _predict_all(
        self, rows: list[dict[str, Any]], crashed: frozenset[int], account: Account, thread: int
    ) -> dict[int, _Outcome]:
        """Outcome of every row, by image id. Batches are predicted as they fill, in the order of arrival."""
        results: dict[int, _Outcome] = {}
        batch: list[Fetched] = []
        healthy = [row for row in rows if row["image_id"] not in crashed]
        for row in rows:
            if row["image_id"] in crashed:
                message = "decoding it ended the process; the file is dangerous or the decoder has a bug"
                rejected = ImageRejected(Code.CRASHED_DECODER, message, Stage.DECODE)
                results[row["image_id"]] = _Outcome.of(Fetched(row, None, None, row["etag"], 1), None, rejected)
        begin = time.perf_counter()
        self._doing[thread] = ("fetch", rows[0]["uri"] if rows else "", time.monotonic())
        for fetched in fetch_while_up(healthy, self._s3, self._limits):
            account.seconds["fetch"] += time.perf_counter() - begin
            account.attempts += fetched.attempts
            if fetched.rejected is not None:
                results[fetched.row["image_id"]] = _Outcome.of(fetched, None, fetched.rejected)
            else:
                batch.append(fetched)
            if len(batch) >= self._batch:
                self._flush(batch, results, account, thread)
                batch = []
            self._doing[thread] = ("fetch", fetched.row["uri"], time.monotonic())
            begin = time.perf_counter()
        self._flush(batch, results, account, thread)
        return results

    def _flush(
        self,
        batch: list[Fetched],
        results: dict[int, _Outcome],
        account: Account,
        thread: int,
    ) -> None:
        if not batch:
            return
        with self._compute:
            begin = time.perf_counter()
            self._doing[thread] = ("decode", batch[0].row["uri"], time.monotonic())
            decoded = list(self._map(self._decode, batch))
            images = [
                (item, image) for item, image in zip(batch, decoded, strict=True) if isinstance(image, LoadedImage)
            ]
            for item, image in zip(batch, decoded, strict=True):
                if isinstance(image, ImageRejected):
                    results[item.row["image_id"]] = _Outcome.of(item, None, image)
            account.seconds["decode"] += time.perf_counter() - begin
            begin = time.perf_counter()
            self._doing[thread] = ("predict", batch[0].row["uri"], time.monotonic())
            if images:
                self._predict(images, results)
            account.seconds["predict"] += time.perf_counter() - begin

    def _map(self, function: Callable[[Fetched], Any], items: list[Fetched]) -> Iterable[Any]:
        return self._pool.map(function, items) if self._pool is not None else map(function, items)

    def _decode(self, fetched: Fetched) -> LoadedImage | ImageRejected:
        assert fetched.data is not None
        try:
            return self.predictor.load(fetched.data, self._limits)
        except ImageRejected as error:
            return error

    def _predict(
        self,
        images: list[tuple[Fetched, LoadedImage]],
        results: dict[int, _Outcome],
    ) -> None:
        pixels = np.stack([image.pixels for _, image in images])  # uint8 (B, S, S, 3)
        try:
            predictions: Predictions | None = self.predictor(pixels)
        except ImageRejected:
            predictions = None  # one image of the batch gave no finite value; find it
        now = datetime.now(UTC)
        for index, (item, image) in enumerate(images):
            if predictions is not None:
                results[item.row["image_id"]] = _Outcome.of(item, image.header, _one(predictions, index), now)
                continue
            try:
                results[item.row["image_id"]] = _Outcome.of(item, image.header, self.predictor(image.pixels[None]))
            except ImageRejected as error:
                results[item.row["image_id"]] = _Outcome.of(item, image.header, error)

    def _columns(
        self,
        rows: list[dict[str, Any]],
        results: dict[int, _Outcome],
        account: Account,
    ) -> dict[str, list[Any]]:
        """The part's columns, in the shard's order of rows."""
        names = class_columns(self.predictor.info.classes)
        columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        for row in rows:
            outcome = results[row["image_id"]]
            result, header = outcome.result, outcome.header
            values: dict[str, Any] = {name: row[name] for name in ("image_id", "uri", "member", "subject_id", "meta")}
            values |= {"etag": outcome.etag, "size_bytes": outcome.size_bytes}
            values |= {"attempts": outcome.attempts, "scored_at": outcome.at}
            if header is not None:
                values |= {"width": header.width, "height": header.height, "format": header.format}
            if isinstance(result, ImageRejected):
                values |= {"stage": result.stage.value, "code": result.code.value, "message": result.message}
                account.codes[result.code.value] = account.codes.get(result.code.value, 0) + 1
            else:
                account.scored += 1
                values |= dict(zip(names, result.classes[0].tolist(), strict=True))
                values |= {
                    "class_name": self.predictor.info.classes[int(result.top[0])],
                    "probability": float(result.probability[0]),
                    "decision": result.decisions[0],
                }
            for name, column in columns.items():
                column.append(values.get(name))
        return columns


def _one(predictions: Predictions, index: int) -> Predictions:
    rows = slice(index, index + 1)
    return Predictions(
        predictions.classes[rows], predictions.probability[rows], predictions.top[rows], predictions.decisions[rows]
    )


def probe(shard_uri: str, ids: list[int], size: int, s3: S3Settings | None, limits: Limits) -> int:
    """Decode some images of a shard and forget them. The caller watches whether the process survives."""
    from pipeline.images import load_image

    with store_for(shard_uri, s3).open(shard_uri) as file:
        rows = [row for row in pq.ParquetFile(file).read().to_pylist() if row["image_id"] in set(ids)]
    for fetched in fetch_rows(rows, s3, limits):
        if fetched.data is not None:
            try:
                load_image(fetched.data, size, limits)
            except (ImageRejected, StoreError):
                continue
    return len(rows)
