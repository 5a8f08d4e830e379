"""The search for the image that ends the decoder's process, in a shard that has cost two workers: halves of halves.

Each try decodes some images in a process of its own, and looks whether that survives.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.base.cluster import own_errors
from pipeline.base.errors import ImageRejected, PlatformError
from pipeline.base.text import first_line
from pipeline.images.load import load_image
from pipeline.scoring.plan.shards import read_shard
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.schemas import ShardRow
from pipeline.scoring.task import ScoringTask
from pipeline.scoring.work.stream import ArchiveStream, ReadRules
from pipeline.sources.fetch import Fetched, fetch_rows
from pipeline.sources.rows import Access
from pipeline.storage.stores import Stores

_DEATHS_BEFORE_SEARCH = 2
_MAX_DEATHS_WITHOUT_PROGRESS = 12


@dataclass(frozen=True)
class Suspects:
    """The images of a run's shards once more, decoded and forgotten. Its methods run in processes that may end."""

    folder: RunFolder
    stores: Stores
    rules: ReadRules
    size: int  # the model's input, pixels
    bit_depth: int | None = None

    def ids(self, number: int) -> list[int]:
        """Ids of all images of a shard, in its order. An archive is read for them."""
        return [item.row.image_id for item in self._images(number, None)]

    def decode(self, number: int, ids: frozenset[int]) -> int:
        """Decode some images of a shard; how many there were."""
        left = set(ids)
        for fetched in self._images(number, ids) if ids else ():
            if fetched.row.image_id not in left:
                continue
            if fetched.data is not None:
                with contextlib.suppress(ImageRejected):
                    load_image(fetched.data, self.size, self.rules.limits, self.bit_depth)
            left.remove(fetched.row.image_id)
            if not left:
                break
        return len(ids) - len(left)

    def _images(self, number: int, wanted: frozenset[int] | None) -> Iterator[Fetched[ShardRow]]:
        """Of plain shards only the wanted are read, of an archive all."""
        rows = read_shard(self.folder, number)
        if rows[0].access is Access.ARCHIVE:
            yield from ArchiveStream(rows[0], self.rules, self.stores)
        elif wanted is None:
            yield from (Fetched(row, None, None, row.etag, 0) for row in rows)
        else:
            yield from fetch_rows([row for row in rows if row.image_id in wanted], self.stores, self.rules.limits)


class Crashes:
    """Counts the deaths of workers, and knows which images are not to be decoded again."""

    def __init__(self, ray: Any, task: ScoringTask) -> None:
        self._ray = ray
        info = task.bundle.info
        rules = ReadRules.of(task.request, task.stores)
        self._suspects = Suspects(task.folder, task.stores, rules, info.input_size, info.bit_depth)
        self._deaths: Counter[int] = Counter()  # of workers, by the shards that they had open
        self._in_a_row = 0
        self._found: dict[int, frozenset[int]] = {}

    def images_of(self, number: int) -> frozenset[int]:
        """Ids of a shard that are known to end a process."""
        return self._found.get(number, frozenset())

    def note_progress(self) -> None:
        """A shard was finished."""
        self._in_a_row = 0

    def note_death(self, shards: list[int], error: Exception) -> None:
        """A worker died with these open. Raises PlatformError when that is all that ever happens."""
        self._in_a_row += 1
        if self._in_a_row > _MAX_DEATHS_WITHOUT_PROGRESS:
            raise PlatformError(
                f"scoring workers died {self._in_a_row} times without finishing a shard ({first_line(error)}); "
                "check memory (leukoray doctor), then run the same command again"
            ) from error
        print(f"score  a worker died ({first_line(error)}); shards {shards} go to another", flush=True)
        self._deaths.update(shards)

    def search(self, number: int) -> None:
        """Look for the culprit in a shard that has cost several workers."""
        if self._deaths[number] < _DEATHS_BEFORE_SEARCH or number in self._found:
            return
        print(f"score  shard {number} lost several workers; looking for the image that does it", flush=True)
        with own_errors(self._ray):
            ids: list[int] = self._ray.get(self._apart(Suspects.ids, number, retries=3))
        self._found[number] = frozenset(find_culprits(ids, lambda some: self._survives(number, some)))
        print(f"score  shard {number}: {len(self._found[number])} images end the decoder's process", flush=True)

    def _survives(self, number: int, ids: list[int]) -> bool:
        try:
            with own_errors(self._ray):
                self._ray.get(self._apart(Suspects.decode, number, frozenset(ids)))
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError):
            return False
        return True

    def _apart(self, method: Callable[..., Any], *arguments: Any, retries: int = 0) -> Any:
        """Begin it in a process that does nothing else; `retries` where only a lost node can end it."""
        return self._ray.remote(num_cpus=0, max_retries=retries)(method).remote(self._suspects, *arguments)


def find_culprits(ids: list[int], survives: Callable[[list[int]], bool]) -> list[int]:
    """Those of `ids` that alone do not survive, each seen to fail twice. Halves until one is left."""
    found: list[int] = []
    groups = [ids]
    while groups:
        group = groups.pop()
        if survives(group):
            continue
        if len(group) > 1:
            middle = len(group) // 2
            groups += [group[middle:], group[:middle]]
        elif not survives(group):
            found += group
    return found
