"""How a job ends when SIGTERM or Ctrl-C tell it to: it is interrupted, and ends even where that gets lost.

What a handler raises comes at any line. Inside a lock, of logging say, it leaves the lock taken, and all wait for ever;
in the middle of a `ray.wait`, or while Ray starts, it is swallowed. So a thread beside the job hears of the signal as
well, and ends the process when the job has not ended soon.
"""

import contextlib
import os
import select
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator

_GRACE_S = 6.0  # of the ten seconds after which nothing of a job may be left
_noted: list[int] = []


def is_terminated() -> bool:
    """Whether SIGTERM came, as sent by `ray job stop`, systemd and Kubernetes."""
    return signal.SIGTERM in _noted


def raise_if_terminated() -> None:
    """Raise KeyboardInterrupt when a signal came and what it raised was swallowed, as in a callback or an import."""
    if _noted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def ends_when_told(give_up: Callable[[int], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C raise KeyboardInterrupt in the block; where it goes on all the same, `give_up` is called.

    `give_up` gets the signal, in a thread of its own, and must end the process. Signals reach main threads only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _noted.clear()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    others = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(heard, give_up), name="ending", daemon=True)
    watch.start()
    try:
        yield
    finally:
        if _noted:
            hear_no_more()
            before = {}
        signal.set_wakeup_fd(others)
        os.close(told)
        watch.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def hear_no_more() -> None:
    """The process is at its end: a signal more, of an impatient hand, must not break into it."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def end_in_order() -> None:
    """From here on the block ends itself, in its own time."""
    signal.set_wakeup_fd(-1)


def interrupt(signum: int, frame: types.FrameType | None) -> None:
    """The handler of both signals."""
    _noted.append(signum)
    raise KeyboardInterrupt


def _watch(heard: int, give_up: Callable[[int], None]) -> None:
    first, deadline = 0, 0.0
    while True:
        ready, _, _ = select.select([heard], [], [], max(0.0, deadline - time.monotonic()) if first else None)
        numbers = os.read(heard, 64) if ready else b""
        if ready and not numbers:  # the block has ended
            os.close(heard)
            return
        if not ready:
            give_up(first)
            return
        found = [number for number in numbers if number in (signal.SIGTERM, signal.SIGINT)]
        if found and not first:
            first, deadline = found[0], time.monotonic() + _GRACE_S
