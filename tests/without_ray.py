"""Commands that spread images over Ray's workers, in this process: what they write is the same wherever they ran."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from jobs import calibrate, evaluate, transfer_check
from pipeline.evaluation.predict import Spread


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spread, "results", _here)
    for job in (evaluate, calibrate, transfer_check):
        monkeypatch.setattr(job, "connected", _not_connected)


def _here(self: Spread, ray: Any, tasks: Sequence[tuple[str, Sequence[Any]]], stores: Any, **_: Any) -> Iterator[Any]:
    worker = self.worker(*self.arguments)
    for name, rows in tasks:
        yield getattr(worker, name)(rows)


@contextlib.contextmanager
def _not_connected(*_: Any, **__: Any) -> Iterator[None]:
    yield None
