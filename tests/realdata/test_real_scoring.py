"""Real files, packed as a lab would pack them: the same bytes get the same row whatever they lie in."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import ImageRejected
from pipeline.images.load import load_image
from pipeline.model.bundle import Bundle
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.sources.archives import Entry
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.listing import Tally, entry_row, list_sources
from tests.bundles import make_bundle

pytestmark = pytest.mark.realdata
SETS = ("taleqani-all", "kaggle-blood-cells", "c-nmc-2019")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


def some(real_data: Path, per_set: int = 8) -> list[Path]:
    chosen = []
    for name in SETS:
        files = sorted(p for p in (real_data / name).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".bmp"))
        chosen += files[:: max(1, len(files) // per_set)][:per_set]
    return chosen


def probabilities(source: Path, predictor: Predictor) -> dict[str, float]:
    rows = [entry_row(item) for item in list_sources([str(source)], Tally()) if isinstance(item, Entry)]
    found = {}
    for fetched in fetch_rows(rows):
        assert fetched.data is not None, fetched.rejected
        name = (fetched.row.member or fetched.row.uri).rsplit("/", 1)[-1]
        (said,) = predictor.predict_each([predictor.load(fetched.data).pixels])
        assert isinstance(said, Prediction), said
        found[name] = said.probability
    return found


def test_files_tar_zip_and_compressed_tar_give_the_same_probability(
    real_data: Path, bundle: Bundle, tmp_path: Path
) -> None:
    files = {f"{i:03d}-{path.name}": path.read_bytes() for i, path in enumerate(some(real_data))}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for mode in ("", "gz"):
        with tarfile.open(tmp_path / f"packed.tar{'.' + mode if mode else ''}", f"w:{mode}") as archive:
            archive.add(folder, arcname="cells")
    for name, method in (("stored.zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w", method) as packed:
            for member, data in files.items():
                packed.writestr(f"cells/{member}", data)
    predictor = Predictor(bundle)
    expected = probabilities(folder, predictor)
    assert len(expected) == len(files)
    for name in ("packed.tar", "packed.tar.gz", "stored.zip", "deflated.zip"):
        assert probabilities(tmp_path / name, predictor) == expected


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP", "JPEG"])
def test_real_cells_in_every_format_look_alike_to_the_model(real_data: Path, bundle: Bundle, kind: str) -> None:
    """Lossless re-encodings of the decoded picture give exactly its pixels; lossy ones nearly."""
    for path in some(real_data, 2):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        plain, encoded = io.BytesIO(), io.BytesIO()
        picture.save(plain, "BMP")
        picture.save(encoded, kind, **({"lossless": True} if kind == "WEBP" else {}))
        expected = load_image(plain.getvalue(), 128).pixels.astype(int)
        found = load_image(encoded.getvalue(), 128).pixels.astype(int)
        assert np.abs(found - expected).mean() < (4.0 if kind == "JPEG" else 1e-9)


def test_a_real_cell_cut_anywhere_is_never_scored_as_whole(real_data: Path) -> None:
    for path in some(real_data, 1):
        data = path.read_bytes()
        for twentieth in range(1, 20):
            with pytest.raises(ImageRejected) as caught:
                load_image(data[: len(data) * twentieth // 20], 128)
            assert caught.value.code in ("truncated", "corrupt")
