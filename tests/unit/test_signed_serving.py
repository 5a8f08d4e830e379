"""A service with a key answers with signed models alone: at start, after best.json moves, on trial, after a change."""

import asyncio
from pathlib import Path

import pytest

from pipeline.base.errors import InputError, UsageError
from pipeline.model.bundle import GRAPH, Bundle
from pipeline.model.registry import ModelFolder, resolve
from pipeline.model.signature import sign
from serving.agreed import CandidateWish
from serving.app import build
from serving.model import load_bundle
from serving.settings import ServingSettings, read_settings
from tests.agreeing import quicken, running, until
from tests.bundles import make_bundle
from tests.keys import Keys, make_keys


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path)


@pytest.fixture
def registry(tmp_path: Path, keys: Keys) -> list[Bundle]:
    """Two signed versions of one model, the first the best, and one that nobody has signed."""
    folder = tmp_path / "models" / "blast"
    found = [make_bundle(folder / f"v{seed}", size=8, seed=seed, version=f"v{seed}") for seed in (1, 2, 3)]
    for bundle in found[:2]:
        sign(bundle, keys.private)
    ModelFolder(str(folder)).point_to(found[0])
    return found


def folder_of(bundle: Bundle) -> ModelFolder:
    return ModelFolder(bundle.uri.rpartition("/")[0])


def test_a_model_that_is_followed_to_must_be_signed(registry: list[Bundle], keys: Keys) -> None:
    first, second, unsigned = registry

    async def story() -> None:
        async with running(folder_of(first).uri, 2, follow_s=5, verify=keys.pem) as service:
            folder_of(first).point_to(unsigned)
            await service.keeper.look()
            await until(lambda: all(engine.news.refused for engine in service.engines), "every replica says why")
            assert "v3: is not signed" in str(service.engines[0].news.refused)
            assert service.answers() == {first.info.identity()}
            outcome = await service.members[0].order("reload")
            assert not outcome.has_changed and "is not signed" in outcome.refused
            folder_of(first).point_to(second)
            await service.keeper.look()
            assert service.answers() == {second.info.identity()}

    asyncio.run(story())


def test_no_replica_starts_on_what_is_not_signed(registry: list[Bundle], keys: Keys) -> None:
    async def story() -> None:
        async with running(registry[2].uri, 0, verify=keys.pem) as service:
            with pytest.raises(InputError, match="is not signed"):
                await service.add()

    asyncio.run(story())


def test_a_candidate_must_be_signed(registry: list[Bundle], keys: Keys) -> None:
    first, second, unsigned = registry

    async def story() -> None:
        async with running(first.uri, 1, verify=keys.pem) as service:
            await service.add(candidate=CandidateWish(model=unsigned.uri))
            await service.tend()
            assert service.engines[0].candidate.model is None
            assert "is not signed" in str(service.keeper.trials.now.refused)
            await service.add(candidate=CandidateWish(model=second.uri))
            await service.tend()
            await until(lambda: service.engines[0].candidate.model is not None, "the signed one is on trial")

    asyncio.run(story())


def test_replicas_that_ask_for_a_key_do_not_take_what_was_agreed_without_one(
    registry: list[Bundle], keys: Keys
) -> None:
    """The same model under a new configuration: what the keeper has was never checked."""
    signed, unsigned = registry[0], registry[2]

    async def story() -> None:
        for bundle in (signed, unsigned):
            async with running(bundle.uri, 1) as service:
                service.settings = ServingSettings(model=bundle.uri, verify=keys.pem)
                if bundle is signed:
                    engine = await service.add()
                    assert engine.model.predictor.bundle.signed_by
                else:
                    with pytest.raises(InputError, match="signature was not checked"):
                        await service.add()

    asyncio.run(story())


def test_every_bundle_that_answers_comes_by_the_check(registry: list[Bundle], keys: Keys, tmp_path: Path) -> None:
    settings = ServingSettings(model=registry[0].uri, verify=keys.pem)
    assert load_bundle(resolve(registry[0].uri, verify=keys.pem), settings).info.version == "v1"
    other = make_keys(tmp_path, "other")
    sign(registry[1], other.private)
    for bundle in (registry[0], registry[2], resolve(registry[1].uri, verify=other.pem)):
        with pytest.raises(InputError, match="was not checked with the key of this service"):
            load_bundle(bundle, settings)


def test_the_service_is_not_built_on_what_is_not_as_it_was_signed(registry: list[Bundle], keys: Keys) -> None:
    path = Path(registry[0].uri, GRAPH)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"model\.onnx is not what was signed"):
        build({"model": registry[0].uri, "verify": keys.public})


def test_the_key_travels_as_text(keys: Keys, tmp_path: Path) -> None:
    assert read_settings({"model": "m", "verify": keys.public}).verify == keys.pem
    assert read_settings({"model": "m", "verify": keys.pem}).verify == keys.pem
    with pytest.raises((InputError, UsageError), match="private key"):
        read_settings({"model": "m", "verify": keys.private})
