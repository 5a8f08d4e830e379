"""Clusters that cannot be joined are refused at once, and a dead node is noticed."""

import signal
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline.base.cluster import calling_ray, connected, other_versions, refuse_dead_node
from pipeline.base.errors import PlatformError, UsageError


def _ray(nodes: list[dict[str, Any]]) -> Any:
    """What `refuse_dead_node` asks of Ray, for a process on node a."""
    context = SimpleNamespace(get_node_id=lambda: "a")
    return SimpleNamespace(get_runtime_context=lambda: context, nodes=lambda: nodes)


def test_a_process_notices_that_its_own_node_died_and_minds_no_other() -> None:
    dead, alive = {"NodeID": "a", "Alive": False}, {"NodeID": "a", "Alive": True}
    refuse_dead_node(_ray([alive, {"NodeID": "b", "Alive": False}]))
    with pytest.raises(PlatformError, match="run the same command again"):
        refuse_dead_node(_ray([dead, {"NodeID": "b", "Alive": True}]))


def test_a_call_of_ray_that_goes_on_after_ctrl_c_is_known_to_go_on() -> None:
    """Or Ray would be shut down under it, and started anew by it."""
    may_end = threading.Event()
    thread = calling_ray(lambda: may_end.wait(60) and None, "call")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            thread.join(60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert thread.is_alive()
    may_end.set()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_addresses_that_no_job_can_join_are_refused_with_the_way_that_works(address: str) -> None:
    with pytest.raises(UsageError, match="ray job submit"), connected(address):
        pass


def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.base.cluster._is_joined", lambda: False)  # other tests of the session may have a Ray
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, not listening
        with pytest.raises(PlatformError, match=f"127.0.0.1:{port}"), connected(f"127.0.0.1:{port}"):
            pass


def test_a_driver_of_other_versions_than_the_cluster_s_is_refused_in_one_sentence() -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.50.1", "python_version": "3.12.4"}, "10.0.0.1")
    said = other_versions(str(caught.value))
    assert said is not None and "\n" not in said
    assert f"the cluster runs Ray 2.50.1 on Python 3.12.4, this process Ray {ray.__version__} on Python 3." in said
    assert other_versions("no cluster there") is None
