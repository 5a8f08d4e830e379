"""A candidate's share of what comes by the Open Inference Protocol, over REST and gRPC."""

import asyncio
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.model.bundle import Bundle
from serving.admission import Admission
from serving.candidate import is_in_share
from serving.desk import Desk
from serving.protocols.oip.answering import Answering
from serving.protocols.oip.rpc.messages import CLASSES
from serving.protocols.oip.rpc.service import Rpc
from tests.agreeing import Service, quicken, running, until
from tests.asgi import picture
from tests.bundles import make_bundle, make_familiar_bundle
from tests.unit.test_canary_failures import candidate_of, counted
from tests.unit.test_trials import compared, on_trial, wish

HEADER = "inference-header-content-length"
NAME = "tiny-linear"
Images = list[bytes] | NDArray[np.uint8]


class Told(NamedTuple):
    version: str
    probabilities: list[float]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Two of one size, the second of another name, and one that takes its images larger."""
    folder = tmp_path_factory.mktemp("models")
    one = make_bundle(folder / "v1", size=16, seed=1, version="v1")
    other = make_bundle(folder / "v2", size=16, seed=1, version="v2", bias=0.2, name="another-name")
    return [one, other, make_bundle(folder / "v3", size=24, seed=1, version="v3", bias=0.2)]


def pixels(count: int, size: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)


def _sent(images: Images) -> tuple[str, list[int], bytes]:
    if isinstance(images, np.ndarray):
        return "UINT8", list(images.shape), images.tobytes()
    return "BYTES", [len(images)], b"".join(struct.pack("<I", len(image)) + image for image in images)


async def over_rest(service: Service, images: Images, request_id: str = "r", version: str = "") -> httpx.Response:
    datatype, shape, data = _sent(images)
    given = {"name": "image", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [given]}).encode()
    place = f"/v2/models/{NAME}" + (f"/versions/{version}" if version else "")
    headers = {HEADER: str(len(text)), "x-request-id": request_id}
    async with service.asking() as http:
        return await http.post(f"{place}/infer", content=text + data, headers=headers)


def said_over_rest(answer: httpx.Response) -> Told:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model_name"] == NAME, "the one that was asked for"
    [values] = [output["data"] for output in body["outputs"] if output["name"] == "probability"]
    return Told(body["model_version"], values)


async def over_grpc(service: Service, images: Images, request_id: str = "r", version: str = "") -> Told:
    engine = service.engines[0]
    datatype, shape, data = _sent(images)
    request = CLASSES["ModelInferRequest"](model_name=NAME, model_version=version, raw_input_contents=[data])
    request.inputs.add(name="image", datatype=datatype, shape=shape)
    rpc = Rpc(Answering(engine, Desk(engine.settings, engine.recorder), Admission(engine.settings)))
    reply = await rpc.call("ModelInfer", request.SerializeToString(), [("x-request-id", request_id)])
    assert reply.status == "OK", reply
    answer = CLASSES["ModelInferResponse"].FromString(reply.message)
    assert answer.model_name == NAME and answer.outputs[0].name == "probability"
    return Told(answer.model_version, np.frombuffer(answer.raw_output_contents[0], "<f4").tolist())


@pytest.mark.parametrize("are_pixels", [False, True])
def test_the_share_and_its_ids_are_those_of_predict(bundles: list[Bundle], are_pixels: bool) -> None:
    old, new, _ = bundles
    images: Images = pixels(2) if are_pixels else [picture("PNG", 1), picture("PNG", 2)]

    async def story() -> None:
        async with running(old.uri, 1) as service:
            trial = await on_trial(service, wish(new, share=0.5))
            engine = service.engines[0]
            load = engine.model.predictor.load
            decoded = list(images) if are_pixels else [load(image).pixels for image in images]
            expected = {
                model.info.version: [said.probability for said in model.predictor.predict_each(decoded)]  # type: ignore[union-attr]
                for model in (engine.model, candidate_of(service))
            }
            assert expected["v1"] != pytest.approx(expected["v2"])
            seen = set()
            for k in range(12):
                wanted = "v2" if is_in_share(new.info.identity(), f"id-{k}", 0.5) else "v1"
                for told in (
                    said_over_rest(await over_rest(service, images, f"id-{k}")),
                    await over_grpc(service, images, f"id-{k}"),
                ):
                    assert told.version == wanted and told.probabilities == pytest.approx(expected[wanted])
                seen.add(wanted)
            assert seen == {"v1", "v2"}
            await compared(service, trial, 48)
            assert sum(count for name, count in counted(service).items() if name.startswith("candidate_requests")) == 24

    asyncio.run(story())


def test_a_version_that_is_named_is_the_one_that_answers(bundles: list[Bundle]) -> None:
    old, new, _ = bundles

    async def story() -> None:
        async with running(old.uri, 1) as service:
            await on_trial(service, wish(new, share=1.0))
            assert said_over_rest(await over_rest(service, [picture()])).version == "v2"
            assert said_over_rest(await over_rest(service, [picture()], version="v1")).version == "v1"
            assert (await over_rest(service, [picture()], version="v2")).status_code == 404
            assert (await over_grpc(service, [picture()], version="v1")).version == "v1"

    asyncio.run(story())


def test_pixels_of_another_size_are_for_the_model_whose_size_was_told(bundles: list[Bundle]) -> None:
    old, _, larger = bundles

    async def story() -> None:
        async with running(old.uri, 1) as service:
            await on_trial(service, wish(larger, share=1.0))
            assert said_over_rest(await over_rest(service, pixels(1))).version == "v1"
            assert (await over_grpc(service, pixels(1))).version == "v1"
            assert said_over_rest(await over_rest(service, [picture()])).version == "v3"
            found = counted(service)
            assert (found["candidate_requests agreed"], found["candidate_requests candidate"]) == (2, 1)

    asyncio.run(story())


def test_outputs_are_those_that_metadata_tell_of_whoever_answers(tmp_path: Path) -> None:
    own = [picture("PNG", seed) for seed in range(80)]
    plain = make_bundle(tmp_path / "plain", size=16, version="v1")
    knows = make_familiar_bundle(tmp_path / "knows", own, size=16, version="v2")

    async def names(service: Service) -> tuple[str, list[str]]:
        body = (await over_rest(service, [picture()])).json()
        return body["model_version"], [output["name"] for output in body["outputs"]]

    async def story() -> None:
        async with running(plain.uri, 1) as service:
            await on_trial(service, wish(knows, share=1.0))
            assert await names(service) == ("v2", ["probability", "class_probabilities", "class", "decision"])
        async with running(knows.uri, 1) as service:
            await on_trial(service, wish(plain, share=1.0))
            version, found = await names(service)
            assert version == "v2" and {"is_ood", "ood_score"} <= set(found), "what plain lacks"

    asyncio.run(story())


@pytest.mark.parametrize("are_pixels", [False, True])
def test_where_it_fails_the_other_model_answers_and_each_image_counts(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch, are_pixels: bool
) -> None:
    old, new, _ = bundles
    images: Images = pixels(3) if are_pixels else [picture("PNG", seed) for seed in range(3)]

    async def story() -> None:
        async with running(old.uri, 1) as service:
            await on_trial(service, wish(new, share=1.0))

            def fails(pixels: Any) -> Any:
                raise MemoryError("no room")

            monkeypatch.setattr(candidate_of(service).predictor, "predict_each", fails)
            assert said_over_rest(await over_rest(service, images)).version == "v1"
            assert (await over_grpc(service, images)).version == "v1"
            await until(lambda: counted(service)["candidate_images unanswered"] == 6, "each image of both requests")
            found = counted(service)
            assert (found["candidate_requests fallback"], found["predictions"], found["images_refused"]) == (2, 6, 0)

    asyncio.run(story())
