"""An evaluation without Ray: a model that calls bright images diseased, on images written to disk."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import EvaluationWorker, background, tasks_of
from pipeline.evaluation.provenance import basis
from pipeline.images.load import Preprocessing
from pipeline.model.bundle import GRAPH, WEIGHTS, Bundle, BundleInfo, class_columns, write_bundle
from pipeline.sources.manifest import MANIFEST_SCHEMA, Manifest, ManifestInfo, ManifestRow
from pipeline.sources.rows import Access
from pipeline.storage.stores import Stores

SIZE = 16


def brightness_graph() -> bytes:
    """logit = (mean of all pixels - 128) / 32."""
    nodes = [
        helper.make_node("Cast", ["images"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["wide"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["mean", "centre"], ["shifted"]),
        helper.make_node("Div", ["shifted", "scale"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("centre", TensorProto.FLOAT, [1], [128.0]),
        helper.make_tensor("scale", TensorProto.FLOAT, [1], [32.0]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1])
    graph = helper.make_graph(nodes, "brightness", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    info = BundleInfo(
        name="brightness",
        version="v1",
        architecture="mean",
        task="binary",
        classes=("negative", "positive"),
        positive_classes=("positive",),
        input_size=SIZE,
        preprocessing_digest=Preprocessing(SIZE).digest(),
        weights_sha256="",
        graph_sha256="",
    )
    return write_bundle(str(tmp_path / "bundle"), info, {WEIGHTS: b"none", GRAPH: brightness_graph()})


def row(folder: Path, number: int, level: int | None, label: int) -> ManifestRow:
    """A manifest row of a flat image of gray `level`, or of a file that is no image."""
    buffer = io.BytesIO()
    if level is not None:
        Image.new("RGB", (24, 20), (level,) * 3).save(buffer, format="PNG")
    path = folder / f"cell_{number}.png"
    path.write_bytes(buffer.getvalue() or b"no image")
    name = "blast" if label else "lymphocyte"
    place = (number, str(path), None, Access.FILE, None, None, path.stat().st_size, "x", None)
    return ManifestRow(*place, label, name, f"s{number // 2}", "test")


def test_every_row_has_one_outcome_and_the_metrics_are_of_the_readable_ones(bundle: Bundle, tmp_path: Path) -> None:
    levels = [(200, 1), (60, 0), (None, 1), (90, 1), (220, 1), (30, 0)]
    rows = [row(tmp_path, number, level, label) for number, (level, label) in enumerate(levels)]
    found = EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows)
    outcomes = Outcomes(bundle.info, reversed(found))
    assert [outcome.row.image_id for outcome in outcomes.all] == [0, 1, 2, 3, 4, 5]
    assert [error.code for error in outcomes.rejections] == ["unsupported_format"]
    metrics = outcomes.metrics(0.5, Resampling(100))
    assert metrics["confusion"] == [[2, 0], [1, 2]]
    assert metrics["metrics"]["roc_auc"]["value"] == 1.0
    table = outcomes.table(0.5)
    assert table["called"].to_pylist() == ["positive", "negative", None, "negative", "positive", "negative"]
    assert table["probability"][0].as_py() == pytest.approx(1 / (1 + np.exp(-72 / 32)), abs=1e-6)


def test_sites_and_further_columns_of_few_values_are_slices_and_all_are_kept(bundle: Bundle, tmp_path: Path) -> None:
    levels = [(200, 1), (60, 0), (None, 1), (90, 1)]
    rows = [replace(row(tmp_path, n, level, label), site="ab"[n % 2]) for n, (level, label) in enumerate(levels)]
    further = pa.table({"image_id": [3, 2, 1, 0, 9], "sex": ["f", "f", "m", "m", "x"], "age": [3, 2, 1, 0, 9]})
    outcomes = Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows), further)
    slices = outcomes.slices()
    assert slices["site"] == ["a", "b", "b"] and slices["sex"] == ["m", "m", "f"] and slices["age"] == ["0", "1", "3"]
    table = outcomes.table(0.5)
    assert table["site"].to_pylist() == ["a", "b", "a", "b"] and table["meta_age"].to_pylist() == [0, 1, 2, 3]
    assert [found["value"] for found in outcomes.metrics(0.5, Resampling(100))["slices"]["site"]] == ["b", "a"]


def test_mistakes_come_with_their_picture_the_most_confident_first(bundle: Bundle, tmp_path: Path) -> None:
    rows = [row(tmp_path, number, level, 1) for number, level in enumerate((100, 40, 250))]
    outcomes = Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows))
    mistakes = outcomes.mistakes(0.5, 10, Stores())
    assert [caption.rsplit("/", 1)[-1] for _, caption in mistakes] == ["cell_1.png", "cell_0.png"]
    assert all(picture.shape == (160, 160, 3) for picture, _ in mistakes)


@pytest.mark.parametrize("tells", [True, False])
def test_background_that_tells_the_class_is_warned_of(bundle: Bundle, tmp_path: Path, tells: bool) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        label = number // 2 % 2
        level = int(100 + rng.integers(0, 40) + (60 * label if tells else 0))
        rows.append(row(tmp_path, number, level, label))
    warning = Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows)).background_warning()
    assert (warning is not None) == tells


def test_a_class_of_one_subject_gives_no_background_warning_and_no_failure(bundle: Bundle, tmp_path: Path) -> None:
    rows = [row(tmp_path, number, 100 + number, int(number >= 20)) for number in range(60)]
    rows = [replace(each, subject_id="only") if not each.label else each for each in rows]
    outcomes = Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows))
    assert outcomes.background_warning() is None


def test_members_of_a_compressed_tar_are_one_task() -> None:
    whole = ManifestRow(0, "z.jpg", None, Access.FILE, None, None, 1, "x", None, 0, None, None, "test")
    rows = [replace(whole, uri=f"{n % 2}.tgz", access=Access.STREAM, offset=n // 2) for n in range(600)]
    rows += [whole] * 200
    assert sorted(map(len, tasks_of(rows))) == [72, 128, 300, 300]


def test_background_looks_at_the_border_only() -> None:
    pixels = np.zeros((50, 50, 3), np.uint8)
    pixels[10:40, 10:40] = 255
    assert background(pixels) == (0.0,) * 6


def test_a_split_of_unreadable_images_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    found = EvaluationWorker(bundle, Stores(), on_gpu=False).predict([row(tmp_path, 0, None, 1)])
    with pytest.raises(InputError, match="not one image"):
        Outcomes(bundle.info, found)


@pytest.mark.parametrize(
    ("classes", "columns"),
    [
        (("healthy", "all"), ["prob_healthy", "prob_all"]),
        (("Pre-B", "Late Pro (2)"), ["prob_Pre_B", "prob_Late_Pro__2_"]),
        (("a b", "a-b", "c"), ["prob_a_b_0", "prob_a_b_1", "prob_c"]),
        (("Blast", "blast"), ["prob_Blast_0", "prob_blast_1"]),
        (("Gr\u00fcn", "Gru\u0308n"), ["prob_Gr\u00fcn_0", "prob_Gr\u00fcn_1"]),
    ],
)
def test_each_class_has_a_probability_column_of_its_own(classes: tuple[str, ...], columns: list[str]) -> None:
    assert class_columns(classes) == columns


@pytest.mark.parametrize(
    ("split", "digest", "rule", "expected"),
    [
        ("test", "own", "subjects", " that took no part in training"),
        ("test", "own", "images", " that took no part in training, though other images of the same patients may have"),
        ("test", "other", "subjects", "; whether the model has seen them in training is not known"),
        ("validation", "own", "subjects", " of the validation split"),
    ],
)
def test_a_report_claims_unseen_images_only_where_that_is_known(
    bundle: Bundle, split: str, digest: str, rule: str, expected: str
) -> None:
    trained = Bundle(bundle.uri, bundle.info.model_copy(update={"manifest_digest": "own"}))
    manifest = Manifest("m", MANIFEST_SCHEMA.empty_table(), ManifestInfo(digest=digest, split_rule=rule))
    assert basis(split, trained, manifest) == expected
