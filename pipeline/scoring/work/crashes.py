"""The search for the image that ends a worker's process, in a shard that has cost several: halves of halves.

Each try decodes some images in a process of its own, and looks whether that survives; where all do, it asks the model
as well, which takes more memory.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import ImageRejected, PlatformError
from pipeline.base.text import first_line
from pipeline.images.load import load_image
from pipeline.model.bundle import Bundle
from pipeline.model.predictor import Predictor
from pipeline.scoring.plan.shards import read_shard
from pipeline.scoring.run_folder import RunFolder, shard_file
from pipeline.scoring.schemas import ShardRow
from pipeline.scoring.task import ScoringTask
from pipeline.scoring.work.stream import ArchiveStream, ReadRules
from pipeline.scoring.work.tasks import lost_errors, results
from pipeline.sources.fetch import Fetched, fetch_rows
from pipeline.sources.rows import Access, places_of
from pipeline.storage.stores import Stores

_MAX_DEATHS_OF_A_SHARD = 8
_MAX_DEATHS_WITHOUT_PROGRESS = 12
_TRIES = 4
_NAMED = 3  # images of a shard, in an error


@dataclass(frozen=True)
class Suspects:
    """The images of a run's shards once more, used and forgotten. Its methods run in processes that may end."""

    folder: RunFolder
    stores: Stores
    rules: ReadRules
    bundle: Bundle

    def ids(self, number: int) -> list[int]:
        """Ids of all images of a shard, in its order. An archive is read for them."""
        return [item.row.image_id for item in self._images(number, None)]

    def decode(self, number: int, ids: frozenset[int]) -> int:
        """Decode some images of a shard; how many there were."""
        info = self.bundle.info
        return self._each(
            number, ids, lambda data: load_image(data, info.input_size, self.rules.limits, info.bit_depth)
        )

    def predict(self, number: int, ids: frozenset[int]) -> int:
        """The same, and the model's answer for each: what a worker does, but alone and one by one."""
        predictor = Predictor(self.bundle)
        return self._each(
            number, ids, lambda data: predictor.predict_each([predictor.load(data, self.rules.limits).pixels])
        )

    def _each(self, number: int, ids: frozenset[int], use: Callable[[bytes], object]) -> int:
        left = set(ids)
        for fetched in self._images(number, ids) if ids else ():
            if fetched.row.image_id not in left:
                continue
            if fetched.data is not None:
                with contextlib.suppress(ImageRejected):
                    use(fetched.data)
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


_SEARCHES = ((2, Suspects.decode, "decode"), (4, Suspects.predict, "predict"))  # after so many deaths of a shard


class Crashes:
    """Counts the deaths of workers, and knows which images are not to be decoded again."""

    def __init__(self, ray: Any, task: ScoringTask, check_lock: Callable[[], None]) -> None:
        self._ray, self._check_lock = ray, check_lock
        self._suspects = Suspects(task.folder, task.stores, ReadRules.of(task.request, task.stores), task.bundle)
        self._deaths: Counter[int] = Counter()  # of workers, by the shards that they had open
        self._searches: Counter[int] = Counter()  # that were made, by shard
        self._in_a_row = 0
        self._last: Exception | None = None
        self._found: dict[int, frozenset[int]] = {}

    def images_of(self, number: int) -> frozenset[int]:
        """Ids of a shard that are known to end a process."""
        return self._found.get(number, frozenset())

    def note_progress(self) -> None:
        """A shard was finished."""
        self._in_a_row = 0

    def note_death(self, shards: list[int], error: Exception) -> None:
        """A worker died with these open. Raises PlatformError when that is all that ever happens."""
        self._in_a_row, self._last = self._in_a_row + 1, error
        if self._in_a_row > _MAX_DEATHS_WITHOUT_PROGRESS:
            raise PlatformError(
                f"scoring workers died {self._in_a_row} times without finishing a shard ({first_line(error)}), at last "
                f"at {self._images_in(shards)}; check memory (leukoray doctor), then run the same command again"
            ) from error
        print(f"score  a worker died ({first_line(error)}); shards {shards} go to another", flush=True)
        self._deaths.update(shards)

    def search(self, number: int) -> None:
        """Look for the culprit in a shard that has cost several workers: first who ends the decoder, then the model.

        Raises PlatformError naming its first images where a shard ends worker after worker, but no image does.
        """
        if self._deaths[number] >= _MAX_DEATHS_OF_A_SHARD:
            raise self._no_culprit(number, f"ended {self._deaths[number]} workers")
        made = self._searches[number]
        if made == len(_SEARCHES) or self._deaths[number] < _SEARCHES[made][0]:
            return
        _, method, what = _SEARCHES[made]
        self._searches[number] += 1
        print(f"score  shard {number} lost several workers; looking for the image that does it ({what})", flush=True)
        try:
            ids: list[int] = self._apart(Suspects.ids, number, tries=_TRIES)
        except lost_errors(self._ray) as error:
            raise self._no_culprit(number, "cannot even be listed") from error
        ids = [image for image in ids if image not in self.images_of(number)]
        memory: list[Exception] = []
        culprits = find_culprits(ids, lambda some: self._survives(method, number, some, memory))
        if memory and len(culprits) == len(ids) > 1:  # whoever is tried: the machine has none left
            raise self._no_culprit(number, "ended each process that tried one of its images")
        self._found[number] = self.images_of(number) | frozenset(culprits)
        print(f"score  shard {number}: {len(culprits)} images end the process ({what})", flush=True)

    def _survives(self, method: Callable[..., Any], number: int, ids: list[int], memory: list[Exception]) -> bool:
        """`memory` takes deaths for lack of it, which may have come from elsewhere."""
        try:
            self._apart(method, number, frozenset(ids))
        except lost_errors(self._ray) as error:
            if isinstance(error, self._ray.exceptions.OutOfMemoryError):
                memory.append(error)
            return False
        return True

    def _apart(self, method: Callable[..., Any], *arguments: Any, tries: int = 1) -> Any:
        """Do it in a process that does nothing else; `tries` where only a lost node or lack of memory can end it."""
        remote = self._ray.remote(num_cpus=0, max_retries=0)(method)
        [found] = results(self._ray, [lambda: remote.remote(self._suspects, *arguments)], self._check_lock, tries)
        return found

    def _no_culprit(self, number: int, what: str) -> PlatformError:
        said = f" ({first_line(self._last)})" if self._last is not None else ""
        return PlatformError(
            f"shard {number}, of {self._images_in([number])}, {what}{said}, and no image of it is known to do that "
            "alone; check memory (leukoray doctor, fewer --workers), then run the same command again, or leave these "
            "out with --exclude"
        )

    def _images_in(self, shards: list[int]) -> str:
        """The first images of some shards, for a person."""
        folder = self._suspects.folder
        tables = [folder.table(shard_file(number), ["uri", "member"]).slice(0, _NAMED) for number in shards]
        return ", ".join(place for table in tables for place in places_of(table)) + ", ..."


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
