"""One shard: fetch, decode, predict, write its part whole. Runs in Ray actors; needs no Ray itself.

Fetching runs ahead in threads; decoding and the model share one lock, so a worker keeps its cores busy however many
shards it has open, or with a GPU a lock each, so that it predicts while another shard is decoded. It opens several, so
that a slow object holds up its own shard only.
"""

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.base.errors import Code, ImageRejected, Stage
from pipeline.images.load import Header, LoadedImage
from pipeline.images.remarks import joined
from pipeline.model.bundle import Bundle, class_columns
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.model.sketch import read_sketch
from pipeline.scoring.plan.shards import read_shard
from pipeline.scoring.run_folder import RunFolder, chunk_file, part_file
from pipeline.scoring.schemas import ShardRow, part_schema
from pipeline.scoring.work.parts import ArchiveSummary
from pipeline.scoring.work.stream import ArchiveStream, ReadRules
from pipeline.sources.fetch import Fetched
from pipeline.sources.masks import MASKS_NAMED
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import Access
from pipeline.storage.parquet import to_parquet
from pipeline.storage.stores import Stores

_BATCH = 8  # images a forward pass: activations stay in cache on CPU
_CUDA_BATCH = 128
CHUNK_ROWS = 1024  # of an archive, in one piece of its part
# Columns of a part, by the record that has them as fields.
_AS_LISTED = ("image_id", "uri", "member", "subject_id", "meta")
_AS_FOUND = ("etag", "size_bytes", "attempts", "scored_at", "remark", "in_training")
_AS_DECODED = ("width", "height", "format")
_AS_PREDICTED = ("class_name", "probability", "decision", "ood_score", "is_ood")
_AS_REJECTED = ("stage", "code", "message")
_CRASHED = ImageRejected(
    Code.CRASHED_DECODER,
    "reading it alone ended the process: the file is dangerous, the decoder has a bug, or memory is too short for it",
    Stage.DECODE,
)


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
    weight: int = 0  # of the bytes in the plan, those that are done by it
    worker: str = ""


@dataclass(frozen=True)
class RowResult:
    """What became of one row; neither its bytes nor its pixels, so that a shard in work stays small."""

    etag: str
    size_bytes: int
    attempts: int
    header: Header | None
    result: Prediction | ImageRejected
    scored_at: datetime
    remark: str | None = None
    in_training: bool | None = None  # None: not known

    @classmethod
    def of(
        cls,
        fetched: Fetched[ShardRow],
        header: Header | None,
        result: Prediction | ImageRejected,
        at: datetime | None = None,
    ) -> "RowResult":
        size = len(fetched.data) if fetched.data is not None else fetched.row.size_bytes
        return cls(fetched.etag, size, fetched.attempts, header, result, at or datetime.now(UTC))


class ShardScorer:
    """Scores shards with one model. `score` may be called from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        stores: Stores,
        rules: ReadRules = ReadRules(),
        decode_threads: int = 1,
        chunk_rows: int = CHUNK_ROWS,
        *,
        on_gpu: bool = False,
    ) -> None:
        self.predictor = Predictor(bundle, engine="torch" if on_gpu else "onnx", threads=max(1, decode_threads))
        self._sketch = read_sketch(bundle)
        self._stores, self._rules, self._chunk_rows = stores, rules, chunk_rows
        self._finished: deque[Account] = deque()
        self._schema = part_schema(bundle.info.classes)
        self._on_cores = threading.Lock()
        self._on_gpu = threading.Lock() if on_gpu else None
        self._pool = ThreadPoolExecutor(decode_threads) if decode_threads > 1 else None
        self._batch = _CUDA_BATCH if on_gpu else _BATCH
        self._doing: dict[int, tuple[str, str, float]] = {}

    def doing(self) -> list[tuple[str, str, float]]:
        """(stage, uri, seconds in it) of each open shard: what to name when nothing moves."""
        now = time.monotonic()
        return [(stage, uri, now - since) for stage, uri, since in list(self._doing.values())]

    def score(self, number: int, folder: RunFolder, crashed: frozenset[int] = frozenset()) -> Account:
        """Write the part of one shard. `crashed`: ids known to end the process, not to be decoded again.

        Of an archive the account tells what `take_finished` has not told. Raises StoreError or PlatformError when the
        shard cannot be read, the part cannot be written, or the store is out altogether; the shard then stays undone.
        """
        rows = read_shard(folder, number)
        try:
            if rows[0].access is Access.ARCHIVE:
                return self._score_archive(number, rows[0], folder, crashed)
            account = Account(number, weight=sum(row.size_bytes for row in rows))
            fetched = fetch_while_up(rows, self._stores, self._rules.limits)
            outcomes = self._predict_all(fetched, crashed, account, rows[0].uri)
            self._write(folder, part_file(number), rows, outcomes, account)
            return account
        finally:
            self._doing.pop(threading.get_ident(), None)

    def take_finished(self) -> list[Account]:
        """Pieces of archives that were finished since this was last asked."""
        return [self._finished.popleft() for _ in range(len(self._finished))]

    def _score_archive(self, number: int, row: ShardRow, folder: RunFolder, crashed: frozenset[int]) -> Account:
        """Piece by piece, so that memory and the wait for news do not grow with the archive."""
        stream = ArchiveStream(row, self._rules, self._stores)
        fetched = iter(stream)
        for chunk in itertools.count():
            account, rows = Account(number), list[ShardRow]()
            before = stream.bytes_read
            piece = _noted(itertools.islice(fetched, self._chunk_rows), rows)
            outcomes = self._predict_all(piece, crashed, account, row.uri)
            if stream.has_ended:
                summary = ArchiveSummary(
                    row.uri, row.etag, row.size_bytes, chunk, stream.listed, stream.is_complete,
                    dict(stream.left_out), sorted(stream.meta_keys), list(stream.masks),
                    list(stream.masks.values())[:MASKS_NAMED],
                )  # fmt: skip
                account.weight = row.size_bytes - before
                self._write(folder, part_file(number), rows, outcomes, account, summary.metadata())
                return account
            account.weight = stream.bytes_read - before
            self._write(folder, chunk_file(number, chunk), rows, outcomes, account)
            self._finished.append(account)
        raise AssertionError("an archive ends")

    def _write(
        self,
        folder: RunFolder,
        name: str,
        rows: Sequence[ShardRow],
        outcomes: dict[int, RowResult],
        account: Account,
        metadata: dict[bytes, bytes] | None = None,
    ) -> None:
        begin = time.perf_counter()
        self._doing[threading.get_ident()] = ("write", folder.file(name), time.monotonic())
        columns = self._columns(rows, outcomes, account)
        table = pa.table(columns, schema=self._schema).replace_schema_metadata(metadata)
        folder.write(name, to_parquet(table))
        account.seconds["write"] += time.perf_counter() - begin
        account.rows = len(rows)
        account.bytes = sum(row.size_bytes for row in rows)

    def _predict_all(
        self, fetched: Iterable[Fetched[ShardRow]], crashed: frozenset[int], account: Account, where: str
    ) -> dict[int, RowResult]:
        """Outcome of every row, by image id. Batches are predicted as they fill, in the order of arrival."""
        results: dict[int, RowResult] = {}
        batch: list[Fetched[ShardRow]] = []
        thread = threading.get_ident()
        begin = time.perf_counter()
        self._doing[thread] = ("fetch", where, time.monotonic())
        for item in fetched:
            account.seconds["fetch"] += time.perf_counter() - begin
            account.attempts += item.attempts
            if item.rejected is not None:
                results[item.row.image_id] = RowResult.of(item, None, item.rejected)
            elif item.row.image_id in crashed:
                results[item.row.image_id] = RowResult.of(item, None, _CRASHED)
            else:
                batch.append(item)
            if len(batch) >= self._batch:
                self._flush(batch, results, account, thread)
                batch = []
            self._doing[thread] = ("fetch", item.row.uri, time.monotonic())
            begin = time.perf_counter()
        self._flush(batch, results, account, thread)
        return results

    def _flush(
        self, batch: list[Fetched[ShardRow]], results: dict[int, RowResult], account: Account, thread: int
    ) -> None:
        if not batch:
            return
        with self._on_cores:
            images = self._decoded(batch, results, account, thread)
            if self._on_gpu is None:
                self._predicted(images, results, account, thread)
        if self._on_gpu is not None:
            self._doing[thread] = ("wait for the GPU", batch[0].row.uri, time.monotonic())
            with self._on_gpu:
                self._predicted(images, results, account, thread)

    def _decoded(
        self, batch: list[Fetched[ShardRow]], results: dict[int, RowResult], account: Account, thread: int
    ) -> list[tuple[Fetched[ShardRow], LoadedImage]]:
        """Those that can be; what became of the others is in `results`."""
        begin = time.perf_counter()
        self._doing[thread] = ("decode", batch[0].row.uri, time.monotonic())
        images = []
        for item, image in zip(batch, self._map(self._decode, batch), strict=True):
            if isinstance(image, ImageRejected):
                results[item.row.image_id] = RowResult.of(item, None, image)
            else:
                images.append((item, image))
        account.seconds["decode"] += time.perf_counter() - begin
        return images

    def _predicted(
        self,
        images: list[tuple[Fetched[ShardRow], LoadedImage]],
        results: dict[int, RowResult],
        account: Account,
        thread: int,
    ) -> None:
        if not images:
            return
        begin = time.perf_counter()
        self._doing[thread] = ("predict", images[0][0].row.uri, time.monotonic())
        said = self.predictor.predict_each([image.pixels for _, image in images])
        now = datetime.now(UTC)
        for (item, image), result in zip(images, said, strict=True):
            found = RowResult.of(item, image.header, result, now)
            remark = joined(image.remarks) if image.remarks else None
            results[item.row.image_id] = replace(found, remark=remark, in_training=self._is_in_training(item))
        account.seconds["predict"] += time.perf_counter() - begin

    def _is_in_training(self, item: Fetched[ShardRow]) -> bool | None:
        """By bytes alone: by looks it would take too much of the time."""
        if self._sketch is None or item.data is None:
            return None
        return self._sketch.by_bytes(item.data) is not None

    def _map(self, function: Callable[[Fetched[ShardRow]], Any], items: list[Fetched[ShardRow]]) -> Iterable[Any]:
        return self._pool.map(function, items) if self._pool is not None else map(function, items)

    def _decode(self, fetched: Fetched) -> LoadedImage | ImageRejected:
        assert fetched.data is not None
        try:
            return self.predictor.load(fetched.data, self._rules.limits)
        except ImageRejected as error:
            return error

    def _columns(
        self, rows: Sequence[ShardRow], results: dict[int, RowResult], account: Account
    ) -> dict[str, list[Any]]:
        """The part's columns, in the shard's order of rows."""
        found = [results[row.image_id] for row in rows]
        headers = [item.header for item in found]
        said = [item.result if isinstance(item.result, Prediction) else None for item in found]
        rejected = [item.result if isinstance(item.result, ImageRejected) else None for item in found]
        account.codes = dict(Counter(item.code.value for item in rejected if item is not None))
        account.scored = len(rows) - sum(account.codes.values())
        columns: dict[str, list[Any]] = {}
        for items, names in ((rows, _AS_LISTED), (found, _AS_FOUND), (headers, _AS_DECODED), (said, _AS_PREDICTED),
                             (rejected, _AS_REJECTED)):  # fmt: skip
            columns |= {name: [None if item is None else getattr(item, name) for item in items] for name in names}
        for index, name in enumerate(class_columns(self.predictor.info.classes)):
            columns[name] = [None if item is None else item.classes[index] for item in said]
        return columns


def _noted(fetched: Iterable[Fetched[ShardRow]], rows: list[ShardRow]) -> Iterator[Fetched[ShardRow]]:
    """The same, with the rows noted as they come."""
    for item in fetched:
        rows.append(item.row)
        yield item
