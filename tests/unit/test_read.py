"""The loop of all that shows images to a model: exactly one record a row, batches of the size asked for."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.errors import Code, ImageRejected
from pipeline.evaluation.read import Seen, in_batches
from pipeline.images.load import LoadedImage
from pipeline.model.predictor import Predictor
from pipeline.sources.manifest import ManifestRow
from tests.bundles import make_bundle
from tests.training_data import cell_images, manifest_of


@pytest.mark.parametrize("size", [1, 3, 4, 32])
def test_each_row_is_answered_or_rejected_once_in_batches_of_the_size(tmp_path: Path, size: int) -> None:
    manifest = manifest_of(cell_images(tmp_path / "images", 8), tmp_path / "manifest")
    rows = [row for split in ("train", "validation", "test") for row in manifest.split(split)]
    gone = [replace(rows[0], uri=f"{rows[0].uri}.gone", image_id=-1), replace(rows[1], size_bytes=1 << 40, image_id=-2)]
    batches: list[int] = []

    def answered(batch: list[Seen[ManifestRow, int]]) -> list[tuple[int, int | Code]]:
        batches.append(len(batch))
        assert all(seen.image.pixels.shape == (16, 16, 3) for seen in batch)
        return [(seen.row.image_id, seen.note) for seen in batch]

    def bytes_of(data: bytes, image: LoadedImage) -> int:
        return len(data)

    def rejected(row: ManifestRow, error: ImageRejected) -> tuple[int, int | Code]:
        return row.image_id, error.code

    predictor = Predictor(make_bundle(tmp_path / "b", 16))
    found = in_batches(predictor, [*gone, *rows], answered, rejected, note=bytes_of, size=size)
    known = {row.image_id: row.size_bytes for row in rows}
    assert len(found) == len(rows) + 2 and dict(found) == known | {-1: Code.NOT_FOUND, -2: Code.TOO_LARGE}
    assert batches == [size] * (len(rows) // size) + ([len(rows) % size] if len(rows) % size else [])


def test_no_row_asks_the_model_nothing(tmp_path: Path) -> None:
    predictor = Predictor(make_bundle(tmp_path / "b", 16))
    assert in_batches(predictor, [], lambda batch: pytest.fail("asked"), lambda row, error: None) == []
