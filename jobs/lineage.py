"""What a job reads and writes, told to a collector as OpenLineage events (https://openlineage.io/docs/spec).

A job names its data sets by `reads` and `writes`, which do nothing where nobody asked for it. A thread of its own tells
them: a collector that is slow, away or refuses costs a warning and a bounded time, never the job.
"""

import importlib.util
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from jobs.config import JobConfig, LineageConfig
from pipeline.base.errors import UsageError
from pipeline.base.lineage import Dataset, Step
from pipeline.base.log import tell
from pipeline.base.secrets import without_secrets
from pipeline.base.text import first_line

_LAST_S = 10.0  # for what is left to be told when the job is over
_HURRIED_S = 2.0  # the same, of a job that was told to end


class _Telling:
    """One run of a job, and the thread that tells of it. `place` None: as the library's own variables have it."""

    def __init__(self, job: str, description: str, place: str | None) -> None:
        self._job, self._description, self._place = job, description, place
        self._inputs, self._outputs = list[Dataset](), list[Dataset]()
        self._account: Mapping[str, object] = {}
        self._steps: queue.Queue[Step | None] = queue.Queue()
        self._trouble, self._is_begun = "", False
        self._thread = threading.Thread(target=self._work, name="lineage", daemon=True)
        self._thread.start()

    def reads(self, datasets: Sequence[Dataset]) -> None:
        """The last word on a data set counts."""
        self._inputs = _merged(self._inputs, datasets)
        self.begin()

    def writes(self, datasets: Sequence[Dataset], account: Mapping[str, object]) -> None:
        self._outputs, self._account = _merged(self._outputs, datasets), account

    def begin(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._put("START")

    def end(self, state: str, error: str, limit_s: float) -> None:
        """The last event, and for `limit_s` at most a wait for what is not told yet."""
        self.begin()
        self._put(state, error)
        self._steps.put(None)
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self.warn(f"no answer in {limit_s:g} s")
        elif self._trouble:
            self.warn(self._trouble)

    def warn(self, trouble: str) -> None:
        where = without_secrets(self._place or "OPENLINEAGE_*")
        said = f"warning: lineage ({where}): {without_secrets(trouble)}; the job is not affected"
        tell(sys.stderr, said, level="warning")

    def _put(self, state: str, error: str = "") -> None:
        when = datetime.now(UTC)
        self._steps.put(Step(state, when, tuple(self._inputs), tuple(self._outputs), error, self._account))

    def _work(self) -> None:
        """In order, each once. What was not taken goes before the next: a collector may be back when the job ends."""
        tell, waiting = None, list[Step]()
        while (step := self._steps.get()) is not None:
            waiting.append(step)
            try:
                tell = tell or self._connected()
                while waiting:
                    tell(waiting[0])
                    del waiting[0]
                self._trouble = ""
            except Exception as error:  # whatever a collector says, the job goes on; it is told in the end
                self._trouble = first_line(error)

    def _connected(self) -> Callable[[Step], None]:
        for name in ("openlineage", "urllib3.connectionpool"):  # their notes would break the lines of progress
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from jobs.lineage_events import teller

        return teller(self._job, self._description, self._place)


def _merged(known: Sequence[Dataset], told: Sequence[Dataset]) -> list[Dataset]:
    return list({one.uri: one for one in (*known, *told)}.values())


_telling: _Telling | None = None


def begin(job: str, config: JobConfig) -> None:
    """Tell of this run from now on, where its configuration or the environment names a collector.

    Raises UsageError where it was asked for and the extra is missing.
    """
    global _telling
    _telling = None
    if not isinstance(config, LineageConfig) or getattr(config, "dry_run", False):
        return
    if config.lineage is None and not _named_by_environment():
        return
    if importlib.util.find_spec("openlineage") is None:
        missing = "the client of OpenLineage is not installed; pip install 'leukoray[lineage]'"
        if config.lineage is not None:
            raise UsageError(f"--lineage {config.lineage}: {missing}, or leave it out")
        tell(sys.stderr, f"no lineage is told, as OPENLINEAGE_* asks for: {missing}", level="warning")
        return
    _telling = _Telling(job, (type(config).__doc__ or "").strip(), config.lineage)


def _named_by_environment() -> bool:
    """Whether the library's own variables name a collector: https://openlineage.io/docs/client/python/configuration."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    names = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
    return any(map(os.environ.get, names)) or any(name.startswith("OPENLINEAGE__TRANSPORT") for name in os.environ)


def reads(datasets: Callable[[], Sequence[Dataset]]) -> None:
    """What the job reads, as soon as it is known: the first call says that it has started."""
    _told(lambda telling: telling.reads(datasets()))


def writes(datasets: Callable[[], Sequence[Dataset]], account: Callable[[], Mapping[str, object]] = dict) -> None:
    """What the job has written whole, and its own counts."""
    _told(lambda telling: telling.writes(datasets(), account()))


def _told(tell: Callable[[_Telling], None]) -> None:
    telling = _telling
    if telling is None:
        return
    try:
        tell(telling)
    except Exception as error:  # a store that is out while its files are described; the job's own work is done
        telling.warn(first_line(error))


def end(state: Literal["COMPLETE", "FAIL", "ABORT"], error: str = "") -> None:
    """Tell how the job ended. Waits a little for a collector that is slow."""
    global _telling
    telling, _telling = _telling, None
    if telling is not None:
        telling.end(state, error, _HURRIED_S if state == "ABORT" else _LAST_S)
