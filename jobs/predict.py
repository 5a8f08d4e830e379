"""`leukoray predict`: files of this machine to a running service, one row each, without a model or Ray."""

import contextlib
import os
import queue
import re
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from jobs.common import Clock, job, job_stores, refuse_unwritable, start
from jobs.config import JobConfig, positional
from jobs.predict_client import NoAnswer, Service, Unusable
from jobs.predict_files import FileList, Named, left_out_words, list_files, read_file
from jobs.predict_rows import ENDINGS, Row, answered, json_line, table_head, table_line, written
from pipeline.base.errors import ImageRejected, IncompleteError, InputError, PlatformError, UsageError
from pipeline.storage.local import LocalStore
from pipeline.storage.uris import absolute, is_s3

EXAMPLES = """examples:
  leukoray predict cell.jpg slides/ --url http://127.0.0.1:8000
  leukoray predict slides/ --out results.csv                       .json, .jsonl and .parquet as well
  find /data -name '*.png' -print0 | leukoray predict - > rows.jsonl
  LEUKORAY_API_KEY=... LEUKORAY_URL=https://lab.example/leukoray leukoray predict slides/ --explain maps

Each file gets one row, in the order given. Without --out a terminal gets a table, anything else JSON lines.
Exit codes: 0 each file has an answer, 4 some have an error instead (see their rows), 5 the service cannot be used.
Research software, not a medical device."""
KEY_VARIABLE = "LEUKORAY_API_KEY"
_NOTICE = "Research software, not a medical device."
_NOT_SENT = "not_sent"
_LOOK_S = 0.5  # between two looks at the clock while nothing comes


class PredictConfig(JobConfig):
    """Send images to a running service (leukoray serve) and write what it says of each. A key: $LEUKORAY_API_KEY."""

    has_results = True
    files: list[str] = positional([], description="images, folders, or - for paths on stdin, one a line or by -print0")
    url: str = Field("http://127.0.0.1:8000", description="the service")
    out: str | None = Field(
        None, description="file for the rows, by its ending .csv, .json, .jsonl or .parquet (default: stdout)"
    )
    explain: str | None = Field(None, description="empty or new folder for pictures of where each image speaks")
    concurrency: int = Field(4, ge=1, le=256, description="requests at once; more help where the service has replicas")
    timeout_s: float = Field(40.0, gt=0, le=86_400, description="of one attempt; longer than the service's own 30 s")
    patience_s: float = Field(120.0, gt=0, description="for all attempts of a file, while the service is busy or gone")

    @field_validator("out")
    @classmethod
    def _known_ending(cls, value: str | None) -> str | None:
        if value is not None and os.path.splitext(value)[1].lower() not in ENDINGS:
            raise ValueError(f"expected a file that ends with {', '.join(ENDINGS)}")
        return value


def main(config: PredictConfig) -> None:
    if not config.files:
        raise UsageError("FILES is missing: name images, folders, or - for paths on stdin")
    clock = Clock()
    service = Service(config.url, os.environ.get(KEY_VARIABLE) or None, config.timeout_s, config.patience_s)
    _refuse_outputs(config)
    state = service.ready(is_start=True)
    if state.get("needs_api_key") and KEY_VARIABLE not in os.environ:
        raise Unusable(f"{config.url} asks for a key: set ${KEY_VARIABLE}")
    if service.shows_key:
        _say("note: the key goes over the network as it is; use https://")
    found = list_files(config.files)
    run = _Run(config, service, state, found)
    try:
        run.ask()
    finally:
        run.write()
    _account(run, clock)


def _refuse_outputs(config: PredictConfig) -> None:
    """Raises InputError before the first request where the last step could not write."""
    if config.out is not None and not is_s3(config.out):
        if os.path.isdir(config.out):
            raise InputError(f"--out {config.out}: is a folder; name a file")
        refuse_unwritable(os.path.dirname(absolute(config.out)))
    if config.explain is not None:
        if is_s3(config.explain):
            raise UsageError("--explain: pictures go into a folder of this machine")
        refuse_unwritable(absolute(config.explain))
        if os.listdir(absolute(config.explain)):
            raise InputError(f"--explain {config.explain}: holds files already; name an empty or new folder")


class _Run:
    """All files of one command on their way: rows in the order of the files, as far as they are there."""

    def __init__(self, config: PredictConfig, service: Service, state: dict[str, Any], found: FileList) -> None:
        self.config, self.service, self.found = config, service, found
        self.model: dict[str, Any] = state["model"]
        self.rows: list[Row | None] = [None] * len(found.files)
        self.no_overlay: Counter[str] = Counter()  # by why
        self._max_bytes: int = state["max_bytes"]
        self._printer = None if config.out else _Printer(self.model)
        has_table = self._printer is not None and self._printer.is_table
        self._progress = _Progress(len(found.files), has_table=has_table)

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row is not None]

    def ask(self) -> None:
        """Fill the rows. What a worker raises beside what makes a row is a bug, and ends the command."""
        done: queue.SimpleQueue[tuple[int, Row | BaseException]] = queue.SimpleQueue()

        def work(number: int) -> None:
            try:
                done.put((number, self._row(number)))
            except BaseException as error:
                done.put((number, error))

        pool = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="predict")
        try:
            for number in range(len(self.rows)):
                pool.submit(work, number)
            missing = len(self.rows)
            while missing:
                with contextlib.suppress(queue.Empty):
                    number, row = done.get(timeout=_LOOK_S)
                    if isinstance(row, BaseException):
                        raise row
                    self.rows[number] = row
                    missing -= 1
                    self._progress.count(row)
                    if self._printer is not None:
                        self._printer.show(self.rows)
                self._progress.show()
        finally:
            self.service.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            self._progress.clear()

    def write(self) -> None:
        """What is there; nothing where the service never answered. Also after Ctrl-C: rows so far, a whole file."""
        rows, out = self.finished, self.config.out
        if self.service.unusable is not None and not any(row.error_code is None for row in rows):
            return
        if self._printer is not None:
            self._printer.show(self.rows, is_end=True)
        elif out is not None:
            ending, place = os.path.splitext(out)[1].lower(), absolute(out)
            job_stores(self.config).of(place).write(place, written(rows, ending))
            if len(rows) < len(self.rows):
                _say(f"{len(rows):,} of {len(self.rows):,} rows are in {out}")

    def _row(self, number: int) -> Row:
        named = self.found.files[number]
        if self.service.is_stopped:
            return Row(named.shown, error_code=_NOT_SENT, error_message="the command had stopped before")
        try:
            return self._sent(number, named, read_file(named, self._max_bytes))
        except ImageRejected as error:
            return Row(named.shown, error_code=error.code.value, error_message=error.message)
        except NoAnswer as error:
            return Row(
                named.shown, request_id=error.request_id, attempts=error.attempts, error_code=error.code,
                error_message=error.message,
            )  # fmt: skip
        except Unusable as error:
            self.service.stop(error)
            return Row(named.shown, error_code=_NOT_SENT, error_message=str(error))

    def _sent(self, number: int, named: Named, data: bytes) -> Row:
        reply = self.service.post("/predict", data, "application/json")
        row = answered(named.shown, reply.json(), reply.request_id, reply.attempts)
        if row is None:
            message = f"{reply.headers.get_content_type()} that is no prediction; is there a proxy in between?"
            raise NoAnswer("bad_answer", message, reply.request_id, reply.attempts)
        if self.config.explain is None:
            return row
        try:
            picture = self.service.post("/explain", data, "image/png", reply.request_id).data
        except (NoAnswer, Unusable) as error:
            if isinstance(error, Unusable):
                self.service.stop(error)
            self.no_overlay[error.code if isinstance(error, NoAnswer) else "service_unusable"] += 1
            return row
        if not picture.startswith(b"\x89PNG") or (row.model_sha256 or "").encode() not in picture:
            self.no_overlay["of another model, which came in between, or no picture"] += 1
            return row
        place = os.path.join(self.config.explain, f"{number + 1:06d}_{_plain_stem(named.path)}.png")
        LocalStore().write(absolute(place), picture)
        return Row(**{**vars(row), "overlay": place})


def _plain_stem(path: str) -> str:
    return re.sub(r"[^\w.-]", "_", Path(path).stem, flags=re.ASCII)[:80]


class _Printer:
    """Rows to stdout in their order, as soon as all before one are there."""

    def __init__(self, model: dict[str, Any]) -> None:
        self.is_table = sys.stdout.isatty()
        self._width = max(5, *(len(str(name)) for name in model.get("classes") or [""]))
        self._at = 0
        if self.is_table:
            print(table_head(self._width), flush=True)

    def show(self, rows: Sequence[Row | None], *, is_end: bool = False) -> None:
        """Print what has become known; at the end also what stands behind a row that never came."""
        while self._at < len(rows) and (is_end or rows[self._at] is not None):
            if (row := rows[self._at]) is not None:
                print(table_line(row, self._width) if self.is_table else json_line(row, is_ascii=True))
            self._at += 1
        sys.stdout.flush()


class _Progress:
    """One line on a terminal's stderr, where no table grows there."""

    def __init__(self, total: int, *, has_table: bool) -> None:
        self._total, self._done, self._failed, self._clock = total, 0, 0, Clock()
        self._is_shown = sys.stderr.isatty() and not has_table
        self._shown_s = 0.0

    def count(self, row: Row) -> None:
        self._done += 1
        self._failed += row.error_code is not None

    def show(self) -> None:
        seconds = self._clock.seconds
        if self._is_shown and seconds - self._shown_s >= _LOOK_S:
            self._shown_s = seconds
            line = f"{self._done:,} of {self._total:,}  {self._done / seconds:.1f} files/s  {self._failed:,} failed"
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._is_shown and self._shown_s:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _account(run: _Run, clock: Clock) -> None:
    """What came of it, on stderr. Raises IncompleteError where a file has no answer, or lacks its picture."""
    rows, service = run.finished, run.service
    failed = Counter(row.error_code for row in rows if row.error_code is not None)
    said = Counter(row.decision or row.class_name for row in rows if row.error_code is None)
    models = Counter((row.model_name, row.model_version, row.model_sha256) for row in rows if row.error_code is None)
    if service.unusable is not None:
        tail = f"; {said.total():,} of {len(rows):,} files have an answer" if said else ""
        raise PlatformError(f"{service.unusable}{tail}")
    words = [f"{count:,} {name}" for name, count in sorted(said.items(), key=str)]
    if any(row.is_ood is not None for row in rows):
        words.append(f"{sum(row.is_ood is True for row in rows):,} unlike the training images")
    if failed:
        words.append("failed " + ", ".join(f"{count:,} {code}" for code, count in failed.most_common()))
    _say(f"{said.total():,} of {len(rows):,} files answered in {clock.seconds:.1f} s: {', '.join(words)}")
    for (name, version, sha256), count in models.most_common():
        _say(f"model {name} {version} ({str(sha256)[:12]})" + (f": {count:,} files" if len(models) > 1 else ""))
    _notes(run, len(models))
    why = []
    if failed:
        why.append(f"{failed.total():,} of {len(rows):,} files have no answer ({', '.join(map(str, failed))})")
    if run.no_overlay:
        words = [f"{count:,} {code}" for code, count in run.no_overlay.most_common()]
        why.append(f"{run.no_overlay.total():,} answered files have no picture ({', '.join(words)})")
    if why:
        raise IncompleteError("; ".join(why) + "; the rows tell of each")


def _notes(run: _Run, models: int) -> None:
    if models > 1:
        _say(
            "note: the service's model changed in between, or one is on trial; compare answers of one model_sha256 only"
        )
    if run.model.get("synthetic"):
        _say("note: the model was trained on synthetic images: its answers say nothing about real blood")
    if run.model.get("better_than_chance") is False:
        _say("note: nothing shows that this model does more than guess")
    if run.found.left_out:
        _say(f"left out: {left_out_words(run.found.left_out)}")
    if run.found.doubled:
        _say(f"{run.found.doubled:,} files were named again and have one row each")
    _say(_NOTICE)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


command = job("predict", PredictConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
