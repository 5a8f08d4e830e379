"""From rows to decoded images, a batch at a time: the one loop of all that shows images to a model in Ray's workers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline.base.errors import ImageRejected
from pipeline.images.load import Limits, LoadedImage
from pipeline.model.predictor import Predictor
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import Row
from pipeline.storage.stores import Stores

BATCH = 32
Note = TypeVar("Note")
Said = TypeVar("Said")


@dataclass(frozen=True)
class Seen(Generic[Row, Note]):
    """An image that could be read; `note` is what was wanted of its bytes, which are not kept."""

    row: Row
    image: LoadedImage
    note: Note


def no_note(data: bytes, image: LoadedImage) -> None:
    """Where nothing is wanted of the bytes."""


def in_batches(
    predictor: Predictor,
    rows: Sequence[Row],
    answered: Callable[[Sequence[Seen[Row, Any]]], Iterable[Said]],
    rejected: Callable[[Row, ImageRejected], Said],
    *,
    note: Callable[[bytes, LoadedImage], Any] = no_note,
    stores: Stores = Stores(),
    limits: Limits = Limits(),
    size: int = BATCH,
) -> list[Said]:
    """Fetch and decode for `predictor`: what `answered` says of up to `size` images at a time, one each in their order,
    and `rejected` of each row that could not be read. Exactly one a row, in the order in which they come.

    Raises PlatformError when the store is out.
    """
    found: list[Said] = []
    waiting: list[Seen[Row, Any]] = []
    for fetched in fetch_while_up(rows, stores, limits):
        try:
            data = fetched.bytes_or_raise()
            image = predictor.load(data, limits)
        except ImageRejected as error:
            found.append(rejected(fetched.row, error))
            continue
        waiting.append(Seen(fetched.row, image, note(data, image)))
        if len(waiting) == size:
            found += answered(waiting)
            waiting = []
    return [*found, *answered(waiting)] if waiting else found
