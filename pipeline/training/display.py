"""What a person sees while workers train: a refreshed line on a terminal, plain lines elsewhere (job logs).

Takes events as they come, whatever brings them: dictionaries with a `kind` of `started`, `step`, `epoch`, `note`
or `left out`.
"""

import shutil
import sys
import time
from typing import Any, Protocol, TextIO

from pipeline.base.log import tell
from pipeline.base.text import human_time
from pipeline.training.rejected import Rejected

Event = dict[str, Any]
_PLAIN_STEP_EVERY_S = 15.0


class EpochLog(Protocol):
    """Whoever keeps the rows of epochs."""

    def add(self, row: dict[str, float]) -> None: ...


class Display:
    """Shows events, and hands the rows of epochs on to the log."""

    def __init__(
        self, epochs: int, monitor: str, log: EpochLog, out: TextIO | None = None, *, chooses: bool = True
    ) -> None:
        """`chooses`: the best epoch is what is kept; else the last one, and none is called the best."""
        self._epochs, self._monitor, self._log, self._chooses = epochs, monitor, log, chooses
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._next_plain = 0.0  # the first step is told at once: it says that training runs
        self._left = _TimeLeft(epochs)
        self._epoch_shown = 0
        self.rejected: Rejected | None = None  # the latest that was told
        self.has_started = False  # workers train

    def show(self, events: list[Event]) -> None:
        for number, event in enumerate(events):
            if event["kind"] == "started":
                self._started(event)
            elif event["kind"] == "epoch":
                self._epoch(event)
            elif event["kind"] == "note":
                self._line(event["text"])
            elif event["kind"] == "left out":
                self._left_out(event)
            elif number + 1 == len(events) or events[number + 1]["kind"] != "step":  # the newest of several
                self._step(event)

    def _started(self, event: Event) -> None:
        self.has_started = True
        self._line(f"training on {event['how']}")
        if event["step"]:
            self._line(f"continuing after {_done(event['history'], event['step'])}, from its checkpoint")
        self._next_plain = 0.0
        for row in event["history"]:
            self._log.add(row)

    def _left_out(self, event: Event) -> None:
        known = self.rejected.remarks if self.rejected is not None else {}
        self.rejected = Rejected(*(event[name] for name in ("total", "codes", "examples", "remarks")))
        for kind, count in self.rejected.remarks.items():
            if known.get(kind) != count:
                self._line(f"{count} images: {kind}")

    def _epoch(self, event: Event) -> None:
        row = event["row"]
        self._log.add(row)
        self._epoch_shown = epoch = int(row["epoch"])
        self._left.epoch_took(row["seconds"])
        left = 0.0 if event["finished"] else self._left.after(epoch)
        extra = "" if self._monitor == "val_auc" else f"  bal. acc. {row['val_balanced_accuracy']:.3f}"
        self._line(
            f"epoch {epoch:>3}/{self._epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
            f"val AUC {row['val_auc']:.4f}{extra}  {_speed(row, left)}"
            f"{'  best' if self._chooses and event['best_epoch'] == epoch else ''}",
            event="epoch", epochs=self._epochs, left_s=left, **row,
        )  # fmt: skip

    def _step(self, event: Event) -> None:
        if event["epoch"] <= self._epoch_shown:  # it was overtaken by the end of its epoch
            return
        left = self._left.within(event["epoch"], event["step"], event["steps"])
        text = (
            f"epoch {event['epoch']:>3}/{self._epochs}  step {event['step']}/{event['steps']}  "
            f"loss {event['loss']:.4f}  {_speed(event, left)}"
        )
        if self._live:  # a line that is broken could not be taken back
            self._out.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
            self._out.flush()
        elif time.monotonic() >= self._next_plain:
            told = {name: value for name, value in event.items() if name != "kind"}
            self._line(text, event="progress", epochs=self._epochs, left_s=left, **told)

    def _line(self, text: str, **fields: Any) -> None:
        self._next_plain = time.monotonic() + _PLAIN_STEP_EVERY_S
        tell(self._out, ("\r\x1b[K" if self._live else "") + text, **fields)


def _speed(event: Event, left_s: float | None) -> str:
    left = "" if left_s is None else f"left <= {human_time(left_s)}  "
    return f"{event['images_per_s']:.0f} images/s  {left}waiting {event['waiting_share']:.0%}"


class _TimeLeft:
    """Seconds until the last epoch ends, from whole epochs where there were any, else from the steps of the first."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._seconds: list[float] = []
        self._seen: tuple[int, int, float] | None = None  # epoch, step and moment of the first step seen of an epoch

    def epoch_took(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def after(self, epoch: int) -> float:
        return (self._epochs - epoch) * sum(self._seconds) / len(self._seconds)

    def within(self, epoch: int, step: int, steps: int) -> float | None:
        """None until there is something to tell it by."""
        now = time.monotonic()
        if self._seen is None or self._seen[0] != epoch:
            self._seen = (epoch, step, now)
        if self._seconds:
            return (self._epochs - epoch + 1 - step / steps) * sum(self._seconds) / len(self._seconds)
        _, first, began = self._seen
        if step == first:
            return None
        return ((self._epochs - epoch + 1) * steps - step) * (now - began) / (step - first)


def _done(history: list[dict[str, float]], step: int) -> str:
    within = step - int(history[-1]["step"]) if history else step
    steps = f"{within} step{'' if within == 1 else 's'}"
    if not history:
        return steps
    return f"epoch {len(history)}" + (f" and {steps}" if within else "")
