"""Images of training among those measured: counted, listed, and the figures told without them."""

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import EvaluationWorker
from pipeline.evaluation.recognized import NO_SKETCH, OWN, recognize, table_of_met
from pipeline.evaluation.report import words
from pipeline.images.likeness import KEY_LENGTH, Floats
from pipeline.images.load import load_image
from pipeline.model.bundle import SKETCH, Bundle, read_bundle
from pipeline.model.sketch import Part, Trace, key_of, make_sketch
from pipeline.sources.manifest import ManifestRow
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.scoring_sources import picture, score_here, write_files
from tests.unit.test_evaluation import SIZE, brightness_bundle, row

RESAMPLING = Resampling(100, 0.95, 0)
# (gray level, label): the model calls what is brighter than 128 diseased. The first four it answers rightly.
MEASURED = ((200, 1), (210, 1), (40, 0), (50, 0), (220, 1), (60, 1), (70, 0), (230, 0))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return brightness_bundle(tmp_path / "bundle")


def measured(folder: Path, bundle: Bundle, known: dict[int, Part]) -> tuple[Outcomes, list[ManifestRow]]:
    """Outcomes of MEASURED by a bundle whose sketch holds images `known`, by number, with their part."""
    rows = [row(folder, number, level, label) for number, (level, label) in enumerate(MEASURED)]
    if known:
        files = {number: Path(rows[number].uri).read_bytes() for number in known}
        keys = {number: key_of(load_image(data, SIZE).pixels) for number, data in files.items()}
        keep(bundle, make_sketch([Trace(part, files[n], keys[n]) for n, part in known.items()]).packed())
    asked = read_bundle(bundle.uri)
    return Outcomes(asked.info, EvaluationWorker(asked, Stores(), on_gpu=False).predict(rows)), rows


def test_figures_are_told_without_the_images_of_training(tmp_path: Path, bundle: Bundle) -> None:
    outcomes, _ = measured(tmp_path, bundle, {0: "train", 1: "train", 2: "train", 3: "validation"})
    with_all = outcomes.metrics(0.5, RESAMPLING)["metrics"]
    found = recognize(outcomes, "", 0.5, RESAMPLING)
    assert (found.count, found.images, found.left) == (4, 8, 4)
    assert (found.by, found.parts) == ({"bytes": 4, "looks": 0}, {"train": 3, "validation": 1})
    assert found.without is not None
    assert (with_all["sensitivity"]["value"], with_all["specificity"]["value"]) == (0.75, 0.75)
    assert (found.without["sensitivity"]["value"], found.without["specificity"]["value"]) == (0.5, 0.5)
    sentence = words.recognized(found.record(), "binary")[0]
    assert sentence.startswith(
        "4 of the 8 images measured took part in making the model (4 by bytes, 0 by looks alone;"
    )
    assert "3 learned from, 1 chosen by): the figures are too good. Of the other 4 images:" in sentence
    assert "Sensitivity (recall) 0.500" in sentence


def test_they_are_listed(tmp_path: Path, bundle: Bundle) -> None:
    outcomes, rows = measured(tmp_path, bundle, {1: "train", 3: "validation"})
    listed = list(csv.DictReader(io.StringIO(table_of_met(outcomes))))
    assert [(each["uri"], each["part"], each["recognized_by"]) for each in listed] == [
        (rows[1].uri, "train", "bytes"),
        (rows[3].uri, "validation", "bytes"),
    ]
    table = outcomes.table(0.5)
    assert table["recognized_part"].to_pylist() == [None, "train", None, "validation", *[None] * 4]
    assert table["recognized_by"].to_pylist() == [None, "bytes", None, "bytes", *[None] * 4]


def test_nothing_is_said_where_none_is_among_them(tmp_path: Path, bundle: Bundle) -> None:
    outcomes, _ = measured(tmp_path, bundle, {0: "train"})
    outcomes = Outcomes(outcomes.info, outcomes.all[1:])
    found = recognize(outcomes, "", 0.5, RESAMPLING)
    assert (str(found), found.record()["recognized"], words.recognized(found.record(), "binary")) == (
        "none of 7 recognized",
        0,
        [],
    )


def test_a_bundle_without_a_sketch_says_that_it_is_not_known(tmp_path: Path, bundle: Bundle) -> None:
    outcomes, _ = measured(tmp_path, bundle, {})
    found = recognize(outcomes, NO_SKETCH, 0.5, RESAMPLING)
    assert str(found) == f"not known ({NO_SKETCH})"
    assert found.record()["recognized"] is None
    assert words.recognized(found.record(), "binary") == words.recognized(None, "binary") == []


def test_where_all_are_of_training_no_figure_is_left(tmp_path: Path, bundle: Bundle) -> None:
    outcomes, _ = measured(tmp_path, bundle, dict.fromkeys(range(8), "train"))
    found = recognize(outcomes, "", 0.5, RESAMPLING)
    assert (found.count, found.left, found.without) == (8, 0, None)
    assert words.recognized(found.record(), "binary")[0].endswith("No other image is left to measure.")


def test_of_the_images_of_its_own_training_it_is_known(tmp_path: Path, bundle: Bundle) -> None:
    outcomes, _ = measured(tmp_path, bundle, {})
    assert str(recognize(outcomes, OWN, 0.5, RESAMPLING)) == "all: these are images of its training"


def test_scoring_says_which_images_the_model_was_made_of(tmp_path: Path) -> None:
    known, other = picture(1), picture(2)
    source = write_files(tmp_path / "in", {"known.jpg": known, "other.jpg": other, "damaged.jpg": b""})
    for name, file, expected, count in (
        ("with", make_sketch([Trace("train", known, no_key())]).packed(), {"known.jpg": True, "other.jpg": False}, 1),
        ("without", None, {"known.jpg": None, "other.jpg": None}, 0),
    ):
        model = keep(make_bundle(tmp_path / name, size=16), file)
        run, record = score_here([source], model, tmp_path / f"out-{name}")
        table = pa.concat_tables(run.table(file) for file in run.outputs("predictions"))
        names = [uri.rsplit("/", 1)[-1] for uri in table["uri"].to_pylist()]
        assert dict(zip(names, table["in_training"].to_pylist(), strict=True)) == expected
        assert record["counts"]["in_training"] == count
        note = run.record().training_note
        assert note.startswith("1 of the images scored are, byte for byte") if count else not note


def no_key() -> Floats:
    """Of an image that has no looks."""
    return np.full(KEY_LENGTH, np.nan, np.float32)


def keep(model: Bundle, sketch: bytes | None) -> Bundle:
    if sketch is None:
        return model
    model.write(SKETCH, sketch)
    return model.update(sketch_sha256=hashlib.sha256(sketch).hexdigest())
