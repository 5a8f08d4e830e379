"""Tells a store that is out from an object that cannot be had: the first stops the run, the second costs one row."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.base.errors import OUTAGE_CODES
from pipeline.images.load import Limits
from pipeline.sources.fetch import Fetched, fetch_rows
from pipeline.sources.rows import Row
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError

_OUTAGE_ROWS = 24  # after so many failures in a row it is time to ask whether the store answers at all


def fetch_while_up(rows: Sequence[Row], stores: Stores, limits: Limits) -> Iterator[Fetched[Row]]:
    """As `fetch_rows`, but rows that the store failed to give are asked for again at the end.

    An outage that begins with the last rows, or that is over before 24 rows have failed, would otherwise blame the
    images. Raises PlatformError when the store is out.
    """
    doubtful: dict[int, Fetched[Row]] = {}
    barren = 0
    for fetched in fetch_rows(rows, stores, limits):
        if fetched.data is not None:
            barren = 0
        if not _is_transient(fetched):
            yield fetched
            continue
        doubtful[fetched.row.image_id] = fetched
        barren += 1
        if barren >= _OUTAGE_ROWS:
            assert_up(fetched.row.uri, stores)
            barren = 0
    if doubtful:
        yield from _ask_again(doubtful, stores, limits)


def _ask_again(doubtful: dict[int, Fetched[Row]], stores: Stores, limits: Limits) -> Iterator[Fetched[Row]]:
    """Ask while the store is known to be up, before and after: what then fails is the object's own fault."""
    first = next(iter(doubtful.values()))
    assert_up(first.row.uri, stores)
    failed: list[Fetched[Row]] = []
    for again in fetch_rows([fetched.row for fetched in doubtful.values()], stores, limits):
        again = replace(again, attempts=again.attempts + doubtful[again.row.image_id].attempts)
        if _is_transient(again):
            failed.append(again)
        else:
            yield again
    if failed:
        assert_up(failed[-1].row.uri, stores)
    yield from failed


def assert_up(uri: str, stores: Stores) -> None:
    """A listing of the folder that holds `uri`, on disk too; a refusal is an answer as well. Raises PlatformError."""
    try:
        stores.of(uri).is_folder(uri.rpartition("/")[0])
    except StoreError as error:
        if error.code in OUTAGE_CODES:
            raise error.refusal() from error


def _is_transient(fetched: Fetched[Row]) -> bool:
    return fetched.rejected is not None and fetched.rejected.code in OUTAGE_CODES
