"""A sketch of training images: knows them again by bytes and by looks, takes nobody else for them, holds no pixels."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.images.likeness import KEY_LENGTH
from pipeline.images.load import LoadedImage, Preprocessing, load_image
from pipeline.model.bundle import SKETCH, Bundle, read_bundle
from pipeline.model.sketch import Met, Part, Sketch, Trace, key_of, make_sketch, read_sketch
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache
from pipeline.training.rows import labelled_rows
from pipeline.training.sketching import sketch_of
from tests.bundles import make_bundle
from tests.images import encoded
from tests.training_data import cell_images, manifest_of
from tests.unit.test_near_copies import smear

SIZE = 96
SALT = bytes(range(16))


def trace(data: bytes, part: Part = "train") -> Trace:
    return Trace(part, data, key_of(load_image(data, SIZE).pixels))


def jpeg(seed: int) -> bytes:
    return encoded(smear(seed), "JPEG", quality=92)


def met(sketch: Sketch, data: bytes) -> Met | None:
    return sketch.by_bytes(data) or sketch.by_looks(load_image(data, SIZE).pixels)


@pytest.fixture(scope="module")
def sketch() -> Sketch:
    """Of smears 0 to 39, those from 30 on for validation."""
    return make_sketch([trace(jpeg(n), "train" if n < 30 else "validation") for n in range(40)], SALT)


def test_the_same_bytes_are_known_with_their_part(sketch: Sketch) -> None:
    assert sketch.by_bytes(jpeg(3)) == Met("train", "bytes")
    assert sketch.by_bytes(jpeg(33)) == Met("validation", "bytes")
    assert sketch.by_bytes(jpeg(3) + b"\0") is None
    assert (len(sketch), sketch.count("train"), sketch.count("validation")) == (40, 30, 10)


def test_files_that_differ_in_their_middle_alone_are_told_apart() -> None:
    known, other = (bytes(4000) + middle + bytes(4000) for middle in (b"a", b"b"))
    none = np.full(KEY_LENGTH, np.nan, np.float32)
    sketch = make_sketch([Trace("train", known, none)], SALT)
    assert (sketch.by_bytes(known), sketch.by_bytes(other)) == (Met("train", "bytes"), None)


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "saved anew": lambda image: encoded(image, "JPEG", quality=70),
    "as PNG": lambda image: encoded(image, "PNG"),
    "half as large": lambda image: encoded(image.resize((112, 100)), "JPEG", quality=90),
    "twice as large": lambda image: encoded(image.resize((448, 400)), "JPEG", quality=90),
    "turned": lambda image: encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90),
    "mirrored": lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=90),
    "a pixel less at each side": lambda image: encoded(image.crop((1, 1, image.width - 1, image.height - 1)), "PNG"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_known_by_its_looks(sketch: Sketch, change: str) -> None:
    found = [met(sketch, CHANGES[change](smear(seed))) for seed in (0, 7, 29, 31)]
    assert found == [Met("train", "looks")] * 3 + [Met("validation", "looks")]


def test_other_images_are_not_known(sketch: Sketch) -> None:
    assert [met(sketch, jpeg(seed)) for seed in range(100, 200)] == [None] * 100


def test_a_plain_sheet_is_known_by_bytes_alone() -> None:
    sheet, other = (encoded(Image.new("RGB", (60, 60), level), "PNG") for level in ("white", "gray"))
    sketch = make_sketch([trace(sheet), trace(jpeg(0))], SALT)
    assert met(sketch, sheet) == Met("train", "bytes")
    assert met(sketch, other) is None
    assert met(make_sketch([trace(sheet)], SALT), other) is None


def test_a_single_image_is_known_by_its_looks() -> None:
    sketch = make_sketch([trace(jpeg(5))], SALT)
    assert met(sketch, encoded(smear(5), "JPEG", quality=70)) == Met("train", "looks")
    assert met(sketch, jpeg(6)) is None


def test_an_image_of_both_parts_was_learned_from() -> None:
    both = make_sketch([trace(jpeg(0), "validation"), trace(jpeg(0), "train"), trace(jpeg(1))], SALT)
    assert both.by_bytes(jpeg(0)) == Met("train", "bytes")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["train", "validation"]), st.binary(max_size=40)), min_size=1, max_size=12))
def test_what_is_read_back_answers_as_what_was_written(images: list[tuple[Part, bytes]]) -> None:
    rng = np.random.default_rng(len(images))
    keys = rng.uniform(0, 0.3, (len(images), len(key_of(np.zeros((8, 8, 3), np.uint8))))).astype(np.float32)
    sketch = make_sketch([Trace(part, data, key) for (part, data), key in zip(images, keys, strict=True)])
    for part, data in images:
        expected = "train" if ("train", data) in images else part
        assert sketch.by_bytes(data) == Met(expected, "bytes")
    assert sketch.by_bytes(b"x" * 41) is None


def sketched(folder: Path, file: bytes) -> Bundle:
    bundle = make_bundle(folder, SIZE)
    bundle.write(SKETCH, file)
    return bundle.update(sketch_sha256=hashlib.sha256(file).hexdigest())


def test_a_bundle_keeps_it(tmp_path: Path, sketch: Sketch) -> None:
    bundle = read_bundle(sketched(tmp_path / "b", sketch.packed()).uri).verify()
    found = read_sketch(bundle)
    assert found is not None
    assert met(found, jpeg(3)) == Met("train", "bytes")
    assert met(found, encoded(smear(3), "JPEG", quality=70)) == Met("train", "looks")
    assert met(found, jpeg(100)) is None


def test_the_file_holds_neither_order_nor_bytes_nor_pixels(sketch: Sketch) -> None:
    """Hashes of 8, 8 and 32 bytes an image, in an order that depends on the salt."""
    table = pq.read_table(io.BytesIO(sketch.packed()))
    assert table.column_names == ["part", "ends", "bytes", "looks"]
    hashes = table["bytes"].to_pylist()
    assert hashes == sorted(hashes)
    assert {len(value) for value in hashes} == {8}
    assert {len(value) for value in table["looks"].to_pylist()} == {32}
    other = make_sketch([trace(jpeg(n)) for n in range(30)], bytes(16))
    assert not set(pq.read_table(io.BytesIO(other.packed()))["bytes"].to_pylist()) & set(hashes)


def test_a_bundle_without_one_says_nothing(tmp_path: Path, sketch: Sketch) -> None:
    assert read_sketch(make_bundle(tmp_path / "none", SIZE)) is None
    taken = sketched(tmp_path / "taken", sketch.packed())
    Path(taken.uri, SKETCH).unlink()
    assert read_sketch(read_bundle(taken.uri).verify()) is None


def test_a_damaged_sketch_is_refused_by_name(tmp_path: Path, sketch: Sketch) -> None:
    file = sketch.packed()
    altered = sketched(tmp_path / "altered", file)
    altered.write(SKETCH, file[:-1] + b"\0")
    for ask in (altered.verify, lambda: read_sketch(altered)):
        with pytest.raises(InputError, match=r"sketch\.parquet is not the file that was published"):
            ask()
    for number, data in enumerate((b"", b"no parquet", file[: len(file) // 2])):
        with pytest.raises(InputError, match=r"sketch\.parquet: damaged .*copy the bundle again"):
            read_sketch(sketched(tmp_path / f"damaged-{number}", data))


def test_a_newer_sketch_is_refused(tmp_path: Path, sketch: Sketch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.model.sketch.SKETCH_VERSION", 2)
    newer = sketched(tmp_path / "b", sketch.packed())
    monkeypatch.undo()
    with pytest.raises(InputError, match="made by a newer leukoray"):
        read_sketch(newer)


def test_training_sketches_what_it_learned_from_and_was_chosen_by(tmp_path: Path) -> None:
    manifest = manifest_of(cell_images(tmp_path / "cells", 24), tmp_path / "manifest")
    rows = labelled_rows(manifest)
    damaged = Path(rows.train["uri"][0].as_py())
    damaged.write_bytes(b"no image")
    found = read_sketch(sketched(tmp_path / "b", sketch_of(rows, Preprocessing(SIZE), Stores())))
    assert found is not None
    assert (found.count("train"), found.count("validation")) == (rows.train.num_rows - 1, rows.validation.num_rows)
    for part, table in rows.splits.items():
        for uri in table["uri"].to_pylist():
            is_damaged = Path(uri) == damaged
            assert met_bytes(found, uri) == (None if is_damaged else Met(part, "bytes"))  # type: ignore[arg-type]


def test_looks_are_found_once_while_an_image_is_as_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = labelled_rows(manifest_of(cell_images(tmp_path / "cells", 24), tmp_path / "manifest"))
    cache = PixelCache(str(tmp_path / "cache"), Preprocessing(SIZE), None)
    sketch_of(rows, Preprocessing(SIZE), Stores(), cache)
    replaced = Path(rows.train["uri"][0].as_py())
    replaced.write_bytes(jpeg(99))
    decoded = list[bytes]()

    def seen(data: bytes, *rest: Any, **options: Any) -> LoadedImage:
        decoded.append(data)
        return load_image(data, *rest, **options)

    monkeypatch.setattr("pipeline.training.sketching.load_image", seen)
    found = read_sketch(sketched(tmp_path / "b", sketch_of(rows, Preprocessing(SIZE), Stores(), cache)))
    assert decoded == [jpeg(99)] and found is not None
    for uri in [*rows.train["uri"].to_pylist(), *rows.validation["uri"].to_pylist()]:
        assert found.by_looks(load_image(Path(uri).read_bytes(), SIZE).pixels) is not None


def met_bytes(sketch: Sketch, uri: str) -> Met | None:
    return sketch.by_bytes(Path(uri).read_bytes())


def test_identity_does_not_depend_on_it(tmp_path: Path, sketch: Sketch) -> None:
    bundle = sketched(tmp_path / "b", sketch.packed())
    assert bundle.info.identity() == bundle.info.model_copy(update={"sketch_sha256": ""}).identity()
