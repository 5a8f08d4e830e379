"""Which application of a service has a model, as Serve says it and as they tell it themselves; no Ray runs."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray.serve.schema import ApplicationStatus

from serving import neighbours
from serving.app import DEPLOYMENT
from serving.engine import Engine
from serving.errors import HttpError
from serving.neighbours import Neighbours
from serving.protocols.oip.rpc.service import Rpc
from serving.protocols.oip.schemas import IndexEntry
from serving.routes import create_app
from tests.unit.test_oip_rpc import answering, encoded, engine

__all__ = ["engine"]


@dataclass
class Cluster:
    """What Serve says of applications, and what their replicas answer."""

    applications: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of models, of those that answer
    asked: list[str] = field(default_factory=list)

    def put(self, name: str, replicas: int, status: str = "RUNNING", model: str | None = None, **more: Any) -> None:
        states = {"RUNNING": replicas} if replicas else {}
        deployments = {DEPLOYMENT: SimpleNamespace(replica_states=states)}
        status = ApplicationStatus(status)
        self.applications[name] = SimpleNamespace(**{"status": status, "deployments": deployments, **more})
        if model is not None:
            self.names[name] = model

    def status(self) -> Any:
        return SimpleNamespace(applications=self.applications)

    def get_app_handle(self, name: str) -> Any:
        async def entry() -> IndexEntry:
            self.asked.append(name)
            if name not in self.names:
                raise TimeoutError
            return IndexEntry(name=self.names[name], version="1", state="READY", reason="")

        return SimpleNamespace(index_entry=SimpleNamespace(remote=entry))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    made.put("leukoray", 1)
    monkeypatch.setattr(neighbours, "serve", made)
    monkeypatch.setattr(neighbours, "_KNOWN_S", 0.0)
    monkeypatch.setattr(neighbours, "_AGAIN_S", 0.0)
    return made


@pytest.fixture
def others() -> Neighbours:
    return Neighbours("leukoray", DEPLOYMENT)


def has(others: Neighbours, name: str) -> bool | int:
    """The status of the error where there is one."""
    try:
        return asyncio.run(others.have(name))
    except HttpError as error:
        assert error.headers == {"Retry-After": "1"} and error.code == "not_ready"
        return error.status


def test_while_an_application_has_not_told_its_model_a_name_may_be_its(cluster: Cluster, others: Neighbours) -> None:
    cluster.put("leukoray-b", 1, model="b")
    cluster.put("leukoray-c", 0, "DEPLOYING")
    assert has(others, "b") is True
    assert has(others, "c") == has(others, "nobody's") == 503
    cluster.put("leukoray-c", 1, model="c")
    assert has(others, "c") is True
    assert has(others, "nobody's") is False


@pytest.mark.parametrize("status", ["DEPLOY_FAILED", "DELETING"])
def test_nobody_waits_for_one_that_will_not_come(cluster: Cluster, others: Neighbours, status: str) -> None:
    cluster.put("leukoray-b", 0, status)
    assert has(others, "b") is False and cluster.asked == []
    cluster.put("leukoray-b", 1, status, model="b")  # a later deployment failed, and it goes on
    assert has(others, "b") is True


def test_one_of_which_serve_knows_no_deployment_yet_may_have_it(cluster: Cluster, others: Neighbours) -> None:
    cluster.put("leukoray-b", 0, "DEPLOYING", deployments={})
    assert has(others, "b") == 503
    cluster.put("leukoray-b", 1, deployments={"Another": SimpleNamespace(replica_states={})})
    assert has(others, "b") is False


def test_a_look_wakes_one_that_has_told_its_model_no_more(cluster: Cluster, others: Neighbours) -> None:
    cluster.put("leukoray-b", 0, model="b")
    assert has(others, "b") is True and cluster.asked == ["leukoray-b"]
    assert has(others, "nobody's") is False and has(others, "b") is True
    assert cluster.asked == ["leukoray-b"]
    cluster.put("leukoray-b", 1, model="renamed")
    assert has(others, "renamed") is True and has(others, "b") is False


def test_clients_are_told_to_come_again(cluster: Cluster, others: Neighbours, engine: Engine) -> None:
    cluster.put("leukoray-b", 0, "DEPLOYING")
    mine = answering(engine, others)
    request = encoded(b"no image")
    request.model_name = "b"

    async def said(ask: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]) -> httpx.Response:
        transport = httpx.ASGITransport(create_app(engine, answering=mine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await ask(http)

    answer = asyncio.run(said(lambda http: http.get("/v2/models/b")))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1") and "try again" in answer.json()["error"]
    reply = asyncio.run(Rpc(mine).call("ModelInfer", request.SerializeToString(), []))
    assert reply.status == "UNAVAILABLE" and ("retry-after", "1") in reply.trailing
