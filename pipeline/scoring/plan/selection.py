"""Which images of a listing are to be scored: not what an earlier run did, and of a retry only what it is about."""

from collections.abc import Mapping

from pipeline.scoring.history import archives
from pipeline.scoring.history.ledger import UNCHANGED, Ledger
from pipeline.scoring.history.retry import Retry
from pipeline.scoring.request import Request
from pipeline.sources.archives import Entry, Problem


class Selection:
    """Judges what a listing meets by the ledger of earlier runs, in which it notes what it was shown."""

    def __init__(self, request: Request, ledger: Ledger, retry: Retry | None) -> None:
        self.ledger, self._retry, self._rescore = ledger, retry, request.rescore

    def wants(self, image_id: int, uri: str) -> bool:
        """False for what was listed but is not what a retry is about."""
        return self._retry is None or self._retry.wants(image_id) or self._retry.may_want(uri)

    def done(self, image_id: int, item: Entry | Problem) -> tuple[str, str] | None:
        """(reason, run) when an earlier run did this version of an image. A retry does again what has failed."""
        self.ledger.see(image_id)
        found = None if self._rescore else self.ledger.look_up(image_id, item.etag, item.size_bytes)
        if found is None:
            return None
        reason, run = found
        if self._retry is not None and self._retry.wants(image_id) and reason != UNCHANGED:
            return None
        return self.ledger.reason(reason, image_id, item.uri, item.member), run

    def is_new(self, image_id: int, item: Entry) -> bool:
        """False for what an earlier run has tried already and may now succeed."""
        return self._rescore or not self.ledger.is_known(image_id, item.etag, item.size_bytes)

    def subject(self, image_id: int) -> str | None:
        """Of an image that is retried, where the earlier run knew it."""
        return self._retry.subjects.get(image_id) if self._retry is not None else None

    def failed_before(self) -> list[int]:
        """Ids whose failure is no news. Where all was asked for anew, every failure is."""
        return [] if self._rescore or self._retry is not None else self.ledger.failed().tolist()

    def judge_archives(self, etags: Mapping[str, str]) -> dict[str, str]:
        """Whether earlier runs did each of some compressed archives (URI -> version): DONE, IN_PART or NEW."""
        if self._rescore or not self.ledger.runs or not etags:
            return dict.fromkeys(etags, archives.NEW)
        return archives.judge(self.ledger, etags)
