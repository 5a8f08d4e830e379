"""run.json beside what a job has written; scoring writes its own, with more in it."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from jobs.common import exit_code_of
from jobs.config import JobConfig, effective
from jobs.ending import hear_no_more
from pipeline.base.errors import LeukorayError
from pipeline.base.log import redacted, tell, under_run
from pipeline.base.record import RECORD, Record, now, status_of, surroundings, tells_of_files
from pipeline.base.text import first_line
from pipeline.sources.pseudonyms import names_of
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import join


class Account:
    """Filled in by a job when it knows where its output goes, and when it writes that."""

    def __init__(self) -> None:
        self.begun: str | None = None
        self.out: str | None = None
        self.counts: Mapping[str, int] = {}
        self.digests: Mapping[str, str] = {}

    def begin(self, out: str, **digests: str) -> None:
        """From here on an end without output is told in the folder `out` too, unless output of an earlier run is there.

        Said when what was asked for is known to be possible: a mistyped command leaves nothing behind.
        """
        self.begun, self.digests = out, _known(digests)

    def keep(self, out: str, counts: Mapping[str, int], **digests: str) -> None:
        """`out`: the folder of the record, whose files are now this run's. `digests`: of `manifest` and `model`."""
        self.out, self.counts, self.digests = out, counts, _known(digests)


def _known(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if digest}


@contextlib.contextmanager
def recorded(job: str, config: JobConfig, stores: Stores) -> Iterator[Account]:
    """The record is written where the block ends, however it does; none where nothing was begun."""
    account, began = Account(), now()
    run_id = f"{job}-" + datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
    under_run(run_id)

    def write(exit_code: int) -> None:
        record = Record(
            run_id=run_id, job=job, status=status_of(exit_code), exit_code=exit_code, started_at=began,
            has_output=account.out is not None, finished_at=now(), digests=account.digests, counts=account.counts,
            configuration=effective(config, names_of(stores)), **surroundings(),
        )  # fmt: skip
        data = record.model_dump_json(indent=2).encode()
        for folder in dict.fromkeys(filter(None, (account.begun, account.out))):
            place, store = join(folder, RECORD), stores.of(folder)
            if account.out is None and tells_of_files(stores.read_if_there(place) or b""):
                continue  # of the run whose files are there still
            store.write(place, data)

    try:
        yield account
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            hear_no_more()  # an impatient hand must not break into the record
        try:
            write(exit_code_of(error))
        except (LeukorayError, StoreError, OSError) as lost:  # what ended the job is what it has to tell
            tell(sys.stderr, redacted(f"warning: {RECORD} was not written: {first_line(lost)}"), level="warning")
        raise
    write(0)
