"""What clients of a soak were told: answers by kind and status, faults, and whose answers they were.

A client's answer may be of the newest model that anybody had an answer of when it was asked for, or of one that was
ordered after that and before it was there; of no other.
"""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

_SHOWN = 10  # faults of one sort


@dataclass(frozen=True)
class Reply:
    """`status` 0: the connection failed, `body` says how. Times are of time.monotonic()."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    began: float
    ended: float

    @property
    def code(self) -> str:
        """Of an error; empty where the body is none of ours."""
        try:
            return str(json.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return ""

    @property
    def is_announced(self) -> bool:
        """A refusal that says when to come back."""
        return self.status == 503 and "retry-after" in self.headers and self.code != ""


@dataclass(frozen=True)
class Said:
    """One answer of a model."""

    began: float
    ended: float
    sha256: str


@dataclass
class Tally:
    """For many threads."""

    counts: Counter[tuple[str, int, str]] = field(default_factory=Counter)  # kind, status, code
    faults: list[str] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    good_at: list[float] = field(default_factory=list)  # when a plain client got its answer
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, reply: Reply, expected: Collection[int], codes: Collection[str] = ()) -> bool:
        """Whether it is what was expected: one of these statuses, an error with one of these codes where some are
        named, or a refusal that says when to come back."""
        is_fine = reply.status in expected and (reply.status < 400 or not codes or reply.code in codes)
        with self._lock:
            self.counts[kind, reply.status, reply.code] += 1
        if not is_fine and not reply.is_announced:
            self.fault(
                f"{kind}: {reply.status} {reply.code} {reply.body[:200]!r} after {reply.ended - reply.began:.1f} s"
            )
        return is_fine

    def saw(self, kind: str, reply: Reply, sha256: str) -> None:
        with self._lock:
            self.said.append(Said(reply.began, reply.ended, sha256))
            if kind == "image":
                self.good_at.append(reply.ended)

    def fault(self, what: str) -> None:
        with self._lock:
            self.faults.append(f"{time.strftime('%H:%M:%S')} {what}")

    def longest_silence_s(self, since: float, until: float) -> float:
        """Between two answers to plain clients."""
        times = [since, *sorted(at for at in self.good_at if since <= at <= until), until]
        return max(after - before for before, after in itertools.pairwise(times))

    def table(self) -> list[str]:
        kinds = sorted({kind for kind, _, _ in self.counts})
        lines = []
        for kind in kinds:
            found = sorted((status, code, count) for (of, status, code), count in self.counts.items() if of == kind)
            lines.append(
                f"  {kind:<12}"
                + "  ".join(f"{status}{' ' + code if code else ''}: {count}" for status, code, count in found)
            )
        return lines

    def shown_faults(self) -> list[str]:
        more = len(self.faults) - _SHOWN
        return [f"  {fault}" for fault in self.faults[:_SHOWN]] + ([f"  and {more} more"] if more > 0 else [])


def out_of_turn(orders: Sequence[tuple[float, str]], said: Sequence[Said]) -> list[str]:
    """Answers of a model that could not answer then. `orders`: when each model was ordered, and its SHA-256."""
    seen = [float("-inf")]  # when the first answer of each was there
    for at, sha256 in orders[1:]:
        answers = (one.ended for one in said if one.sha256 == sha256 and one.ended >= at and one.began > seen[-1])
        seen.append(min(answers, default=float("inf")))
    found = []
    for one in said:
        first = max(place for place, at in enumerate(seen) if at < one.began)
        last = max(place for place, (at, _) in enumerate(orders) if at <= one.ended)
        allowed = {sha256 for _, sha256 in orders[first : last + 1]}
        if one.sha256 not in allowed:
            found.append(
                f"an answer of {one.sha256[:12]}, asked for after one of model {first + 1}, {orders[first][1][:12]}"
            )
    return found
