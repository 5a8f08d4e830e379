"""A version for another laboratory, published: its answers are those that were chosen, and it names its parent."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit, logit

from jobs import calibrate
from pipeline.base.record import Record
from pipeline.evaluation.adapt import Adapted, Asked, Change, Local, Tried, adapt, carried
from pipeline.evaluation.calibration import Costs
from pipeline.evaluation.external import rule_of
from pipeline.evaluation.reach import temperature_of, threshold_of
from pipeline.evaluation.report.words import reach
from pipeline.evaluation.sight import Sight, SightWorker
from pipeline.images.load import Preprocessing, load_image
from pipeline.model.architectures import build
from pipeline.model.bundle import GRAPH, SKETCH, WEIGHTS, Bundle, BundleInfo, read_bundle, write_bundle
from pipeline.model.export import to_onnx, to_safetensors
from pipeline.model.predictor import Predictor
from pipeline.model.registry import ModelFolder
from pipeline.model.sketch import Trace, key_of, make_sketch, read_sketch
from pipeline.sources.manifest import Manifest, ManifestRow, read_manifest
from pipeline.storage.stores import Stores
from pipeline.training.adapted import LOCAL_REPORT, Seen, changes, local_of, publish_adapted
from tests.training_data import cell_images, manifest_of
from tests.without_ray import without_ray

SIZE, COUNT = 32, 12


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A ResNet, two turns, with a sketch and a review band."""
    torch.manual_seed(0)
    model = build("resnet18", 1).eval()
    info = BundleInfo(
        name="m", version="v1", architecture="resnet18", task="binary", classes=("negative", "positive"), turns=2,
        positive_classes=("positive",), input_size=SIZE, preprocessing_digest=Preprocessing(SIZE).digest(),
        weights_sha256="", graph_sha256="", review_band=(0.4, 0.6), temperature=2.0, training={"monitor": "val_auc"},
    )  # fmt: skip
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (9, 200, 3)).save(buffer, format="PNG")
    known = buffer.getvalue()
    sketch = make_sketch([Trace("train", known, key_of(load_image(known, SIZE).pixels))]).packed()
    files = {WEIGHTS: to_safetensors(model), GRAPH: to_onnx(model, SIZE), SKETCH: sketch}
    return write_bundle(str(tmp_path_factory.mktemp("registry") / "m" / "v1"), info, files)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("there")
    rows = [
        row | {"split": "test", "subject_id": f"s{n // 2}"} for n, row in enumerate(cell_images(folder / "i", COUNT))
    ]
    return read_manifest(manifest_of(rows, folder / "m").uri)


def seen_by(parent: Bundle, manifest: Manifest) -> tuple[Seen, list[Sight], list[ManifestRow]]:
    rows = manifest.split("test")
    sights = SightWorker(parent, Stores(), on_gpu=False).see(rows)
    assert [sight.row for sight in sights] == rows and not any(sight.rejected for sight in sights)
    logits, features = ([getattr(sight, name) for sight in sights] for name in ("logits", "features"))
    subjects = [row.subject_id for row in rows]
    local = local_of(parent.info, [int(row.label or 0) for row in rows], logits, features, subjects)
    ids = np.array([row.image_id for row in rows], np.int64)
    return Seen(local, ids, subjects, [sight.entry for sight in sights]), sights, rows


def adapted(local: Local, change: Change, threshold: float) -> Adapted:
    return Adapted(change, (Tried("as it was", 0.7, 0.0, 0.0),), change.values(local), change(local), threshold, True)


def answers(bundle: Bundle, rows: list[ManifestRow]) -> list[float]:
    predictor = Predictor(bundle, engine="onnx")
    said = predictor.predict_each([predictor.load(Path(row.uri).read_bytes()).pixels for row in rows])
    return [answer.probability for answer in said]  # type: ignore[union-attr]


def test_what_is_seen_is_what_the_predictor_answers_from(parent: Bundle, manifest: Manifest) -> None:
    seen, _, rows = seen_by(parent, manifest)
    as_it_was = Change("as it was", parent.info.temperature, np.zeros(1))
    assert as_it_was.values(seen.local) == pytest.approx(answers(parent, rows), abs=1e-5)


@pytest.mark.parametrize("kind", ["temperature", "shifts", "head"])
def test_the_published_version_answers_as_the_change_does(
    parent: Bundle, manifest: Manifest, kind: str, tmp_path: Path
) -> None:
    seen, _, rows = seen_by(parent, manifest)
    assert seen.local.features is not None
    width = seen.local.features.shape[1]
    weight = np.random.default_rng(0).normal(0, 0.05, (1, width)) if kind == "head" else None
    shift = np.array([0.0 if kind == "temperature" else -0.8])
    change = Change(kind, 0.7, shift, weight)  # type: ignore[arg-type]
    folder = ModelFolder(str(tmp_path / "m"))
    made = publish_adapted(parent, adapted(seen.local, change, 0.3), Asked(), seen, manifest, folder, {"taken": kind})
    found = read_bundle(made.uri).verify()
    assert answers(found, rows) == pytest.approx(change.values(seen.local), abs=1e-5)
    torch_said = Predictor(found, engine="torch").predict_each(
        [Predictor(found, engine="onnx").load(Path(row.uri).read_bytes()).pixels for row in rows]
    )
    assert [each.probability for each in torch_said] == pytest.approx(answers(found, rows), abs=1e-4)  # type: ignore[union-attr]
    info = found.info
    assert info.threshold == 0.3 and info.review_band is not None
    if kind == "head":
        assert info.review_band == pytest.approx((0.2, 0.4))
    else:  # its ends and the threshold as they lie at temperature 0.7, then moved by what the threshold is
        low, cut, high = (expit(logit(end) * 2 / 0.7 + shift[0]) for end in (0.4, 0.5, 0.6))
        assert info.review_band == pytest.approx((max(0, 0.3 - cut + low), 0.3 + high - cut))
    assert info.calibrated_on == "local" and info.calibration["images"] == COUNT and info.calibration["units"] == 6
    assert info.parent is not None and info.parent.version == "v1" and info.parent.images == COUNT
    assert (
        info.parent.weights_sha256 == parent.info.weights_sha256 and info.parent.manifest_digest == manifest.info.digest
    )
    assert (info.weights_sha256 == parent.info.weights_sha256) is (kind == "temperature")
    more = [] if kind == "temperature" else [kind]
    assert list(info.parent.changed) == ["temperature", *more, "threshold", "review band"]
    assert folder.pointer() is None, "best.json stays"
    assert json.loads(found.file(LOCAL_REPORT)) == {"taken": kind}
    card = (Path(found.uri) / "MODEL_CARD.md").read_text()
    assert f"{COUNT} images of 6 subjects" in card and "v1" in card


def of_costs(parent: Bundle) -> Bundle:
    """The same, whose threshold was chosen by costs."""
    training = {"monitor": "val_auc", "costs": "FN=5,FP=1", "target_sensitivity": None}
    return replace(parent, info=parent.info.model_copy(update={"training": training}))


def test_a_threshold_that_is_kept_is_that_of_the_parent(parent: Bundle, manifest: Manifest, tmp_path: Path) -> None:
    seen, _, _ = seen_by(parent, manifest)
    change, asked = Change("temperature", 0.7, np.zeros(1)), Asked(costs=Costs(5, 1))
    cut = carried(0.5, seen.local, change, change.values(seen.local))
    kept = replace(adapted(seen.local, change, cut), has_new_threshold=False)
    folder = ModelFolder(str(tmp_path / "m"))
    made = publish_adapted(of_costs(parent), kept, asked, seen, manifest, folder, {})
    assert made.info.review_band == pytest.approx([expit(logit(end) * 2 / 0.7) for end in (0.4, 0.6)])
    assert rule_of(made.info) == (None, Costs(5, 1))
    chosen, temperature = threshold_of(made.info), temperature_of(made.info)
    assert (chosen.is_inherited, chosen.on, chosen.images) == (True, "validation", None)
    assert (temperature.is_inherited, temperature.on, temperature.images) == (False, "local", COUNT)
    ends = {"at_low": None, "at_high": None}
    said = reach({"holds": "", "threshold": chosen.record() | ends, "temperature": temperature.record()})
    assert said[1] == "The threshold is 0.500, as of its parent, from validation images there."
    assert said[2].endswith(f"chosen on {COUNT} local images of 6 subjects.")
    assert "threshold as of its parent" in (Path(made.uri) / "MODEL_CARD.md").read_text()


def test_another_threshold_has_one_rule_and_the_temperature_of_the_parent(
    parent: Bundle, manifest: Manifest, tmp_path: Path
) -> None:
    """The costs that the parent's threshold was chosen by do not stay beside the sensitivity that this one is for."""
    seen, _, _ = seen_by(parent, manifest)
    only = adapted(seen.local, Change("as it was", parent.info.temperature, np.zeros(1)), 0.3)
    asked, folder = Asked(target_sensitivity=0.95), ModelFolder(str(tmp_path / "m"))
    info = publish_adapted(of_costs(parent), only, asked, seen, manifest, folder, {}).info
    assert rule_of(info) == (0.95, None)
    assert info.parent is not None and list(info.parent.changed) == ["threshold", "review band"]
    assert temperature_of(info).is_inherited and not threshold_of(info).is_inherited
    both = info.model_copy(update={"training": info.training | {"costs": "FN=5,FP=1"}})
    assert rule_of(both) == (0.95, None), "of a version that was made before"


def test_the_local_images_are_known_again(parent: Bundle, manifest: Manifest, tmp_path: Path) -> None:
    seen, _, rows = seen_by(parent, manifest)
    for kind, part in (("temperature", "validation"), ("head", "train")):
        change = Change(kind, 0.7, np.zeros(1))  # type: ignore[arg-type]
        folder = ModelFolder(str(tmp_path / kind))
        made = publish_adapted(parent, adapted(seen.local, change, 0.5), Asked(), seen, manifest, folder, {})
        sketch = read_sketch(made)
        assert sketch is not None and len(sketch) == COUNT + 1
        met = sketch.by_bytes(Path(rows[0].uri).read_bytes())
        assert met is not None and met.part == part


def test_what_stays_as_it_was_is_no_version(parent: Bundle, manifest: Manifest) -> None:
    seen, _, _ = seen_by(parent, manifest)
    rng = np.random.default_rng(0)
    targets = (rng.random(COUNT) < 0.5).astype(np.int64)  # the scores say nothing of them
    found = adapt(replace(seen.local, targets=targets), Asked(shifts=False))
    assert found.change.kind in ("as it was", "temperature")
    kept = adapted(seen.local, Change("as it was", parent.info.temperature, np.zeros(1)), parent.info.threshold)
    assert changes(parent.info, kept) == ()


def calibrated(parent: Bundle, manifest: Manifest, out: Path, *more: str) -> int:
    command = [manifest.uri, "--model", parent.uri, "--out", str(out), "--target-sensitivity", "0.9", *more]
    return calibrate.command(command)


def having_learnt(parent: Bundle, rows: list[ManifestRow], folder: Path) -> Bundle:
    """The same model, whose sketch says that it learnt from these images."""
    sketch, files = read_sketch(parent), {name: parent.file(name) for name in (WEIGHTS, GRAPH)}
    assert sketch is not None
    read = [Path(row.uri).read_bytes() for row in rows]
    entries = [sketch.entry(data, load_image(data, SIZE).pixels) for data in read]
    return write_bundle(str(folder), parent.info, {**files, SKETCH: sketch.extended("train", entries).packed()})


def test_a_calibration_leaves_its_record_and_leaves_out_what_the_model_learnt_from(
    parent: Bundle, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    without_ray(monkeypatch)
    rows = manifest.split("test")
    known = having_learnt(parent, rows[:1], tmp_path / "known" / "m" / "v1")
    assert calibrated(known, manifest, tmp_path / "out") == 0
    [made] = (tmp_path / "out" / "m").iterdir()
    kept = Record.model_validate_json((made / "run.json").read_bytes())
    assert (kept.job, kept.status, kept.exit_code, kept.has_output) == ("calibrate", "complete", 0, True)
    assert kept.counts == {"images": COUNT, "read": COUNT - 1, "learnt_from": 1}
    bundle = read_bundle(str(made))
    assert kept.digests["model"] == bundle.info.identity() != parent.info.identity()
    assert kept.configuration["target_sensitivity"] == 0.9
    assert bundle.info.parent is not None and bundle.info.parent.images == COUNT - 1
    assert f"1 of {COUNT} images are among those that the model learnt from" in capsys.readouterr().out


def test_images_that_the_model_learnt_from_calibrate_nothing(
    parent: Bundle, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    without_ray(monkeypatch)
    known = having_learnt(parent, manifest.split("test"), tmp_path / "known" / "m" / "v1")
    assert calibrated(known, manifest, tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert f"{COUNT} of {COUNT} images are among those that the model learnt from, byte by byte" in said
    assert "without them: 0 labelled images" in said and not (tmp_path / "out").exists()
