"""Where an image speaks for its class, over HTTP: as a picture, as numbers, and an error where it cannot be told."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.engine import Engine
from serving.explain import SIDE
from serving.model import load_model
from serving.settings import ServingSettings
from tests.asgi import call, picture
from tests.bundles import make_bundle, make_mapped_bundle
from tests.unit.test_maps import red_at

SIZE = 64
ROOT = Path(__file__).parents[2]
JSON = {"accept": "application/json"}


def built(uri: str) -> Engine:
    settings = ServingSettings(model=uri)
    return Engine(settings, load_model(settings.model, settings))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return built(make_mapped_bundle(tmp_path_factory.mktemp("bundle"), SIZE).uri)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png(red_at(SIZE, 8, 40)), png(red_at(SIZE, 8, 40)[:, :, ::-1].copy())


def test_the_picture_is_gray_and_orange_where_the_class_is(engine: Engine) -> None:
    answer = call(engine, "POST", "/explain", content=RED)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    drawn = Image.open(io.BytesIO(answer.content))
    assert drawn.size == (SIDE, SIDE) and "not a medical device" in drawn.text["Comment"]  # type: ignore[attr-defined]
    said = json.loads(drawn.text["Description"])  # type: ignore[attr-defined]
    expected = call(engine, "POST", "/predict", content=RED).json()
    assert (said["probability"], said["decision"]) == (expected["probability"], expected["decision"])
    assert said["map_of"] == "positive" and said["sha256"] == engine.model.info.sha256
    pixels, scale = np.asarray(drawn, np.int64), SIDE // SIZE
    hot, cold = pixels[9 * scale : 15 * scale, 41 * scale : 47 * scale], pixels[SIDE // 2 :]
    assert (hot[..., 0] - hot[..., 2]).mean() > 50  # orange
    assert np.ptp(cold, axis=-1).max() == 0  # gray


@pytest.mark.parametrize("path", ["/explain", "/predict?explain=1"])
def test_the_map_as_numbers_comes_with_the_same_answer_as_without_it(engine: Engine, path: str) -> None:
    for image in (RED, BLUE):
        plain = call(engine, "POST", "/predict", content=image).json()
        answer = call(engine, "POST", path, content=image, headers=JSON).json()
        assert plain["explanation"] is None
        for name in ("probability", "classes", "decision", "threshold", "model", "image"):
            assert answer[name] == plain[name]
        told = answer["explanation"]
        [map_], [peak] = engine.model.predictor.maps([engine.model.predictor.load(image).pixels], ["positive"])
        assert np.asarray(told["map"]) == pytest.approx(map_, abs=1e-4)
        assert told["of"] == "positive" and told["peak"] == pytest.approx(peak, rel=1e-6)
    assert told["peak"] == 0 and told["text"].startswith("no place speaks for positive")


def test_every_file_of_several_has_its_map(engine: Engine) -> None:
    files = [("files", ("a", RED)), ("files", ("b", b"no image")), ("files", ("c", BLUE))]
    first, second, third = call(engine, "POST", "/predict?explain=1", files=files).json()["results"]
    assert first["prediction"]["explanation"]["peak"] > 0 and third["prediction"]["explanation"]["peak"] == 0
    assert second["error"]["code"] == "unsupported_format"


def test_of_many_classes_the_map_is_of_the_one_that_is_named(tmp_path: Path) -> None:
    engine = built(make_mapped_bundle(tmp_path, SIZE, task="multiclass").uri)
    for image in (RED, BLUE):
        answer = call(engine, "POST", "/explain", content=image, headers=JSON).json()
        assert answer["explanation"]["of"] == answer["class_name"]


def test_a_model_without_a_map_says_so(tmp_path: Path) -> None:
    engine = built(make_bundle(tmp_path, SIZE).uri)
    files = [("files", ("a.png", RED))]
    answers: list[httpx.Response] = [
        call(engine, "POST", "/explain", content=RED),
        call(engine, "POST", "/explain", content=RED, headers=JSON),
        call(engine, "POST", "/predict?explain=1", content=RED),
        call(engine, "POST", "/predict?explain=1", files=files),
    ]
    for answer in answers:
        assert answer.status_code == 409 and answer.json()["error"]["code"] == "no_map"
        assert "no map is known of its network (linear)" in answer.json()["detail"]
    assert call(engine, "POST", "/predict?explain=0", content=RED).status_code == 200


@pytest.mark.parametrize("accept", [JSON, {"accept": "image/png, application/json"}, {}])
def test_bad_images_and_values_are_told_as_everywhere(engine: Engine, accept: dict[str, str]) -> None:
    for content, status, code in (
        (b"", 400, "empty"),
        (b"text", 415, "unsupported_format"),
        (RED[:90], 422, "truncated"),
    ):
        answer = call(engine, "POST", "/explain", content=content, headers=accept)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    for asked in ("yes", "", "1&explain=0", "0&explain=0"):
        assert call(engine, "POST", f"/predict?explain={asked}", content=RED).status_code == 400
    answer = call(engine, "POST", "/predict?explain=yes", content=picture())
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


def test_a_replica_that_explains_imports_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    bundle = make_mapped_bundle(tmp_path, SIZE)
    code = f"""
import asyncio, base64, sys
import serving.app
from serving.engine import Engine
from serving.explain import drawn, explained
from serving.model import load_model
from serving.settings import ServingSettings
settings = ServingSettings(model={bundle.uri!r})
engine = Engine(settings, load_model(settings.model, settings))
image = base64.b64decode({base64.b64encode(RED)!r})
async def both():
    assert (await drawn(engine, engine.model, image))[1:4] == b"PNG"
    assert (await explained(engine, engine.model, image)).explanation.peak > 0
asyncio.run(both())
heavy = [name for name in ("torch", "torchvision", "matplotlib", "sklearn", "ray.data") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
