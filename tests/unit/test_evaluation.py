"""An evaluation without Ray: a model that calls bright images diseased, on images written to disk."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.evaluation import outcomes as outcomes_module
from pipeline.evaluation import result
from pipeline.evaluation.chance import METHODS
from pipeline.evaluation.comparison.result import comparison
from pipeline.evaluation.comparison.speed import Speed
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import EvaluationWorker, tasks_of
from pipeline.evaluation.provenance import basis, provenance
from pipeline.evaluation.reach import threshold_of
from pipeline.evaluation.recognized import NO_SKETCH, Recognized
from pipeline.evaluation.report import words
from pipeline.evaluation.result import evaluation
from pipeline.images.load import Preprocessing
from pipeline.model.bundle import GRAPH, OUT_OF_FOLD, WEIGHTS, Bundle, BundleInfo, class_columns, write_bundle
from pipeline.model.class_maps import ClassMaps
from pipeline.model.registry import resolve
from pipeline.sources.fetch import Fetched
from pipeline.sources.manifest import MANIFEST_SCHEMA, Manifest, ManifestInfo, ManifestRow
from pipeline.sources.rows import Access
from pipeline.storage.parquet import to_parquet
from pipeline.storage.stores import Stores
from tests.bundles import make_mapped_bundle
from tests.unit.test_maps import red_at

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
    return brightness_bundle(tmp_path / "bundle")


def brightness_bundle(folder: Path) -> Bundle:
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
    return write_bundle(str(folder), info, {WEIGHTS: b"none", GRAPH: brightness_graph()})


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
    assert [mistake.caption.rsplit("/", 1)[-1] for mistake in mistakes] == ["cell_1.png", "cell_0.png"]
    assert all(mistake.pixels.shape == (160, 160, 3) and mistake.mapped is None for mistake in mistakes)


def test_a_mistake_whose_file_is_another_one_by_now_has_no_picture(bundle: Bundle, tmp_path: Path) -> None:
    rows = [row(tmp_path, number, level, 1) for number, level in enumerate((100, 40, 90))]
    outcomes = Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows))
    Path(rows[1].uri).write_bytes(b"no image")
    Path(rows[2].uri).unlink()
    assert [mistake.caption.rsplit("/", 1)[-1] for mistake in outcomes.mistakes(0.5, 10, Stores())] == ["cell_0.png"]


def test_mistakes_with_maps_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_mapped_bundle(tmp_path / "model")
    rows = [row(tmp_path, number, 128, 0) for number in range(2)]
    for number, made in enumerate(rows):
        Image.fromarray(red_at(64, 40, 8 + 20 * number)).save(made.uri)
    said = EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows)
    asked: list[int] = []
    fetch = outcomes_module.fetch_rows

    def counted(some: list[ManifestRow], stores: Stores) -> Iterator[Fetched[ManifestRow]]:
        asked.extend(of.image_id for of in some)
        return fetch(some, stores)

    monkeypatch.setattr(outcomes_module, "fetch_rows", counted)
    found = Outcomes(bundle.info, said).mistakes(0.0, 10, Stores(), ClassMaps(bundle))
    assert sorted(asked) == [0, 1] and len(found) == 2
    for mistake in found:
        assert mistake.mapped is not None and mistake.mapped.shape == mistake.pixels.shape == (160, 160, 3)
        number = int(mistake.caption.rsplit("_", 1)[-1][0])
        is_changed = np.abs(mistake.mapped.astype(int) - mistake.pixels).max(axis=2) > 40
        assert is_changed[100:120, 20 + 50 * number : 40 + 50 * number].mean() > 0.5  # of 64 pixels, at 40 and 8 or 28


def counting(calls: list[str], name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """`made`, that notes its name in `calls` each time."""

    def noted(*given: Any, **more: Any) -> Any:
        calls.append(name)
        return made(*given, **more)

    return noted


def test_what_a_comparison_does_not_ask_for_is_not_computed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of folds of a bundle that was copied wrong stops what shows it, and nothing else."""
    rows = [row(tmp_path, number, 60 + 40 * (number % 4), number % 2) for number in range(8)]
    info = ManifestInfo(source=["x"])
    manifest = Manifest("m", MANIFEST_SCHEMA.empty_table(), info)
    bundle.update(calibrated_on="out-of-fold", manifest_digest=info.digest)
    stale = {"image_id": [99], "class": ["negative"], "fold": [1], "class_0": [0.5], "class_1": [0.5]}
    bundle.write(OUT_OF_FOLD, to_parquet(pa.table(stale)))
    bundle = resolve(bundle.uri, Stores())
    said = EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows)
    calls: list[str] = []
    for name in ("by_subject", "groups_against_others"):
        monkeypatch.setattr(result, name, counting(calls, name, getattr(result, name)))
    speed = Speed(*[1.0] * len(fields(Speed)))
    both = comparison(
        [bundle] * 2, manifest, "test", [said] * 2, [threshold_of(bundle.info)] * 2, Resampling(100), [speed] * 2
    )
    assert len(both.pairs) == 1 and json.dumps(both.record({})) and calls == []
    with pytest.raises(InputError, match="names 1 images that the manifest does not have"):
        both.evaluations[0].record({})
    bundle.write(OUT_OF_FOLD, to_parquet(pa.concat_tables([pa.table(stale)] * 2)))
    with pytest.raises(InputError, match="1 rows are of images that other rows name"):
        both.evaluations[1].record({})
    bundle.update(calibrated_on="validation")
    calls.clear()
    found = evaluation(
        resolve(bundle.uri, Stores()), manifest, "test", Outcomes(bundle.info, said), threshold_of(bundle.info),
        Resampling(100), further={"splits": None},
    )  # fmt: skip
    names = list(found.record({}))
    at = names.index("by_subject")
    assert names[at : at + 4] == ["by_subject", "slice_comparison", "cross_validation", "splits"]
    assert found.report(0, Stores()) and calls == ["by_subject", "groups_against_others"]  # once each


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95])
def test_mistakes_are_told_by_the_threshold_that_made_them(bundle: Bundle, tmp_path: Path, threshold: float) -> None:
    """A low threshold calls positive what the model finds unlikely: the caption says both numbers."""
    levels = [(50, 0), (90, 0), (30, 1), (200, 1)]
    rows = [row(tmp_path, number, level, label) for number, (level, label) in enumerate(levels)]
    outcomes = Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows))
    said = {f"cell_{k}.png": 1 / (1 + np.exp(-(level - 128) / 32)) for k, (level, _) in enumerate(levels)}
    captions = [mistake.caption for mistake in outcomes.mistakes(threshold, 10, Stores())]
    expected = {0.05: ["1", "2", "0"], 0.5: ["2"], 0.95: ["2", "3"]}[threshold]
    assert [caption.rsplit("_", 1)[-1][0] for caption in captions] == expected
    for caption in captions:
        probability = said[caption.rsplit("/", 1)[-1]]
        assert f"probability of positive {probability:.3f}, threshold {threshold:.3f};" in caption
        assert ("called positive" in caption) == (probability >= threshold)


def test_a_look_takes_the_colours_and_counts_what_cannot_be_read(bundle: Bundle, tmp_path: Path) -> None:
    rows = [row(tmp_path, 0, 77, 1), row(tmp_path, 1, None, 0)]
    worker = EvaluationWorker(bundle, Stores(), on_gpu=False)
    seen = {glance.row.image_id: glance.colours for glance in worker.look_at(rows)}
    assert seen[1] is None and seen[0] is not None and seen[0].border[:3] == (77.0,) * 3
    assert worker.predict(rows[:1])[0].colours == seen[0]


@pytest.mark.parametrize(("levels", "is_shown"), [((60, 200), True), ((120, 120), False)])
def test_metrics_say_whether_the_model_was_shown_to_be_better_than_chance(
    bundle: Bundle, tmp_path: Path, levels: tuple[int, int], is_shown: bool
) -> None:
    rows = [row(tmp_path, number, levels[number // 2 % 2], number // 2 % 2) for number in range(40)]
    outcomes = Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows))
    metrics = outcomes.metrics(0.5, Resampling(100), "blocks")
    assert metrics["against_chance"]["called"] == "blocks"
    assert metrics["against_chance"]["method"] == METHODS["roc_auc"]
    told = [sentence for sentence in words.headline(metrics) if "better than chance" in sentence]
    assert bool(told) is not is_shown
    if told:
        assert told[0].startswith("Not shown to be better than chance on these images: ROC-AUC 0.500")
        assert "guessing gives 0.5" in told[0]


def test_one_class_alone_is_not_compared_with_chance(bundle: Bundle, tmp_path: Path) -> None:
    rows = [row(tmp_path, number, 200, 1) for number in range(4)]
    outcomes = Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows))
    metrics = outcomes.metrics(0.5, Resampling(100))
    assert metrics["against_chance"] is None and len(words.headline(metrics)) == 2


def test_members_of_a_compressed_tar_are_one_task() -> None:
    whole = ManifestRow(0, "z.jpg", None, Access.FILE, None, None, 1, "x", None, 0, None, None, "test")
    rows = [replace(whole, uri=f"{n % 2}.tgz", access=Access.STREAM, offset=n // 2) for n in range(600)]
    rows += [whole] * 200
    assert sorted(map(len, tasks_of(rows))) == [72, 128, 300, 300]


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
    assert basis(split, trained, manifest, Recognized(NO_SKETCH)) == expected


@pytest.mark.parametrize(("positive", "is_told"), [(("positive",), True), ((), False)])
def test_a_threshold_is_told_only_where_something_is_decided_by_it(
    bundle: Bundle, positive: tuple[str, ...], is_told: bool
) -> None:
    changes = {"positive_classes": positive, "training": {"threshold_rule": "middle of the good ones"}}
    deciding = Bundle(bundle.uri, bundle.info.model_copy(update=changes))
    manifest = Manifest("m", MANIFEST_SCHEMA.empty_table(), ManifestInfo())
    facts = provenance(deciding, manifest, threshold_of(deciding.info), Resampling(), Recognized(NO_SKETCH))
    assert facts.get("Threshold") == ("0.5000 (middle of the good ones)" if is_told else None)
