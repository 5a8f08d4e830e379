"""Promotion: what a protocol asks, and what came of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.base.errors import Code, ImageRejected, InputError
from pipeline.evaluation.comparison.predict import ComparisonWorker
from pipeline.evaluation.comparison.result import Comparison, comparison, metric_keys, metrics_of
from pipeline.evaluation.comparison.speed import Speed
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.predict import Outcome
from pipeline.evaluation.promotion.criteria import SAME, Best, criteria
from pipeline.evaluation.promotion.protocol import Protocol, read_protocol
from pipeline.evaluation.promotion.run import best_beside, candidate
from pipeline.evaluation.promotion.run import manifest_of as manifest_for
from pipeline.evaluation.reach import threshold_of
from pipeline.evaluation.recognized import Recognized
from pipeline.model.bundle import Parent
from pipeline.model.registry import ModelFolder
from pipeline.model.sketch import How
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.training_data import cell_images, manifest_of

SPEED = Speed(100.0, 4.0, 8.0, 50, 1000)


def version(folder: Path, number: int, bias: float = 0.0, **info: Any) -> Any:
    return make_bundle(folder / f"v{number}", 16, seed=number, bias=bias, version=f"v{number}", **info)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- a", "key: value"),
        ("manifest: m", "metrics: Field required"),
        ("manifest: m\nmetrics: [{metric: sensitivity}]", "give a margin, a minimum, or both"),
        ("manifest: m\nmetrics: [{metric: sensitivity, margn: 0.1}]", "margn: Extra inputs"),
        ("manifest: m\nmetrics: [{metric: sensitivity, margin: .nan}]", "metrics.0.margin"),
        ("manifest: m\nsplit: train\nmetrics: [{metric: sensitivity, margin: 0.1}]", "split"),
        ("protocol_version: 9\nmanifest: m\nmetrics: []", "newer leukoray"),
        ("manifest: [", "no YAML"),
        (
            "manifest: m\nmetrics: [{metric: accuracy, minimum: 0.9}]\nmetrics: [{metric: accuracy, minimum: 0.1}]",
            "'metrics' is given twice, again in line 3",
        ),
        ("manifest: m\nmetrics: [{metric: sensitivity, minimum: 0.9, minimum: 0.1}]", "'minimum' is given twice"),
    ],
)
def test_a_protocol_that_does_not_hold_is_refused_by_the_field(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "promotion.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=why):
        read_protocol(str(path), Stores())


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """60 subjects of one image each, at two sites; the second has 20 of them."""
    folder = tmp_path_factory.mktemp("cells")
    rows = [
        row | {"split": "test", "subject_id": f"s{k}", "site": "north" if k < 40 else "south"}
        for k, row in enumerate(cell_images(folder / "images", 60))
    ]
    return manifest_of(rows, folder / "manifest")


def test_a_protocol_holds_for_its_own_images_alone(manifest: Manifest) -> None:
    asked: dict[str, Any] = {"manifest": manifest.uri, "metrics": [{"metric": "sensitivity", "margin": 0.1}]}
    digest = manifest.split_digest("test")
    assert manifest_for(Protocol(**asked, test_digest=digest), Stores()).uri == manifest.uri
    for other in ("", "0" * 64):
        with pytest.raises(InputError, match=f"test_digest: {digest}"):
            manifest_for(Protocol(**asked, test_digest=other), Stores())


def compared(manifest: Manifest, *bundles: Any, silent: Sequence[int] = ()) -> Comparison:
    """`silent`: of how many images each of the bundles says nothing."""
    said = ComparisonWorker(bundles, Stores(), on_gpu=False).predict(manifest.split("test"))
    none, silent = ImageRejected(Code.TRUNCATED, "ends early"), [*silent, *[0] * len(bundles)]
    outcomes = [
        [Outcome(of[k].row, none) if place < silent[k] else of[k] for place, of in enumerate(said)]
        for k in range(len(bundles))
    ]
    thresholds = [threshold_of(bundle.info) for bundle in bundles]
    return comparison(bundles, manifest, "test", outcomes, thresholds, Resampling(300), [SPEED] * len(bundles))


def states(manifest: Manifest, found: Comparison, best: Best | None = None, **asked: Any) -> dict[str, str]:
    protocol = Protocol(
        **{"manifest": manifest.uri, "metrics": [{"metric": "balanced_accuracy", "margin": 1.0}], **asked}
    )
    if best is None:
        best = Best("old", dict(found.pairs[0].differences)) if found.pairs else Best(None)
    return {one.asked: one.state for one in criteria(protocol, found, best)}


def test_a_silent_model_is_worse_than_the_best_and_one_that_is_alike_needs_a_margin_that_can_be_seen(
    tmp_path: Path, manifest: Manifest
) -> None:
    good = version(tmp_path, 1, bias=20.0, manifest_digest=manifest.info.digest)
    silent = version(tmp_path, 2, bias=-20.0, manifest_digest=manifest.info.digest)
    rule = [{"metric": "sensitivity", "margin": 0.3, "minimum": 0.2}]
    found = states(manifest, compared(manifest, silent, good), metrics=rule)
    assert list(found.values()) == ["met", "met", "met", "not met", "not met"]
    # 30 subjects of a class: identical answers still leave 1 - 0.025 ** (1 / 30) = 0.116 to chance
    alike = make_bundle(
        tmp_path / "v3", 16, seed=1, bias=20.0, version="v3", temperature=1.001, manifest_digest=manifest.info.digest
    )
    both = compared(manifest, alike, good)
    judged = [
        list(states(manifest, both, metrics=[{"metric": "sensitivity", "margin": margin}]).values())[-1]
        for margin in (0.05, 0.16)
    ]
    assert judged == ["not met", "met"]


def test_without_a_best_model_nothing_is_worse_and_with_one_that_cannot_be_compared_nothing_is_told(
    tmp_path: Path, manifest: Manifest
) -> None:
    found = compared(manifest, version(tmp_path, 1, manifest_digest=manifest.info.digest))
    rule: dict[str, Any] = {"metrics": [{"metric": "sensitivity", "margin": 0.01}]}
    asked = [
        list(states(manifest, found, best, **rule).values())[-1]
        for best in (Best(None), Best("v0", why_not=SAME), Best("v0", why_not="damaged"))
    ]
    assert asked == ["met", "met", "cannot be told"]


def test_slices_are_judged_where_they_have_enough_subjects(tmp_path: Path, manifest: Manifest) -> None:
    found = compared(manifest, version(tmp_path, 1, manifest_digest=manifest.info.digest))
    said = found.evaluations[0].outcomes
    right = said.called(0.5) == said.truth
    south = np.array([of.row.site == "south" for of in said.scored])
    lowest = min(right[south].mean(), right[~south].mean())

    def state(minimum: float, least: int, column: str = "site") -> str:
        rule = {"column": column, "minimum": minimum, "min_subjects": least}
        return list(states(manifest, found, slices=[rule]).values())[-1]

    assert state(lowest, 20) == "met" and state(min(1.0, lowest + 1e-3), 20) == "not met"
    assert state(0.0, 41) == "cannot be told" and state(0.0, 1, "sex") == "cannot be told"
    north = right[~south].mean()
    assert state(north, 21) == "met"  # the south, with 20, is left out


def test_a_column_of_many_or_of_unknown_values_is_judged_by_those_that_are_known(
    tmp_path: Path, manifest: Manifest
) -> None:
    """20 wards of 2 subjects each, which no table would show, and 20 subjects of no known ward; ages of 60 values."""
    places = [f"ward {k % 20}" if k < 40 else None for k in range(60)]
    table = manifest.table.append_column("ward", pa.array(places, pa.string()))
    table = table.append_column("age", pa.array(range(60), pa.int64()))
    table = table.append_column("only", pa.array(["one"] * 59 + [None], pa.string()))
    more = Manifest(manifest.uri, table, manifest.info)
    found = compared(more, version(tmp_path, 1, manifest_digest=manifest.info.digest))
    said = found.evaluations[0].outcomes
    right = said.called(0.5) == said.truth
    lowest = min(right[[k, k + 20]].mean() for k in range(20))

    def judged(column: str, minimum: float, least: int) -> Any:
        rule = {"column": column, "minimum": minimum, "min_subjects": least}
        protocol = Protocol(manifest="m", metrics=[{"metric": "sensitivity", "minimum": 0.0}], slices=[rule])  # type: ignore[list-item]
        return criteria(protocol, found, Best(None))[-1]

    wards = judged("ward", lowest, 2)
    assert wards.state == "met" and judged("ward", lowest + 1e-3, 2).state == "not met"
    assert wards.found.count("ward ") == 20 and "None" not in wards.found
    assert "20 images without a value are in no group" in wards.found and "2 subjects or more" in wards.asked
    assert judged("ward", 0.0, 3).state == "cannot be told"  # not by the 20 that nobody knows
    assert judged("age", 0.0, 20).state == "met" and "lowest third" in judged("age", 0.0, 20).found
    assert judged("class", 0.0, 30).state == "met"
    assert (judged("only", 0.0, 1).state, judged("only", 0.0, 1).found) == (
        "cannot be told", "the images have no two different values of only"
    )  # fmt: skip
    assert judged("sex", 0.0, 1).found == "the images have no column sex"


def test_blocks_of_file_numbers_are_no_count_of_subjects(tmp_path: Path, manifest: Manifest) -> None:
    """All blocks of a group may be of one subject, which is all that a group is sure to have."""
    blocks = Manifest(manifest.uri, manifest.table, manifest.info.model_copy(update={"units": "blocks"}))
    found = compared(blocks, version(tmp_path, 1, manifest_digest=manifest.info.digest))

    def judged(least: int) -> Any:
        rule = {"column": "site", "minimum": 0.0, "min_subjects": least}
        protocol = Protocol(manifest="m", metrics=[{"metric": "sensitivity", "minimum": 0.0}], slices=[rule])  # type: ignore[list-item]
        return criteria(protocol, found, Best(None))[-1]

    assert judged(2).state == "cannot be told" and "only blocks" in judged(2).found
    assert judged(1).state == "met"


def test_groups_of_many_classes_can_be_asked_for(tmp_path: Path, manifest: Manifest) -> None:
    names = tuple(sorted({str(row.class_name) for row in manifest.split("test")}))
    bundle = make_bundle(
        tmp_path / "m", 16, "multiclass", classes=names, version="m", manifest_digest=manifest.info.digest
    )
    rule = {"column": "class", "minimum": 0.0, "min_subjects": 5}
    asked = {"metrics": [{"metric": "accuracy", "minimum": 0.0}], "slices": [rule]}
    assert list(states(manifest, compared(manifest, bundle), **asked).values())[-1] == "met"


def test_latency_and_the_share_unlike_training_are_asked_where_the_protocol_says(
    tmp_path: Path, manifest: Manifest
) -> None:
    found = compared(manifest, version(tmp_path, 1, manifest_digest=manifest.info.digest))
    assert list(states(manifest, found, latency_p95_ms=8.0).values())[-1] == "met"
    assert list(states(manifest, found, latency_p95_ms=7.9).values())[-1] == "not met"
    assert list(states(manifest, found, max_ood_share=0.5).values())[-1] == "cannot be told"
    assert len(states(manifest, found)) == 4


def test_images_of_training_that_cannot_be_ruled_out_are_said_so(tmp_path: Path, manifest: Manifest) -> None:
    """A bundle of another manifest, without a sketch."""
    found = states(manifest, compared(manifest, version(tmp_path, 1, manifest_digest="other")))
    assert next(iter(found.values())) == "cannot be told"


@pytest.mark.parametrize(
    ("own", "by", "state"),
    [(True, {"bytes": 0, "looks": 2}, "met"), (False, {"bytes": 0, "looks": 2}, "cannot be told"),
     (False, {"bytes": 1, "looks": 0}, "not met"), (True, {"bytes": 1, "looks": 0}, "not met"),
     (False, {"bytes": 0, "looks": 0}, "met")],
)  # fmt: skip
def test_images_of_training_among_those_measured_are_no_ground_for_a_promotion(
    tmp_path: Path, manifest: Manifest, own: bool, by: dict[How, int], state: str
) -> None:
    """Bytes are proof; looks are not, where splits of one manifest hold siblings apart."""
    bundle = version(tmp_path, 1, manifest_digest=manifest.info.digest if own else "other")
    found = compared(manifest, bundle)
    seen = Recognized(images=60, by=by, parts={"train": sum(by.values()), "validation": 0})
    found = replace(found, evaluations=[replace(found.evaluations[0], recognized=seen)])
    assert next(iter(states(manifest, found).values())) == state


def test_a_calibrated_version_without_a_sketch_may_have_learnt_from_the_images(
    tmp_path: Path, manifest: Manifest
) -> None:
    """Its manifest is that of its parent, but it learnt from images of any split."""
    parent = Parent(
        name="cells", version="v0", weights_sha256="", model_sha256="", changed=("head",), images=60, units=60,
        called="subjects", manifest_digest=manifest.info.digest, source=(),
    )  # fmt: skip
    asked = [
        next(iter(states(manifest, compared(manifest, bundle)).values()))
        for bundle in (
            version(tmp_path, 1, manifest_digest=manifest.info.digest),
            version(tmp_path, 2, manifest_digest=manifest.info.digest, parent=parent),
        )
    ]
    assert asked == ["met", "cannot be told"]


@pytest.mark.parametrize(
    ("silent", "share", "state"),
    [((0, 0), 0.0, "met"), ((1, 0), 0.0, "not met"), ((18, 0), 0.25, "not met"), ((18, 0), 0.3, "met"),
     ((0, 18), 0.25, "cannot be told"), ((54, 0), 0.3, "not met")],
)  # fmt: skip
def test_images_without_an_answer_stand_against_a_version(
    tmp_path: Path, manifest: Manifest, silent: tuple[int, int], share: float, state: str
) -> None:
    """Of 60; without this a version that fails on the hard ones looks better by their absence."""
    both = [version(tmp_path, number, bias=20.0, manifest_digest=manifest.info.digest) for number in (1, 2)]
    rule = [{"metric": "sensitivity", "minimum": 0.0}]
    found = states(manifest, compared(manifest, *both, silent=silent), metrics=rule, max_unanswered_share=share)
    assert [of for asked, of in found.items() if "without an answer" in asked] == [state]
    assert [of for asked, of in found.items() if "without an answer" not in asked] == ["met"] * 3


@pytest.mark.parametrize(
    ("made", "state"),
    [
        ({"version": "v2"}, "met"),
        ({"task": "multiclass", "version": "v2"}, "not met"),
        ({"version": "v2", "classes": ("negative", "blast")}, "not met"),
        ({"version": "v2", "unit": "field"}, "not met"),
    ],
)
def test_a_protocol_without_margins_does_not_let_another_question_in(
    tmp_path: Path, manifest: Manifest, made: dict[str, Any], state: str
) -> None:
    """Readers of best.json rely on its classes, and on what its images show."""
    folder = ModelFolder(str(tmp_path))
    folder.point_to(version(tmp_path, 1, unit="cell"))
    best, _ = best_beside(folder, make_bundle(tmp_path / "v2", 16, **made))
    found = compared(manifest, version(tmp_path, 3, manifest_digest=manifest.info.digest))
    rule = [{"metric": "sensitivity", "minimum": 0.0}]
    assert states(manifest, found, best, metrics=rule)["it answers the question of the best model"] == state


def test_what_a_best_model_that_is_gone_answered_cannot_be_told(tmp_path: Path, manifest: Manifest) -> None:
    folder = ModelFolder(str(tmp_path))
    folder.point_to(version(tmp_path, 1))
    (tmp_path / "v1" / "bundle.json").unlink()
    best, _ = best_beside(folder, version(tmp_path, 2))
    found = states(manifest, compared(manifest, version(tmp_path, 3)), best)
    assert found["it answers the question of the best model"] == "cannot be told"


@pytest.mark.parametrize(
    ("task", "asked", "known"),
    [("binary", "f1_macro", "sensitivity, specificity"), ("multiclass", "acuracy", "f1_macro, disease_sensitivity")],
)
def test_a_figure_that_such_models_do_not_have_is_refused_by_name_before_anything_is_read(
    tmp_path: Path, manifest: Manifest, task: Any, asked: str, known: str
) -> None:
    protocol = Protocol(manifest=manifest.uri, metrics=({"metric": asked, "minimum": 0.5},))
    bundle = make_bundle(tmp_path / "model" / "v1", 48, task)
    with pytest.raises(InputError, match=rf"{asked!r}.*{known}"):
        candidate(protocol, manifest, bundle, ModelFolder(str(tmp_path / "model"), Stores()))


def test_the_figures_that_may_be_asked_for_are_those_compared(tmp_path: Path, manifest: Manifest) -> None:
    found = compared(manifest, version(tmp_path, 1)).evaluations[0]
    assert metric_keys(found.bundle.info) == tuple(metrics_of(found))


def test_the_best_of_now_is_compared_where_that_can_be_done(tmp_path: Path) -> None:
    folder, first = ModelFolder(str(tmp_path)), version(tmp_path, 1)
    assert best_beside(folder, first) == (Best(None), None)
    folder.point_to(first)
    assert best_beside(folder, first)[0].why_not == SAME
    other = make_bundle(tmp_path / "v2", 16, "multiclass", version="v2")
    best, bundle = best_beside(folder, other)
    assert bundle is None and "different questions" in best.why_not
    best, bundle = best_beside(folder, version(tmp_path, 3))
    assert bundle is not None and (best.version, bundle.info.version) == ("v1", "v1")
    (tmp_path / "v1" / "model.onnx").write_bytes(b"?")
    best, bundle = best_beside(folder, version(tmp_path, 3))
    assert bundle is None and "cannot be compared" in best.why_not
