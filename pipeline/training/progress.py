"""What a person sees while workers train: rank 0 posts events to a small actor, the driver reads and shows them.

A refreshed line on a terminal, plain lines elsewhere (job logs). No torch here: Ray Train's controller imports it.
"""

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TextIO

from ray.train import UserCallback

from pipeline.base.text import first_line, human_time

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.board import Board

Event = dict[str, Any]
_STEP_EVERY_S = 0.5
_PLAIN_STEP_EVERY_S = 15.0
STANDING = ("best_epoch", "finished")  # reported beside the row of an epoch


class Mailbox:
    """A Ray actor: events on their way from rank 0 to the driver, the newest kept when nobody reads."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=10_000)

    def post(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        taken = list(self._events)
        self._events.clear()
        return taken


class Sender:
    """Rank 0's end; silent on other ranks. Nothing here waits."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._next_step = 0.0

    def _post(self, event: Event) -> None:
        if self._mailbox is not None:
            self._mailbox.post.remote(event)

    def started(self, history: list[dict[str, float]], how: str) -> None:
        self._post({"kind": "started", "history": history, "how": how})

    def step(self, epoch: int, step: int, steps: int, loss: "Tensor", images_per_s: float) -> None:
        now = time.monotonic()
        if self._mailbox is None or now < self._next_step:
            return
        self._next_step = now + _STEP_EVERY_S
        self._post(
            {"kind": "step", "epoch": epoch, "step": step, "steps": steps, "loss": float(loss), "rate": images_per_s}
        )


class Announcer(UserCallback):
    """Tells the reader of epochs, and when workers fail and Ray starts them again. Runs in Ray Train's controller.

    An epoch is told when its checkpoint is in the controller's books: what was shown is not done again after a kill.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        row = dict(metrics[0])
        standing = {name: row.pop(name) for name in STANDING}
        self._mailbox.post.remote({"kind": "epoch", "row": row, **standing})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in worker_exceptions.items():
            what = f"{type(error).__name__}: {first_line(error)}"
            text = f"worker {rank} failed ({what}); continuing from the last checkpoint"
            self._mailbox.post.remote({"kind": "note", "text": text})


class Display:
    """The driver's end: shows events as they come."""

    def __init__(self, epochs: int, monitor: str, board: "Board", out: TextIO | None = None) -> None:
        self._epochs, self._monitor, self._board = epochs, monitor, board
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._next_plain = time.monotonic() + _PLAIN_STEP_EVERY_S
        self._seconds: list[float] = []

    def show(self, events: list[Event]) -> None:
        steps = [event for event in events if event["kind"] == "step"]
        for event in events:
            if event["kind"] == "started":
                self._started(event)
            elif event["kind"] == "epoch":
                self._epoch(event)
            elif event["kind"] == "note":
                self._line(event["text"])
        if steps and events[-1]["kind"] == "step":
            self._step(steps[-1])

    def _started(self, event: Event) -> None:
        self._line(f"training on {event['how']}")
        if event["history"]:
            self._line(f"continuing after epoch {len(event['history'])}, from its checkpoint")
        for row in event["history"]:
            self._board.add(row)

    def _epoch(self, event: Event) -> None:
        row = event["row"]
        self._board.add(row)
        self._seconds.append(row["seconds"])
        epoch = int(row["epoch"])
        rest = 0.0 if event["finished"] else (self._epochs - epoch) * sum(self._seconds) / len(self._seconds)
        mark = "  best" if event["best_epoch"] == epoch else ""
        extra = "" if self._monitor == "val_auc" else f"  bal. acc. {row['val_balanced_accuracy']:.3f}"
        self._line(
            f"epoch {epoch:>3}/{self._epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
            f"val AUC {row['val_auc']:.4f}{extra}  {row['images_per_s']:.0f} images/s  "
            f"left <= {human_time(rest)}{mark}"
        )

    def _step(self, event: Event) -> None:
        text = (
            f"epoch {event['epoch']:>3}/{self._epochs}  step {event['step']}/{event['steps']}  "
            f"loss {event['loss']:.4f}  {event['rate']:.0f} images/s"
        )
        if self._live:
            self._out.write(f"\r\x1b[K{text}")
            self._out.flush()
        elif time.monotonic() >= self._next_plain:
            self._line(text)

    def _line(self, text: str) -> None:
        self._next_plain = time.monotonic() + _PLAIN_STEP_EVERY_S
        start = "\r\x1b[K" if self._live else ""
        self._out.write(f"{start}{text}\n")
        self._out.flush()
