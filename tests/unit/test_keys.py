"""Keys with names: their file, its changes while the service runs, and limits that hold over several replicas."""

import asyncio
import base64
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.key import command as key_command
from pipeline.base.errors import InputError, UsageError
from serving.admission import Admission
from serving.desk import Desk, check_guards
from serving.engine import Engine
from serving.errors import HttpError
from serving.keys.budgets import Ask, Budgets, Share
from serving.keys.purse import LimitReached, NoBudgets, Purse
from serving.keys.records import Key, Limits, Rate, digest, read_lines, unnamed, written
from serving.keys.ring import KeyMissing, KeyRefused, KeyRing, open_to_others
from serving.model import load_model
from serving.protocols.oip.answering import Answering
from serving.routes import create_app
from serving.settings import ServingSettings
from tests.asgi import picture
from tests.bundles import make_bundle
from tests.dicoms import dicom

DAY_S = 86_400.0
LIMITS = st.builds(
    Limits,
    st.none() | st.builds(Rate, st.integers(1, 10**9 - 1), st.sampled_from([1.0, 60.0])),
    st.none() | st.integers(1, 10**12 - 1),
)
NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)


@given(st.lists(st.tuples(NAMES, LIMITS, st.booleans()), min_size=1, max_size=5, unique_by=lambda one: one[0]))
def test_what_is_written_is_read(found: list[tuple[str, Limits, bool]]) -> None:
    keys = [
        Key(name, digest(f"{number}"), Limits() if is_admin else limits, is_admin)
        for number, (name, limits, is_admin) in enumerate(found)
    ]
    assert read_lines("# keys\n\n" + "\n".join(f"{written(key)}  # of a client" for key in keys)) == keys


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key"),
        ("# nobody\n", "no key"),
        ("a secret-key\n", "line 1: expected the SHA-256"),
        ("a", "line 1: expected the SHA-256"),
        (f"\na/b {digest('k')}", "line 2: expected a name"),
        (f"a {digest('k').upper()}", "not the key itself"),
        (f"a {digest('k')} rate=0/s", "rate is a number"),
        (f"a {digest('k')} rate=5", "rate is a number"),
        (f"a {digest('k')} images=5/week", "quota is a number"),
        (f"a {digest('k')} rate=1/s rate=2/s", "each once"),
        (f"a {digest('k')} root", "rate=N/s"),
        (f"a {digest('k')} admin rate=1/s", "sends no images"),
        (f"a {digest('k')}\nb {digest('k')}", "two lines"),
        (f"a {digest('k')} rate=1/s\na {digest('l')}", "keys named a"),
    ],
)
def test_a_line_that_is_wrong_is_named_without_what_stands_there(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        read_lines(text)
    assert "secret" not in str(refused.value) and digest("k") not in str(refused.value)


def test_a_new_key_is_shown_once_and_its_line_opens_for_it_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert key_command(["lab-a", "--rate", "600/min", "--images", "5000/day"]) == 0
    said = capsys.readouterr()
    secret = said.err.split()[-1]
    assert secret not in said.out and len(secret) > 40
    (tmp_path / "keys").write_text(said.out)
    ring = KeyRing([], str(tmp_path / "keys"), every_s=3600)
    found = ring.check(secret)
    assert found == Key("lab-a", digest(secret), Limits(Rate(600, 60.0), 5000))
    for wrong, reason in (
        (None, KeyMissing),
        ("", KeyMissing),
        (secret[:-1], KeyRefused),
        (digest(secret), KeyRefused),
    ):
        with pytest.raises(reason):
            ring.check(wrong)
    with pytest.raises(KeyRefused):
        ring.check(secret, is_admin=True)
    ring.close()
    for flags in (["a b"], ["a", "--rate", "7"], ["a", "--admin", "--images", "1/day"]):
        assert key_command(flags) == 2
        assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_used_is_refused_before_a_start(tmp_path: Path) -> None:
    file, model = tmp_path / "keys", "/nowhere"
    for content, words in (
        (None, "cannot be read"),
        (b"", "no key"),
        (b"\xff\xfe", "no text"),
        (b"#" * (1 << 21), "no file of keys"),
        (f"ops {digest('k')} admin".encode(), "administrators' keys alone"),
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(InputError, match=words):
            check_guards(ServingSettings(model=model, keys_file=str(file)))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no file"):
        check_guards(ServingSettings(model=model, keys_file=str(tmp_path / "pipe")))
    with pytest.raises(UsageError, match="not S3"):
        check_guards(ServingSettings(model=model, keys_file="s3://lab/keys"))


def test_a_key_has_its_limits_in_one_place(tmp_path: Path) -> None:
    """One that stays in the environment would have none, whatever the file says."""
    file = tmp_path / "keys"
    for is_admin in (False, True):
        file.write_text(f"other {digest('o')}\nlab {digest('k')} rate=10/min\n")
        with pytest.raises(InputError, match="line 2: this key is also one of") as refused:
            KeyRing(unnamed([digest("k")], is_admin=is_admin), str(file), every_s=3600)
        assert digest("k") not in str(refused.value)
        file.write_text(f"other {digest('o')}\n")
        ring = KeyRing(unnamed([digest("k")], is_admin=is_admin), str(file), every_s=3600)
        file.write_text(f"lab {digest('k')} rate=10/min\n")
        ring.look()
        assert ring.broken is not None and ring.broken.startswith("line 1: this key")
        assert ring.check("o") == Key("other", digest("o"))
        ring.close()


def test_a_file_that_others_may_read_or_write_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch()
    for mode, word in ((0o640, None), (0o644, "may read"), (0o662, "may write")):
        file.chmod(mode)
        said = open_to_others(str(file))
        assert said is None if word is None else said is not None and word in said


# ---- the service -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=32, synthetic=True).uri


class Service:
    """One replica and its desk."""

    def __init__(self, model_uri: str, **settings: Any) -> None:
        checked = ServingSettings(**{"model": model_uri, **settings})
        self.engine = Engine(checked, load_model(checked.model, checked))
        self.desk = Desk(checked, self.engine.recorder)
        self._app = create_app(
            self.engine, answering=Answering(self.engine, self.desk, Admission(self.engine.settings))
        )

    @contextlib.asynccontextmanager
    async def asking(self) -> Any:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http

    def ask(self, method: str, path: str, key: str | None = None, **options: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            headers = {"x-api-key": key} if key else {}
            async with self.asking() as http:
                answer: httpx.Response = await http.request(method, path, headers=headers, **options)
                return answer

        return asyncio.run(once())


@pytest.fixture
def make(model_uri: str) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def build(**settings: Any) -> Service:
        made.append(Service(model_uri, **settings))
        return made[-1]

    yield build
    for service in made:
        service.desk.keys.close()


def test_keys_are_rotated_by_the_file_and_a_broken_one_changes_nothing_but_says_so(
    make: Callable[..., Service], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"

    def put(text: str) -> None:
        draft = tmp_path / "draft"  # another inode each time: as an editor, or Kubernetes, does it
        draft.write_text(text)
        draft.replace(file)
        service.desk.keys.look()

    def statuses(*keys: str) -> list[int]:
        return [service.ask("POST", "/predict", key, content=picture()).status_code for key in keys]

    file.write_text(f"lab {digest('old')}\n")
    service = make(keys_file=str(file), api_key_sha256=(digest("settings"),))
    assert service.ask("POST", "/predict", content=picture()).status_code == 401
    assert statuses("old", "new", "settings") == [200, 403, 200]
    put(f"lab {digest('old')}\nlab {digest('new')}\n")
    assert statuses("old", "new", "settings") == [200, 200, 200]
    put(f"lab {digest('new')}\n")
    assert statuses("old", "new", "settings") == [403, 200, 200]
    assert service.ask("GET", "/readyz").json()["keys_refused"] is None
    put("lab torn\n")
    assert statuses("old", "new", "settings") == [403, 200, 200]
    said = service.ask("GET", "/readyz").json()["keys_refused"]
    assert said.startswith("line 1: ") and str(tmp_path) not in said and "torn" not in said
    assert "leukoray_replicas_with_old_keys 1.0" in service.ask("GET", "/metrics").text
    file.unlink()
    service.desk.keys.look()
    assert "cannot be read" in service.ask("GET", "/readyz").json()["keys_refused"]
    assert statuses("new") == [200]
    assert [record.levelname for record in caplog.records if "keys stay as they were" in record.message] == [
        "ERROR"
    ] * 2
    put(f"lab {digest('last')}\n")
    assert statuses("new", "last") == [403, 200]
    assert service.ask("GET", "/readyz").json()["keys_refused"] is None
    assert "leukoray_replicas_with_old_keys 0.0" in service.ask("GET", "/metrics").text


def test_a_changed_file_is_seen_without_a_request(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"lab {digest('old')}\n")
    ring = KeyRing([], str(file), every_s=0.01)
    file.write_text(f"lab {digest('another')}\n")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(KeyRefused):
            assert ring.check("another") is not None
            break
        time.sleep(0.01)
    with pytest.raises(KeyRefused):
        ring.check("old")
    ring.close()


def test_a_key_over_its_rate_is_429_and_told_when_to_come_back(make: Callable[..., Service], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"slow {digest('s')} rate=2/min\nfree {digest('f')}\n")
    service = make(keys_file=str(tmp_path / "keys"))
    answers = [service.ask("POST", "/explain", "s", content=b"") for _ in range(3)]  # what is refused counts as well
    assert [answer.status_code for answer in answers] == [400, 400, 429]
    error = answers[-1].json()
    assert (error["status"], error["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
    assert service.ask("POST", "/predict", "f", content=picture()).status_code == 200
    v2 = service.ask("POST", "/v2/models/tiny-linear/infer", "s", content=b"{}")
    assert v2.status_code == 429 and set(v2.json()) == {"error"}


def test_a_quota_counts_images_whole_requests_at_a_time(make: Callable[..., Service], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"lab {digest('k')} images=4/day\n")
    service = make(keys_file=str(tmp_path / "keys"))
    files = [("files", (f"{number}.png", picture("PNG", number))) for number in range(3)]
    assert service.ask("POST", "/predict", "k", files=files).status_code == 200
    refused = service.ask("POST", "/predict?format=fhir", "k", files=files)
    assert refused.status_code == 429
    assert refused.json()["issue"][0]["code"] == "throttled"
    assert "1 of 4 images" in refused.json()["issue"][0]["diagnostics"]
    assert 0 < int(refused.headers["retry-after"]) <= DAY_S
    assert service.ask("POST", "/predict", "k", content=b"no image").status_code == 415  # it was looked at, and counts
    assert service.ask("POST", "/predict", "k", content=picture()).json()["error"]["code"] == "quota_spent"


def test_images_that_fail_here_are_given_back_to_the_quota(make: Callable[..., Service], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"lab {digest('k')} images=1/day\n")
    service = make(keys_file=str(tmp_path / "keys"))
    works = service.engine._predict

    async def fails(*given: Any) -> Any:
        raise RuntimeError("the graph is broken")

    service.engine._predict = fails
    assert [service.ask("POST", "/predict", "k", content=picture()).status_code for _ in range(2)] == [500, 500]
    service.engine._predict = works
    assert [service.ask("POST", "/predict", "k", content=picture()).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("path", ["/predict", "/predict?format=dicom-sr", "/v2/models/tiny-linear/infer"])
def test_one_image_of_several_that_fails_here_is_given_back(
    make: Callable[..., Service], tmp_path: Path, path: str
) -> None:
    """Whatever the whole request is answered: the others were looked at, and count."""
    (tmp_path / "keys").write_text(f"lab {digest('k')} images=3/day\n")
    service = make(keys_file=str(tmp_path / "keys"))
    works = service.engine.answer
    sent = [dicom(np.full((40, 40, 3), shade, np.uint8), SOPInstanceUID=f"1.2.{shade}") for shade in (10, 90)]
    sent.insert(0, sent[0][: len(sent[0]) // 2])

    async def overloaded(model: Any, data: bytes) -> Any:
        if data == sent[2]:
            raise HttpError(503, "overloaded", "no room for it")
        return await works(model, data)

    service.engine.answer = overloaded
    body: dict[str, Any] = {"files": [("files", (f"{place}.dcm", data)) for place, data in enumerate(sent)]}
    if path.startswith("/v2"):
        texts = [base64.b64encode(data).decode() for data in sent]
        body = {"json": {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [3], "data": texts}]}}
    assert service.ask("POST", path, "k", **body).status_code == (200 if path == "/predict" else 422)
    assert [service.ask("POST", "/predict", "k", content=picture()).status_code for _ in range(2)] == [200, 429]


def test_where_nobody_counts_a_limited_key_gets_503_and_an_unlimited_one_its_answer(
    make: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.keys.purse._PATIENCE_S", 0.0)
    (tmp_path / "keys").write_text(f"lab {digest('k')} rate=1/s\nfree {digest('f')}\n")
    service = make(keys_file=str(tmp_path / "keys"))

    async def lost(asked: Ask) -> Share:
        raise NoBudgets("the actor is gone")

    service.desk._purse._lease = lost
    answer = service.ask("POST", "/predict", "k", content=picture())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "limits_unknown")
    assert answer.headers["retry-after"] == "1"
    assert service.ask("POST", "/predict", "f", content=picture()).status_code == 200


# ---- the sum over replicas -------------------------------------------------------------------------------------------


class World:
    """A clock that tests turn, and replicas that share one who counts."""

    def __init__(self, replicas: int) -> None:
        self.seconds = 10 * DAY_S
        self.budgets = Budgets(self.now, self.now)
        self.purses = [Purse(self.lease, self.now, self.now) for _ in range(replicas)]
        self.asked = 0

    def now(self) -> float:
        return self.seconds

    async def lease(self, asked: Ask) -> Share:
        self.asked += 1
        return self.budgets.share(asked)


async def counted(work: Any) -> bool:
    try:
        await work
    except LimitReached:
        return False
    return True


@given(
    st.integers(1, 400), st.sampled_from([1.0, 60.0]),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 2), st.integers(1, 40)), min_size=1, max_size=60),
)  # fmt: skip
def test_no_order_of_requests_gets_more_than_the_rate_and_what_is_ahead(
    requests: int, seconds: float, steps: list[tuple[int, float, int]]
) -> None:
    key, world = Key("lab", "", Limits(Rate(requests, seconds))), World(3)

    async def story() -> None:
        times: list[float] = []
        for replica, pause_s, burst in steps:
            world.seconds += pause_s
            for _ in range(burst):
                if await counted(world.purses[replica].request(key)):
                    times.append(world.seconds)
        per_s = requests / seconds
        ahead = 3 * max(1, -(-per_s // 4))
        for first, begin in enumerate(times):
            for last in range(first, len(times)):
                most = requests + per_s * (times[last] - begin) + ahead
                assert last - first + 1 <= most + 1e-6

    asyncio.run(story())


@given(
    st.integers(1, 2000),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 32), st.booleans()), min_size=1, max_size=150),
)
def test_no_order_of_images_gets_more_than_the_quota_and_what_is_lost_is_small(
    quota: int, steps: list[tuple[int, int, bool]]
) -> None:
    """Replicas die (True) in between, and take what they had in hand along."""
    key, world = Key("lab", "", Limits(None, quota)), World(3)

    async def story() -> None:
        spent = deaths = 0
        for replica, images, dies in steps:
            if await counted(world.purses[replica].images(key, images)):
                spent += images
            if dies:
                deaths += 1
                world.purses[replica] = Purse(world.lease, world.now, world.now)
        assert spent <= quota
        in_hand = sum(purse._pocket(key).images for purse in world.purses)
        used = world.budgets._accounts["lab"].used
        assert used - spent - in_hand <= deaths * (quota // 100)

    asyncio.run(story())


def test_most_requests_are_counted_without_asking_and_a_refused_crowd_asks_nobody() -> None:
    key, world = Key("lab", "", Limits(Rate(1000, 1.0), 100_000)), World(1)

    async def story() -> None:
        for _ in range(1000):
            assert await counted(world.purses[0].request(key)) and await counted(world.purses[0].images(key, 1))
        assert world.asked <= 4 + 1
        before = world.asked
        assert not any([await counted(world.purses[0].request(key)) for _ in range(1000)])
        assert world.asked == before + 1

    asyncio.run(story())


def test_what_one_replica_does_not_need_another_gets_and_the_next_day_begins_anew() -> None:
    key, world = Key("lab", "", Limits(None, 1000)), World(2)

    async def story() -> None:
        first, second = world.purses
        await first.images(key, 1)
        assert first._pocket(key).images == 9
        world.seconds += 1.5
        returning = first._pocket(key).returning
        assert returning is not None
        await returning
        assert not await counted(second.images(key, 1000))
        assert await counted(second.images(key, 999))
        assert not await counted(first.images(key, 1))
        world.seconds += DAY_S
        assert await counted(second.images(key, 1000))

    asyncio.run(story())


def test_images_of_yesterday_are_not_given_back_to_today() -> None:
    key, world = Key("lab", "", Limits(None, 100)), World(1)

    async def story() -> None:
        (purse,) = world.purses
        day = await purse.images(key, 32)
        world.seconds += DAY_S
        await purse.give_back(key, 32, day)
        today = await purse.images(key, 100)
        await purse.give_back(key, 32, day)
        assert not await counted(purse.images(key, 1))
        await purse.give_back(key, 5, today)
        assert await counted(purse.images(key, 5)) and not await counted(purse.images(key, 1))

    asyncio.run(story())


@given(
    st.integers(1, 500),
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 32), st.sampled_from(["heard", "unheard", "unsent"])), max_size=60
    ),
)
def test_an_ask_that_comes_late_or_twice_is_counted_once(quota: int, steps: list[tuple[int, int, str]]) -> None:
    """Whether or not its answer is heard. 0 images: a replica returns what it has in hand."""
    key, world, fate = Key("lab", "", Limits(None, quota)), World(0), "heard"
    asks: list[Ask] = []

    async def lease(asked: Ask) -> Share:
        if fate == "unsent":
            raise NoBudgets(fate)
        asks.append(asked)
        share = world.budgets.share(asked)
        if fate == "unheard":
            raise NoBudgets(fate)
        return share

    async def story() -> None:
        nonlocal fate
        purses, spent = [Purse(lease, world.now, world.now) for _ in range(3)], 0
        for replica, images, comes in [*steps, *((replica, 0, "heard") for replica in range(3))]:
            fate = comes
            world.seconds += 2
            for late in asks[-5:]:
                world.budgets.share(late)
            with contextlib.suppress(LimitReached, NoBudgets):
                if images == 0:
                    await purses[replica]._has_returned(purses[replica]._pocket(key), key, is_told=True)
                else:
                    await purses[replica].images(key, images)
                    spent += images
        account = world.budgets._accounts.get("lab")
        assert (0 if account is None else account.used) == spent <= quota

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.keys.purse._PATIENCE_S", -1.0)
        asyncio.run(story())


def test_one_who_counts_and_is_started_anew_hears_from_replicas_what_was_spent() -> None:
    key, world = Key("lab", "", Limits(None, 100)), World(2)

    async def story() -> None:
        for _ in range(40):
            await world.purses[0].images(key, 2)
        world.budgets = Budgets(world.now, world.now)
        assert await counted(world.purses[0].images(key, 20))
        assert not await counted(world.purses[1].images(key, 1))

    asyncio.run(story())


def test_a_crowd_that_waits_for_one_who_counts_is_told_at_once_when_the_first_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.keys.purse._PAUSE_S", 0.0)
    key, world = Key("lab", "", Limits(Rate(1, 1.0))), World(1)

    async def lost(asked: Ask) -> Share:
        world.asked += 1
        world.seconds += 1
        raise NoBudgets("the actor is gone")

    async def story() -> None:
        (purse,) = world.purses
        purse._lease = lost
        found = await asyncio.gather(*(purse.request(key) for _ in range(20)), return_exceptions=True)
        assert {type(one) for one in found} == {NoBudgets} and world.asked < 10
        purse._lease = world.lease
        world.seconds += 2
        assert await counted(purse.request(key))

    asyncio.run(story())
