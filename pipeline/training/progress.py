"""How events of training come to the driver, which shows them: rank 0 posts them to a small actor.

No torch here: Ray Train's controller imports it.
"""

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ray.train import UserCallback

from pipeline.base.text import first_line
from pipeline.training.display import Event
from pipeline.training.pace import Pace

if TYPE_CHECKING:
    from torch import Tensor

_STEP_EVERY_S = 0.5
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

    def step(self, epoch: int, step: int, steps: int, loss: "Tensor", images: int, pace: Pace) -> None:
        """`step` of `steps` is done; `images` of the epoch so far, over all ranks."""
        now = time.monotonic()
        if self._mailbox is None or now < self._next_step:
            return
        self._next_step = now + _STEP_EVERY_S
        speed = {"images_per_s": images / pace.seconds, "waiting_share": pace.waiting_share}
        self._post({"kind": "step", "epoch": epoch, "step": step, "steps": steps, "loss": float(loss), **speed})


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
