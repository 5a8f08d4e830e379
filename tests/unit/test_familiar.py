"""What a reference is fitted to when a model is published: its own images as they are, wherever their pixels lie."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.evaluation import ood
from pipeline.evaluation.ood import Fitted
from pipeline.images.appearance import appearances
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.drift import OOD_SCORE
from pipeline.model.export import to_onnx
from pipeline.model.outputs import FEATURES
from pipeline.sources.manifest import Manifest
from pipeline.storage.local import local_etag
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache
from pipeline.training.decoded import decode
from pipeline.training.familiar import Familiar, drawn
from pipeline.training.features import session_of
from pipeline.training.rows import LabelledRows, labelled_rows
from tests.training_data import cell_images, manifest_of
from tests.training_settings import training_settings

SIZE = 32
pytestmark = pytest.mark.filterwarnings("error")
SETTINGS = training_settings(input_size=SIZE)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Two thirds of 120 images for training, one of them damaged."""
    folder = tmp_path_factory.mktemp("cells")
    rows = cell_images(folder / "images", 120)
    damaged = Path(rows[0]["uri"])
    damaged.write_bytes(b"no image")
    rows[0]["etag"] = local_etag(damaged.stat())
    return manifest_of(rows, folder / "manifest")


@pytest.fixture(scope="module")
def rows(manifest: Manifest) -> LabelledRows:
    return labelled_rows(manifest)


@pytest.fixture(scope="module")
def graph() -> bytes:
    return to_onnx(build("cnn", 1), SIZE)


def fitted(graph: bytes, rows: LabelledRows, manifest: Manifest, cache: PixelCache | None) -> Fitted:
    found = Familiar(Stores(), cache).fit(graph, SETTINGS, rows, manifest).ood
    assert found is not None
    return found


def test_pixels_kept_in_a_cache_and_decoded_ones_give_the_same(
    graph: bytes, rows: LabelledRows, manifest: Manifest, tmp_path: Path
) -> None:
    without = fitted(graph, rows, manifest, None)
    assert without.rule.training_images == 79 and without.rule.images == 40
    pixels = Preprocessing(SIZE)
    cache = PixelCache(str(tmp_path), pixels, None)
    assert fitted(graph, rows, manifest, cache) == without  # an empty one
    some = pa.concat_tables([rows.train.slice(0, 30), rows.validation]).combine_chunks()
    placed = cache.put(decode(some, pixels), "node")
    assert fitted(graph, rows, manifest, cache).rule.images == 40
    path = Path(cache.path(placed.name))
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 255  # within the pixels of the last image, which are decoded again then
    path.write_bytes(damaged)
    again = fitted(graph, rows, manifest, cache)
    assert again.rule.threshold == pytest.approx(without.rule.threshold, rel=1e-4)
    assert again.rule.training_images == 79 and again.rule.images == 40


def test_statistics_are_of_both_splits_and_the_features_of_validation_alone(
    graph: bytes, rows: LabelledRows, manifest: Manifest
) -> None:
    own = Familiar(Stores(), None).fit(graph, SETTINGS, rows, manifest)
    assert own.ood is not None and own.statistics is not None
    known = own.statistics
    assert known.images == 119 and set(known.statistics) >= {"brightness", "redness", "grain", OOD_SCORE}
    looks = appearances(decode(pa.concat_tables([rows.train, rows.validation]), SETTINGS.pixels).images)
    usable = looks[looks[:, 0] > 0]  # a damaged one has black pixels
    assert len(usable) == 119
    assert known.statistics["brightness"].middle == pytest.approx(float(np.median(usable[:, 0])), abs=1e-3)
    assert own.ood.rule.threshold is not None
    assert max(known.statistics[OOD_SCORE].quantiles) <= own.ood.rule.threshold * 1.01


def test_many_images_are_drawn_by_the_seed_whatever_their_order(rows: LabelledRows) -> None:
    chosen = drawn(rows.train, 25, 3)["image_id"].to_pylist()
    shuffled = rows.train.take(pa.array(np.random.default_rng(0).permutation(rows.train.num_rows)))
    assert drawn(shuffled, 25, 3)["image_id"].to_pylist() == chosen and len(set(chosen)) == 25
    assert drawn(rows.train, 25, 4)["image_id"].to_pylist() != chosen


def test_too_few_training_images_give_no_reference(graph: bytes, rows: LabelledRows, manifest: Manifest) -> None:
    few = LabelledRows(
        rows.task, rows.classes, rows.positive_classes, rows.train.slice(0, ood.FEWEST_TRAINING - 1), rows.validation
    )
    assert Familiar(Stores(), None).fit(graph, SETTINGS, few, manifest).ood is None


def test_what_is_known_of_images_needs_no_pixels(
    graph: bytes, rows: LabelledRows, manifest: Manifest, tmp_path: Path
) -> None:
    cache = PixelCache(str(tmp_path), Preprocessing(SIZE), None)
    expected = Familiar(Stores(), cache).fit(graph, SETTINGS, rows, manifest)  # decoded, for nothing is kept yet
    known = features_by_id(graph, rows)
    away = {name: table.set_column(table.schema.get_field_index("uri"), "uri", pa.array(["/nowhere"] * table.num_rows))
            for name, table in rows.splits.items()}  # fmt: skip
    gone = replace(rows, train=away["train"], validation=away["validation"])

    def features_of(ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        return np.ones(len(ids), bool), np.stack([known[number] for number in ids.tolist()])

    assert Familiar(Stores(), cache, features_of).fit(graph, SETTINGS, gone, manifest) == expected
    assert Familiar(Stores(), None, features_of).fit(graph, SETTINGS, rows, manifest) == expected


def test_figures_of_an_image_that_is_not_as_listed_are_not_kept(
    graph: bytes, rows: LabelledRows, manifest: Manifest, tmp_path: Path
) -> None:
    cache = PixelCache(str(tmp_path), Preprocessing(SIZE), None)
    etags = ["of another version", *rows.train["etag"].to_pylist()[1:]]
    changed = replace(rows, train=rows.train.set_column(rows.train.schema.get_field_index("etag"), "etag", [etags]))
    own = Familiar(Stores(), cache).fit(graph, SETTINGS, changed, manifest)
    assert own.ood is not None and own.ood.rule.training_images == 79
    assert len(list(tmp_path.glob("*/looks/*"))) == 1  # of validation alone
    Familiar(Stores(), cache).fit(graph, SETTINGS, rows, manifest)
    assert len(list(tmp_path.glob("*/looks/*"))) == 2


def features_by_id(graph: bytes, rows: LabelledRows) -> dict[int, NDArray[np.float32]]:
    decoded = decode(pa.concat_tables([rows.train, rows.validation]), Preprocessing(SIZE))
    (values,) = session_of(graph).run([FEATURES], {"images": decoded.images})
    return dict(zip(decoded.notes["image_id"].to_pylist(), values, strict=True))
