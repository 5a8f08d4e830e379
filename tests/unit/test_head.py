"""A head that is lost is told once and in time; one that comes back is not."""

import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base import head
from pipeline.base.errors import PlatformError


def _ray(port: int) -> Any:
    context = SimpleNamespace(gcs_address=f"127.0.0.1:{port}")
    return SimpleNamespace(get_runtime_context=lambda: context)


def test_a_lost_head_ends_the_process_before_ray_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "0.2")
    told: list[PlatformError] = []
    over = threading.Event()

    def end(error: PlatformError) -> None:
        told.append(error)
        over.set()

    monkeypatch.setattr(head, "_end", end)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with head.head_watched(_ray(port)):
            time.sleep(0.4)
            assert not told, "it answers"
            listening.close()
            assert over.wait(10)
    assert "run the same command again" in str(told[0]) and f"127.0.0.1:{port}" in str(told[0])
    time.sleep(0.1)
    assert len(told) == 1
