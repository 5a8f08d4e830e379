"""Whether maps explain anything: the nucleus finder on drawn cells, and each score on maps whose worth is known."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.explanation import (
    FAILS,
    HOLDS,
    SHARES,
    UNKNOWN,
    MapScores,
    deletion,
    judged,
    pointing,
    random_order,
    rank_correlation,
    sentences,
)
from pipeline.evaluation.intervals import exact_interval
from pipeline.evaluation.map_checks import MapWorker
from pipeline.evaluation.nuclei import nuclei
from pipeline.model.bundle import GRAPH
from pipeline.model.map_graph import drawn_last
from pipeline.model.maps import Mapper
from pipeline.samples.cells import draw_patch, draw_red_cells, draw_white_cell
from pipeline.samples.style import AZURE, EOSIN, draw_style
from pipeline.storage.stores import Stores
from tests.bundles import make_mapped_bundle
from tests.unit.test_maps import red_at

SIZE, ALL = 64, slice(0, 64)


def drawn_cell(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A white cell among red ones, uint8 (S, S, 3), and where its chromatin is, (S, S)."""
    rng = np.random.default_rng(seed)
    style, scale, size = draw_style(rng), 6.0, 161
    patch = draw_patch(rng, draw_white_cell(rng, kind), scale, style.chromatin)
    stain = np.zeros((3, size, size), np.float32)
    (body,) = draw_red_cells(rng, np.array([style.red_cell_um], np.float32), scale, style.pallor)
    for row, column in ((0, 0), (0, size - len(body)), (size - len(body), 0)):
        stain[EOSIN, row : row + len(body), column : column + len(body)] += body
    half, middle = len(patch.cover) // 2, size // 2
    inside = slice(max(0, middle - half), middle + half + 1)
    cut = slice(max(0, half - middle), max(0, half - middle) + inside.stop - inside.start)
    stain[:, inside, inside] *= 1 - patch.cover[cut, cut]
    stain[:, inside, inside] += patch.stain[:, cut, cut]
    light = np.exp(-style.optical_density.T @ stain.reshape(3, -1)).reshape(3, size, size)
    photograph = light * style.background[:, None, None] + rng.normal(0, style.noise, light.shape)
    return photograph.clip(0, 255).astype(np.uint8).transpose(1, 2, 0), stain[AZURE] > 0.3


@pytest.mark.parametrize("kind", ["blast", "lymphocyte", "neutrophil"])
def test_nuclei_of_drawn_cells_are_found_and_red_cells_are_not(kind: str) -> None:
    overlaps = []
    for seed in range(20):
        pixels, known = drawn_cell(seed, kind)
        (found,) = nuclei(pixels[None])
        overlaps.append((found & known).sum() / (found | known).sum())
    assert np.median(overlaps) > 0.9 and np.quantile(overlaps, 0.1) > 0.8


def test_where_nothing_is_stained_there_is_no_nucleus() -> None:
    rng = np.random.default_rng(0)
    for level in (0, 128, 255):
        assert not nuclei(np.full((1, 64, 64, 3), level, np.uint8)).any()
    assert not nuclei(rng.normal(220, 3, (1, 64, 64, 3)).clip(0, 255).astype(np.uint8)).any()


def test_pointing_asks_for_the_maximum_within_what_is_seen() -> None:
    nucleus = np.zeros((SIZE, SIZE), bool)
    nucleus[8:16, 8:24] = True
    map_ = np.zeros((SIZE, SIZE), np.float32)
    assert pointing(map_, nucleus, ALL) is None  # no place speaks for the class
    map_[10, 10], map_[40, 40] = 1, 0.9
    assert pointing(map_, nucleus, ALL) == (True, 128 / SIZE**2, False)
    map_[40, 40] = 2
    assert pointing(map_, nucleus, ALL) == (False, 128 / SIZE**2, False)
    assert pointing(map_, nucleus, slice(24, 48)) is None  # no nucleus there


def test_deletion_is_low_for_a_map_that_knows_and_high_for_one_that_does_not() -> None:
    image = red_at(SIZE, 40, 8, side=12)
    knows, wrong = np.zeros((2, SIZE, SIZE), np.float32)
    knows[38:54, 6:22] = 1
    wrong[:20] = 1

    def redness(images: np.ndarray) -> np.ndarray:
        return (images[..., 0].astype(float) - images[..., 2] > 150).mean(axis=(1, 2)) / (144 / SIZE**2)

    areas = [deletion(image, order, ALL, redness) for order in (knows, wrong)]
    assert areas[0] < 0.1 < areas[1]
    assert deletion(image, knows, ALL, lambda images: np.ones(len(images))) == pytest.approx(1)
    first, last = [], []
    deletion(
        image, knows, slice(8, 56), lambda images: (first.append(images[0]), last.append(images[-1])) and np.zeros(9)
    )
    assert len(SHARES) == 9 and np.array_equal(first[0], image)
    changed = (last[0] != image).any(axis=2)
    assert not changed[:8].any() and not changed[56:].any() and changed.any()  # what is not seen stays


def test_a_random_order_is_as_smooth_as_a_map() -> None:
    order = random_order(np.random.default_rng(0), (4, 4), SIZE, slice(16, 48))
    assert np.ptp(order[16:48, 16:48]) > 0.3 and np.abs(np.diff(order[16:48, 16:48], axis=0)).max() < 0.2
    assert not order[:16].any() and not order[:, 48:].any()


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    one, other = np.random.default_rng(0).normal(size=(2, 5, 5)).astype(np.float32)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic)
    assert rank_correlation(one, one**3) == pytest.approx(1)
    assert rank_correlation(one, np.zeros_like(one)) is None


def scores(hits: bool, gain: float, alike: float) -> list[MapScores]:
    return [MapScores(hits, 0.1, False, 0.5, 0.5 + gain + k / 1000, alike) for k in range(20)]


def test_maps_that_hold_and_maps_that_fail_are_said_to() -> None:
    good = judged(scores(True, 0.2, 0.1), 20, "drawn")
    assert [found["holds"] for found in (good["pointing"], good["deletion"], good["randomization"])] == [True] * 3
    assert all(sentence.startswith(HOLDS) for sentence in sentences(good))
    bad = judged(scores(False, -0.2, 0.95), 20, "drawn")
    assert len(sentences(bad)) == 3 and all(sentence.startswith(FAILS) for sentence in sentences(bad))
    assert "the map points no better than the middle does" in sentences(bad)[0]
    assert "in 20 of 20 images (100 %; 95 % interval" in sentences(good)[0]
    two = sentences(judged(scores(True, 0.2, 0.1)[:2], 100, "drawn"))[0]
    assert "in 2 of 2 images" in two and "of 100" not in two and "any point would be in 10 %" in two
    nothing = judged([MapScores(None, None, None, None, None, None)], 1, "drawn")
    assert nothing["pointing"] is None and sentences(nothing) == []


def of_subjects(hits: list[bool], gains: list[float], subjects: list[str | None]) -> list[MapScores]:
    return [
        MapScores(hit, 0.5, False, 0.5, 0.5 + gain, 0.1, subject)
        for hit, gain, subject in zip(hits, gains, subjects, strict=True)
    ]


def test_limits_over_images_of_their_own_are_clopper_and_pearsons_and_students() -> None:
    from scipy.stats import ttest_1samp

    gains = [0.01 * k - 0.03 for k in range(20)]
    found = judged(of_subjects([True] * 17 + [False] * 3, gains, [None] * 20), 20, "drawn")
    exact = exact_interval(17, 20)
    hits, gain = found["pointing"]["hits"], found["deletion"]["gain"]
    assert hits["value"] == 0.85 and hits["unit"] == found["unit"] == "image"
    assert hits["low"] == pytest.approx(exact.low, abs=0.02) and hits["high"] == pytest.approx(exact.high, abs=0.02)
    known = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (gain["low"], gain["high"]) == pytest.approx((known.low, known.high))


def test_images_of_one_subject_count_as_one() -> None:
    """Four subjects with 10 images each that are all alike: as four images, not as forty."""
    hits, gains = [True, True, True, False], [0.10, 0.12, 0.09, -0.02]
    names: list[str | None] = ["a", "b", "c", "d"]
    few = judged(of_subjects(hits, gains, names), 4, "drawn")
    many = judged(of_subjects(hits * 10, gains * 10, names * 10), 40, "drawn")
    as_images = judged(of_subjects(hits * 10, gains * 10, [None] * 40), 40, "drawn")
    assert many["unit"] == "subject" and many["pointing"]["units"] == many["deletion"]["units"] == 4
    for name, part in (("pointing", "hits"), ("deletion", "gain")):
        for limit in ("low", "high"):
            assert many[name][part][limit] == pytest.approx(few[name][part][limit])
        assert as_images[name]["holds"] is True and many[name]["holds"] is False


def test_of_one_subject_nothing_can_be_told() -> None:
    found = judged(of_subjects([True] * 30, [0.2] * 30, ["a"] * 30), 30, "drawn")
    assert found["pointing"]["holds"] is None and found["deletion"]["holds"] is None
    assert found["pointing"]["hits"]["low"] is None and found["deletion"]["gain"]["low"] is None
    said = sentences(found)
    assert [one.startswith(UNKNOWN) for one in said] == [True, True, False]
    assert "all of them of one subject or block" in said[0] and "nan" not in " ".join(said)


def test_drawn_last_layers_make_another_map_and_leave_the_first_layers(tmp_path: Path) -> None:
    graph = make_mapped_bundle(tmp_path).file(GRAPH)
    image = red_at(SIZE, 8, 8)[None]
    before, after = Mapper(graph), Mapper(drawn_last(graph, 0))
    assert drawn_last(graph, 0) == drawn_last(graph, 0)
    one, other = before.inner(image), after.inner(image)
    np.testing.assert_array_equal(one.first, other.first)  # the convolution; a third of two layers is the head
    assert sorted(before.tail.steps[-1].constants[0].ravel()) == sorted(after.tail.steps[-1].constants[0].ravel())


def test_a_worker_scores_maps_of_a_model_that_looks_at_what_is_red(tmp_path: Path) -> None:
    from PIL import Image

    from tests.unit.test_evaluation import row

    rows = [row(tmp_path, number, 128, 1) for number in range(2)]
    for number, made in enumerate(rows):
        Image.fromarray(red_at(SIZE, 8 + 20 * number, 40, side=12)).save(made.uri)
    worker = MapWorker(make_mapped_bundle(tmp_path / "model", SIZE), Stores())
    found = worker.score(rows)
    assert [score.subject for score in found] == [made.subject_id for made in rows]
    for score in found:
        assert score.deletion is not None and score.random is not None and score.deletion < score.random
