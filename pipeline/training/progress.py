"""How events of training come to the driver, which shows them: rank 0 and Ray Train's controller post them.

No torch here: Ray Train's controller imports it.
"""

import json
import os
import secrets
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray.experimental import internal_kv
from ray.train import UserCallback

from pipeline.base.errors import LeukorayError
from pipeline.base.text import first_line
from pipeline.storage.types import StoreError
from pipeline.training.display import Event
from pipeline.training.pace import Pace

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.rejected import Rejected

_STEP_EVERY_S = 0.5
_TOLD_S = 30.0
_NEWEST = "~step"  # sorts behind the times
# Events that are not for a person: an error of ours, which workers that start again would meet again; workers that
# failed and start again; a checkpoint within an epoch
REFUSAL, FAILURE, SAVED = "refusal", "failure", "saved"
STANDING = ("best_epoch", "finished")  # reported beside the row of an epoch


def checkpoint_name(path: str) -> str:
    """Which of a run's checkpoints lies at a path of Ray Train's file system."""
    return path.rstrip("/").rsplit("/", 1)[-1]


class Mailbox:
    """Events on their way from a run to the driver, in the key-value store of the cluster's head.

    No process of ours holds them: a node that is lost takes none along. A few hundred bytes an event, taken out by the
    driver; what a killed driver leaves is forgotten with the cluster.
    """

    def __init__(self) -> None:
        name = f"leukoray-training-{secrets.token_hex(8)}"
        self._prefix, self._ended = f"{name}/", f"{name}-ended"
        self._seen = b""  # of the event that only the newest of counts

    def post(self, event: Event) -> None:
        """For the driver to see once. Waits for the head to have it."""
        kept = f"{time.time_ns():020d}-{os.getpid()}"
        internal_kv._internal_kv_put(self._prefix + kept, json.dumps(event))

    def replace(self, event: Event) -> None:
        """Takes the place of the one before, whether that was seen or not."""
        internal_kv._internal_kv_put(self._prefix + _NEWEST, json.dumps(event))

    def take(self) -> list[Event]:
        """What came since the last look, in order, the replaceable one last."""
        events = []
        for key in sorted(internal_kv._internal_kv_list(self._prefix)):
            value = internal_kv._internal_kv_get(key)
            if key.endswith(_NEWEST.encode()):
                if value == self._seen:
                    continue
                self._seen = value
            else:
                internal_kv._internal_kv_del(key)
            events.append(json.loads(value))
        return events

    def end(self) -> None:
        """Nobody waits for the run any more: workers that Ray Train starts again have nothing to do."""
        internal_kv._internal_kv_put(self._ended, b"1")

    def has_ended(self) -> bool:
        return bool(internal_kv._internal_kv_exists(self._ended))

    def close(self) -> None:
        """Forget what nobody will look at."""
        internal_kv._internal_kv_del(self._prefix, del_by_prefix=True)


class Sender:
    """Rank 0's end; silent on other ranks. Steps do not wait: a thread hands them on, and of them only the newest."""

    def __init__(self, mailbox: Mailbox | None) -> None:
        self._mailbox = mailbox
        self._next_step = 0.0
        self._handing = ThreadPoolExecutor(1, "progress") if mailbox is not None else None
        self._handed: Future[None] | None = None
        self._left_out: Rejected | None = None

    def started(self, history: list[dict[str, float]], step: int, how: str) -> None:
        """`step`: how many are done of the whole run."""
        self._post({"kind": "started", "history": history, "step": step, "how": how})

    def note(self, text: str) -> None:
        self._post({"kind": "note", "text": text})

    def _post(self, event: Event) -> None:
        if self._mailbox is not None and self._handing is not None:
            self._handing.submit(self._mailbox.post, event)

    def left_out(self, lost: "Rejected") -> None:
        """What is known of images that cannot be used, where it is news. Waits: the run's account rests on it."""
        if self._mailbox is not None and self._handing is not None and lost != self._left_out:
            self._left_out = lost
            self._handing.submit(self._mailbox.post, {"kind": "left out", **asdict(lost)}).result()

    def step(self, epoch: int, step: int, steps: int, loss: "Tensor", images: int, pace: Pace) -> None:
        """`step` of `steps` is done; `images` of the epoch so far, over all ranks. Reads `loss` only now and then."""
        now = time.monotonic()
        if self._mailbox is None or self._handing is None or now < self._next_step:
            return
        if self._handed is not None and not self._handed.done():  # the head is busy, or away
            return
        self._next_step = now + _STEP_EVERY_S
        speed = {"images_per_s": images / pace.seconds, "waiting_share": pace.waiting_share}
        event = {"kind": "step", "epoch": epoch, "step": step, "steps": steps, "loss": float(loss), **speed}
        self._handed = self._handing.submit(self._mailbox.replace, event)


class Announcer(UserCallback):
    """Tells the reader of epochs, and when workers fail and Ray starts them again. Runs in Ray Train's controller.

    An epoch is told when its checkpoint is in the controller's books: what was shown is not done again after a kill.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._told_leaving = float("-inf")

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        row = dict(metrics[0])
        if SAVED in row:
            self._mailbox.post({"kind": SAVED})
            return
        standing = {name: row.pop(name) for name in STANDING}
        name = checkpoint_name(checkpoint.path)
        self._mailbox.post({"kind": "epoch", "row": row, "checkpoint": name, **standing})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        errors = [error for error in worker_exceptions.values() if isinstance(error, LeukorayError)]
        if errors:
            ours = errors[0].refusal() if isinstance(errors[0], StoreError) else errors[0]
            self._mailbox.post({"kind": REFUSAL, "text": str(ours), "exit_code": ours.exit_code})
            return
        if all(getattr(error, "preempted", False) for error in worker_exceptions.values()):
            if time.monotonic() - self._told_leaving > _TOLD_S:  # the workers end one after another
                self._mailbox.post({"kind": "note", "text": "a node is about to go away: continuing on the others"})
            self._told_leaving = time.monotonic()
            return
        said = {rank: f"{type(error).__name__}: {first_line(error)}" for rank, error in worker_exceptions.items()}
        for rank, what in said.items():
            text = f"worker {rank} failed ({what}); continuing from the last checkpoint"
            self._mailbox.post({"kind": "note", "text": text})
        self._mailbox.post({"kind": FAILURE, "text": next(iter(said.values()))})
