"""The endpoint on a real Ray Serve: same answers as the predictor, none mixed up, none lost, none left waiting."""

import asyncio
import hashlib
import io
import itertools
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from pipeline.base.cluster import connected
from pipeline.model.bundle import Bundle
from pipeline.model.registry import ModelFolder
from serving.app import build
from serving.keys.records import digest
from serving.monitoring import sharing
from tests.bundles import make_bundle, said_of
from tests.servers import free_port

JPEG = {"content-type": "image/jpeg"}
FORMATS = ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"]


def picture(kind: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (50 + seed % 7, 60, 3), np.uint8) // 4 + rng.integers(0, 190, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def serve_url() -> Iterator[str]:
    """Serve without applications, on a free port of a local Ray (the session's, where one runs)."""
    with connected(None, num_cpus=2):
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        port = free_port()
        serve.start(ProxyLocation.HeadOnly, HTTPOptions(host="127.0.0.1", port=port))
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=48, task="multiclass")


@pytest.fixture(scope="module")
def url(serve_url: str, bundle: Bundle) -> Iterator[str]:
    from ray import serve

    serve.run(build({"model": bundle.uri, "max_replicas": 2}), name="main", route_prefix="/")
    yield serve_url
    serve.delete("main")


def expected(bundle: Bundle, images: list[bytes]) -> list[float]:
    return [said.probability for said in said_of(bundle, *images)]


def send_all(
    url: str, images: list[bytes], timeout_s: float = 60, headers: dict[str, str] | None = None
) -> list[httpx.Response]:
    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(images))
        async with httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits) as http:
            requests = (http.post("/predict", content=data, headers=JPEG | (headers or {})) for data in images)
            return list(await asyncio.gather(*requests))

    return asyncio.run(all_at_once())


def test_every_format_gets_the_predictors_probability(url: str, bundle: Bundle) -> None:
    images = [picture(kind, 1) for kind in FORMATS]
    raw = [answer.json()["probability"] for answer in send_all(url, images)]
    assert raw == pytest.approx(expected(bundle, images), abs=1e-5)
    files = [("files", (f"image.{kind}", data)) for kind, data in zip(FORMATS, images, strict=True)]
    body = httpx.post(f"{url}/predict", files=files, timeout=30).json()
    multipart = [item["prediction"]["probability"] for item in body["results"]]
    assert multipart == pytest.approx(raw, abs=1e-6)


def test_parallel_requests_each_get_their_own_answer(url: str, bundle: Bundle) -> None:
    images = [picture("PNG", seed) for seed in range(64)]
    wanted = expected(bundle, images)
    assert len({round(value, 4) for value in wanted}) > 50, "the images must be told apart by their answers"
    answers = send_all(url, images)
    assert [answer.status_code for answer in answers] == [200] * 64
    assert [answer.json()["probability"] for answer in answers] == pytest.approx(wanted, abs=1e-5)


def test_errors_through_the_proxy_are_json_and_carry_one_request_id(url: str) -> None:
    with httpx.Client(base_url=url, timeout=30) as http:
        cases: list[tuple[httpx.Response, int, str]] = [
            (http.post("/predict", content=b"", headers=JPEG), 400, "empty"),
            (http.post("/predict", content=picture("PNG", 0)[:500], headers=JPEG), 422, "truncated"),
            (http.post("/predict", content=b"no", headers=JPEG), 415, "unsupported_format"),
            (http.get("/predict"), 405, "method_not_allowed"),
            (http.get("/nowhere"), 404, "not_found"),
            (http.get("/healthz", headers={"x-request-id": "a b"}), 400, "invalid_request_id"),
        ]
        for answer, status, code in cases:
            error: dict[str, Any] = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code)
            assert len(answer.headers.get_list("x-request-id")) == 1
        named = http.get("/readyz", headers={"x-request-id": "case/7"})
        assert named.headers.get_list("x-request-id") == ["case/7"]


def test_body_over_the_limit_is_refused(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        announced = http.post("/predict", content=bytes(65 << 20), headers=JPEG)
        chunked = http.post("/predict", content=(bytes(1 << 20) for _ in range(70)), headers=JPEG)
    assert announced.json()["error"]["code"] == chunked.json()["error"]["code"] == "too_large"
    assert announced.status_code == chunked.status_code == 413


def test_probes_and_pages_answer(url: str, bundle: Bundle) -> None:
    with httpx.Client(base_url=url, timeout=30) as http:
        assert http.get("/healthz").json() == {"status": "alive"}
        assert http.get("/readyz").json()["model"]["sha256"] == bundle.info.identity()
        assert "default-src 'none'" in http.get("/").headers["content-security-policy"]
        assert "/predict" in http.get("/docs").text


def test_crowd_is_answered_or_told_when_to_come_back(serve_url: str, bundle: Bundle, url: str) -> None:
    from ray import serve

    tight = {"model": bundle.uri, "max_in_flight": 2, "max_queued_requests": 4, "retry_after_s": 2, "batch_wait_s": 0.2}
    serve.run(build(tight), name="tight", route_prefix="/tight")
    images = [picture("PNG", seed) for seed in range(64)]
    answers = send_all(serve_url + "/tight", images)
    serve.delete("tight")
    served = [(answer, data) for answer, data in zip(answers, images, strict=True) if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert served and refused and len(served) + len(refused) == 64
    assert {answer.headers["retry-after"] for answer in refused} == {"2"}
    probabilities = [answer.json()["probability"] for answer, _ in served]
    assert probabilities == pytest.approx(expected(bundle, [data for _, data in served]), abs=1e-5)


def test_prefix_of_an_application_is_kept_by_its_page(serve_url: str, bundle: Bundle, tmp_path: Path) -> None:
    """Several models on one Serve: the page's links are relative, so each page asks its own model."""
    from ray import serve

    other = make_bundle(tmp_path / "other", size=32, seed=5)
    serve.run(build({"model": other.uri}), name="other", route_prefix="/other")
    page = httpx.get(f"{serve_url}/other/", timeout=30).text
    state = httpx.get(f"{serve_url}/other/readyz", timeout=30).json()
    serve.delete("other")
    assert 'once("readyz"' in page and not re.search(r"""(fetch|post|once)\(["'`]/""", page)
    assert state["model"]["sha256"] == other.info.identity()


class Load:
    """Clients that ask without a pause, each on a connection of its own; every answer with when it was asked for."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self._url, self._stop = url, threading.Event()
        self.answers: list[tuple[float, float, int, str]] = []  # sent, done, status, version
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(clients)]

    def _ask(self, seed: int) -> None:
        data = picture("PNG", seed)
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self._stop.is_set():
                sent = time.monotonic()
                answer = http.post("/predict", content=data, headers=JPEG)
                version = answer.json()["model"]["version"] if answer.status_code == 200 else answer.text
                self.answers.append((sent, time.monotonic(), answer.status_code, version))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, version: str) -> None:
        until(lambda: any(answer[3] == version for answer in self.answers[-20:]), version)

    def check(self, versions: list[str]) -> None:
        """None failed, and whoever asked after an answer of a version got none of an earlier one."""
        failed = [answer for answer in self.answers if answer[2] != 200]
        assert not failed, failed[:3]
        for before, after in itertools.pairwise(versions):
            first = min(done for _, done, _, version in self.answers if version == after)
            late = [version for sent, _, _, version in self.answers if sent > first and version == before]
            assert not late, f"{len(late)} answers of {before} were asked for after one of {after}"


def until(condition: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


def test_promotions_under_load_reach_all_replicas_at_once_and_none_that_starts_later_differs(
    serve_url: str, tmp_path: Path
) -> None:
    """A registry is followed; an order of an administrator, a rollback and a larger service go on from there."""
    import ray
    from ray import serve

    folder = ModelFolder(str(tmp_path / "models" / "blast"))
    versions = [make_bundle(f"{folder.uri}/v{seed}", size=32, seed=seed, version=f"v{seed}") for seed in (1, 2, 3)]
    folder.point_to(versions[0])
    key = {"authorization": "Bearer admin"}
    settings = {
        "model": str(tmp_path / "models"),
        "follow_s": 1,
        "admin_key_sha256": [hashlib.sha256(b"admin").hexdigest()],
        "cpus_per_replica": 0.1,
    }
    url = f"{serve_url}/swaps"
    serve.run(build(settings | {"min_replicas": 2, "max_replicas": 2}), name="swaps", route_prefix="/swaps")
    for headers, status in (({}, 401), ({"x-api-key": "another"}, 403)):
        assert httpx.post(f"{url}/admin/rollback", headers=headers, timeout=30).status_code == status
    with Load(url) as load:
        load.wait_for("v1")
        folder.point_to(versions[1])
        load.wait_for("v2")  # followed
        folder.point_to(versions[2])
        assert httpx.post(f"{url}/admin/reload", headers=key, timeout=60).json()["version"] == "v3"
        load.wait_for("v3")
        shutil.rmtree(f"{folder.uri}/v2")  # it is not needed to go back to
        folder.stores.of(folder.uri).delete(f"{folder.uri}/best.json")
        time.sleep(0.5)
        load.check(["v1", "v2", "v3"])
        first = len(load.answers)
        assert httpx.post(f"{url}/admin/rollback", headers=key, timeout=60).json()["version"] == "v2"
        load.wait_for("v2")
        again = httpx.post(f"{url}/admin/rollback", headers=key, timeout=60)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "model_refused")
    load.answers = load.answers[first:]
    load.check(["v3", "v2"])
    state = until(lambda: (now := httpx.get(f"{url}/model", timeout=30).json())["follows"]["error"] and now, "outage")
    assert (state["generation"], state["cause"]) == (4, "rollback") and "best.json is gone" in state["follows"]["error"]

    folder.point_to(versions[0])  # a larger service is another deployment: it looks at what is there
    with Load(url) as load:
        serve.run(build(settings | {"min_replicas": 3, "max_replicas": 3}), name="swaps", route_prefix="/swaps")
        load.wait_for("v1")
    load.check(["v2", "v1"])
    serve.delete("swaps")
    gone = "keeper-of-swaps"
    until(lambda: gone not in str(ray.util.list_named_actors(all_namespaces=True)), "its keeper ends with it")


def predictions_told(url: str, times: int = 16) -> set[float]:
    """By `/metrics`, asked on new connections, so that each replica answers some."""
    found = set()
    for _ in range(times):
        answer = httpx.get(f"{url}/metrics", timeout=30)
        assert answer.status_code == 200, answer.text
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        found.add(sum(one.value for one in families["leukoray_predictions"].samples))
        assert sum(one.value for one in families["leukoray_model_info"].samples) == 1
    return found


def test_metrics_are_the_sum_over_replicas_also_after_one_was_killed(serve_url: str, bundle: Bundle) -> None:
    import ray
    from ray import serve

    two = {"model": bundle.uri, "min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 0.1}
    serve.run(build(two), name="counted", route_prefix="/counted")
    url = serve_url + "/counted"
    try:
        assert {answer.status_code for answer in send_all(url, [picture("PNG", seed) for seed in range(40)])} == {200}
        until(lambda: httpx.get(f"{url}/metrics", timeout=30).status_code == 200, "the actor of counts")
        time.sleep(2.5)  # each tells every second what is new
        assert predictions_told(url) == {40.0}
        named = ray.util.list_named_actors(all_namespaces=True)
        replicas = [one for one in named if one["name"].startswith("SERVE_REPLICA::counted#")]
        assert len(replicas) == 2
        ray.kill(ray.get_actor(replicas[0]["name"], replicas[0]["namespace"]))
        again = 0
        for _ in range(60):  # some may meet the dead one
            again += httpx.post(f"{url}/predict", content=picture("PNG", 50), timeout=30).status_code == 200
            if again == 5:
                break
            time.sleep(0.5)
        time.sleep(2.5)
        assert again == 5 and predictions_told(url) == {45.0}
    finally:
        serve.delete("counted")
        sharing.forget("counted")


def test_a_quota_holds_over_replicas_and_outlives_one_and_who_counts(
    serve_url: str, bundle: Bundle, tmp_path: Path
) -> None:
    """Two replicas, one key: neither is asked for more than both may; each answer is on record once."""
    import ray
    from ray import serve

    quota, url = 60, serve_url + "/limited"
    (tmp_path / "keys").write_text(f"lab {digest('k')} images={quota}/day\nfree {digest('f')}\n")
    guarded = {"keys_file": str(tmp_path / "keys"), "audit_log": str(tmp_path / "audit"), "cpus_per_replica": 0.1}
    two = {"model": bundle.uri, "min_replicas": 2, "max_replicas": 2, **guarded}
    serve.run(build(two), name="limited", route_prefix="/limited")

    def ask(key: str = "k", times: int = 20) -> list[int]:
        found = send_all(url, [picture("PNG", seed) for seed in range(times)], headers={"x-api-key": key})
        return [answer.status_code for answer in found]

    def is_refused() -> bool:
        """Nobody counts for a moment (503), but nothing is answered that was not counted."""
        found = ask(times=4)
        assert 200 not in found
        return set(found) == {429}

    def named(begin: str) -> list[Any]:
        found = ray.util.list_named_actors(all_namespaces=True)
        return [ray.get_actor(**one) for one in found if one["name"].startswith(begin)]

    try:
        statuses = [status for _ in range(5) for status in ask()]
        assert statuses.count(200) == quota and statuses.count(429) == 100 - quota
        files = sorted((tmp_path / "audit").iterdir())
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        told = [line["request_id"] for line in lines if "event" not in line]
        assert len(files) == 2 and len(told) == len(set(told)) == quota
        ray.kill(named("budgets-of-")[0], no_restart=False)  # Ray starts it anew; it knows nothing
        until(is_refused, "replicas tell it what was spent")
        ray.kill(named("SERVE_REPLICA::limited#")[0])
        until(lambda: set(ask("f", 2)) == {200}, "the other replica answers")
        until(is_refused, "who counts knows what the dead one had spent")
    finally:
        serve.delete("limited")
        sharing.forget("limited")
        for actor in named("budgets-of-"):
            ray.kill(actor)


def test_a_candidate_goes_from_shadow_to_canary_to_promotion_by_its_rule_without_a_failed_request(
    serve_url: str, tmp_path: Path
) -> None:
    """By `user_config` alone, in two replicas that nobody restarts, under load."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    old, new = (make_bundle(tmp_path / f"v{k}", size=32, seed=1, bias=k / 10, version=f"v{k}") for k in (1, 2))
    url = f"{serve_url}/trial"
    app: dict[str, Any] = {"name": "trial", "route_prefix": "/trial", "import_path": "serving.app:build"}
    app["args"] = {"model": old.uri, "min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 0.1}

    def ask(**candidate: Any) -> None:
        wish = {"candidate": {"model": new.uri, "cores": 1.0, **candidate}}
        app["deployments"] = [{"name": "LeukorayReplica", "user_config": wish}]
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [app]}))

    def stage() -> str | None:
        answer = httpx.get(f"{url}/model", timeout=60)
        now = answer.json()["candidate"]["now"] if answer.status_code == 200 else None
        return now and str(now["stage"])

    def compared() -> float:
        text = httpx.get(f"{url}/metrics", timeout=60).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if 'outcome="compared"' in line)

    try:
        ask()
        until(lambda: serve.status().applications["trial"].status == "RUNNING", "both replicas", 240)
        until(lambda: stage() == "shadow", "both have the candidate")
        with Load(url) as load:
            until(lambda: compared() > 20, "compared")
            assert {version for *_, version in load.answers} == {"v1"}
            ask(share=0.5)
            load.wait_for("v2")
            assert {version for *_, version in load.answers[-40:]} == {"v1", "v2"}
            ask(share=0.5, rule={"min_images": int(compared()) + 40, "max_changed_share": 0.9})
            last = until(lambda: httpx.get(f"{url}/model", timeout=60).json()["candidate"]["last"], "promoted")
            later = len(load.answers) + 8  # what was under way is answered by then
            until(lambda: len(load.answers) > later + 20, "more answers")
        assert {status for _, _, status, _ in load.answers} == {200}
        assert {version for *_, version in load.answers[later:]} == {"v2"}
        assert (last["decision"], last["by"]) == ("promoted", "rule") and "max_changed_share met" in last["reason"]
    finally:
        serve.delete("trial")
