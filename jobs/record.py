"""run.json beside what a job has written; scoring writes its own, with more in it."""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from jobs.config import JobConfig, effective
from pipeline.base.errors import LeukorayError
from pipeline.base.log import under_run
from pipeline.base.record import RECORD, Record, now, status_of, surroundings
from pipeline.sources.pseudonyms import names_of
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join


class Account:
    """Filled in by a job when its output is written."""

    def __init__(self) -> None:
        self.out: str | None = None
        self.counts: Mapping[str, int] = {}
        self.digests: Mapping[str, str] = {}

    def keep(self, out: str, counts: Mapping[str, int], **digests: str) -> None:
        """`out`: the folder of the record. `digests`: of the `manifest` and the `model`."""
        self.out, self.counts = out, counts
        self.digests = {name: digest for name, digest in digests.items() if digest}


@contextlib.contextmanager
def recorded(job: str, config: JobConfig, stores: Stores) -> Iterator[Account]:
    """The record is written where the block ends, also with an error of ours; none where nothing was kept."""
    account, began = Account(), now()
    run_id = f"{job}-" + datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
    under_run(run_id)

    def write(exit_code: int) -> None:
        if account.out is None:
            return
        record = Record(
            run_id=run_id, job=job, status=status_of(exit_code), exit_code=exit_code, started_at=began,
            finished_at=now(), configuration=effective(config, names_of(stores)), digests=account.digests,
            counts=account.counts, **surroundings(),
        )  # fmt: skip
        stores.of(account.out).write(join(account.out, RECORD), record.model_dump_json(indent=2).encode())

    try:
        yield account
    except LeukorayError as error:
        write(error.exit_code)
        raise
    write(0)
