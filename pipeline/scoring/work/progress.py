"""What a person sees while a run goes on: rates, time left, codes, the slowest stage, and why nothing moves."""

import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

from pipeline.base.log import tell
from pipeline.base.text import human_time
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.record import Pace
from pipeline.scoring.work.worker import Account

_LINE_EVERY_S = 5.0  # where no terminal shows a line that is redrawn
_REDRAW_EVERY_S = 0.5
_RATE_WINDOW_S = 30.0


class Progress:
    """Counts accounts as they come in and prints them. Rates are of this process, without what was resumed."""

    def __init__(
        self,
        plan: Plan,
        resumed_rows: int,
        workers: int,
        out: Callable[[str], None] | None = None,
        resumed_weight: int = 0,
    ) -> None:
        self._plan, self._workers = plan, workers
        self._tty = out is None and sys.stderr.isatty()
        self._out = out
        self._begin = time.monotonic()
        self._printed = 0.0
        self._recent: deque[tuple[float, int, int]] = deque()
        self.resumed_rows = resumed_rows
        self.rows = self.scored = self.bytes = self.attempts = 0
        self._weight, self._resumed_weight = resumed_weight, resumed_weight  # of the plan's bytes, those that are done
        self.codes: Counter[str] = Counter()
        self.by_worker: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.first_s: float | None = None
        self.last_change = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begin

    @property
    def rows_left(self) -> int:
        """Of the images whose number is known before archives are opened."""
        return max(0, self._plan.rows - self.resumed_rows - self.rows)

    def add(self, account: Account) -> None:
        now = time.monotonic()
        self.first_s = self.first_s if self.first_s is not None else now - self._begin
        self._count(account, 1)
        self._recent.append((now, account.rows, account.bytes))
        self.last_change = now

    def take_back(self, account: Account) -> None:
        """What a dead worker had told of an archive that another now begins anew."""
        self._count(account, -1)

    def _count(self, account: Account, sign: int) -> None:
        self.rows += sign * account.rows
        self.scored += sign * account.scored
        self.bytes += sign * account.bytes
        self.attempts += sign * account.attempts
        self._weight += sign * account.weight
        self.by_worker[account.worker] += sign * account.rows
        for code, count in account.codes.items():
            self.codes[code] += sign * count
        for stage, seconds in account.seconds.items():
            self.seconds[stage] += sign * seconds

    def rate(self) -> tuple[float, float]:
        """(images/s, MB/s) over the last half minute."""
        now = time.monotonic()
        while self._recent and now - self._recent[0][0] > _RATE_WINDOW_S:
            self._recent.popleft()
        span = max(1e-6, min(_RATE_WINDOW_S, now - self._begin))
        return sum(r for _, r, _ in self._recent) / span, sum(b for _, _, b in self._recent) / span / 1e6

    def shares(self) -> dict[str, float]:
        """Share of the workers' busy time in each stage; waiting for bytes counts as fetch."""
        total = sum(self.seconds.values())
        return {name: round(value / total, 3) for name, value in self.seconds.items()} if total else {}

    def show(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._printed < (_REDRAW_EVERY_S if self._tty else _LINE_EVERY_S):
            return
        self._printed = now
        if self._out is not None:
            self._out(self.line())
        elif self._tty:
            print("\r\x1b[2K" + self.line(), file=sys.stderr, end="\n" if force else "", flush=True)
        else:
            tell(sys.stderr, self.line(), **self.fields())

    def fields(self) -> dict[str, Any]:
        """What `line` tells, by name; rates by second, times in seconds, shares 0..1."""
        images, megabytes = self.rate()
        return {
            "event": "progress", "share": round(self._share_done(), 4), "listed": self._plan.rows,
            "done": self.resumed_rows + self.rows, "quarantined": sum(self.codes.values()),
            "codes": dict(self.codes), "images_per_s": round(images, 2), "mb_per_s": round(megabytes, 3),
            "left_s": self._seconds_left(images), "stage_shares": self.shares(),
        }  # fmt: skip

    def line(self) -> str:
        images, megabytes = self.rate()
        share = self._share_done()
        parts = [f"{100 * share:3.0f} %  {self._counts()}", f"{images:.0f} img/s {megabytes:.1f} MB/s"]
        left = self._seconds_left(images)
        if left is not None:
            parts.append(f"{human_time(left)} left")
        shares = self.shares()
        if shares:
            slowest = max(shares, key=lambda name: shares[name])
            parts.append(
                " ".join(f"{name} {100 * share:.0f}%" for name, share in shares.items()) + f" (most: {slowest})"
            )
        return "score  " + " | ".join(parts)

    def _counts(self) -> str:
        """How many were listed, and what became of them."""
        plan, done = self._plan, self.resumed_rows + self.rows
        unopened = f" and {len(plan.archives)} compressed archives" if plan.archives else ""
        quarantined = sum(self.codes.values())
        codes = " ".join(f"{code} {count}" for code, count in self.codes.most_common(4))
        shown = f"listed {plan.rows:,}{unopened}, done {done:,}"
        return shown + (f", quarantined {quarantined:,} ({codes})" if quarantined else "")

    def _share_done(self) -> float:
        """By images where their number is known, by bytes where archives are still to be opened."""
        plan = self._plan
        done, whole = (self._weight, plan.bytes) if plan.archives else (self.resumed_rows + self.rows, plan.rows)
        return min(1.0, done / whole) if whole else 1.0

    def _seconds_left(self, images_per_s: float) -> float | None:
        if not self._plan.archives:
            left = self._plan.rows - self.resumed_rows - self.rows
            return left / images_per_s if images_per_s and left > 0 else None
        done = self._weight - self._resumed_weight
        left = self._plan.bytes - self._weight
        return left * self.elapsed_s / done if done > 0 and left > 0 else None

    def pace(self) -> Pace:
        """For run.json."""
        seconds, shares = max(1e-6, self.elapsed_s), self.shares()
        return Pace(
            images=self.rows,
            resumed_images=self.resumed_rows,
            elapsed_s=round(seconds, 3),
            images_per_s=round(self.rows / seconds, 2),
            mb_per_s=round(self.bytes / seconds / 1e6, 3),
            first_part_s=round(self.first_s, 3) if self.first_s is not None else None,
            workers=self._workers,
            images_by_worker=dict(self.by_worker),
            stage_seconds={name: round(value, 3) for name, value in self.seconds.items()},
            stage_shares=shares,
            bottleneck=max(shares, key=lambda name: shares[name]) if shares else None,
            fetch_attempts=self.attempts,
        )
