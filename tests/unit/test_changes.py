"""Changed copies: what each leaves and what it takes away, the same on any worker."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluation.changes import DISTURBANCES, HIDDEN, RING, UNCHANGED, Copies, cells_of, turned_hue
from pipeline.evaluation.nuclei import nuclei, two_thresholds

FILL = (230.0, 210.0, 200.0)
GROUND, RED_CELL, NUCLEUS, BLACK = (238, 224, 216), (205, 150, 150), (90, 40, 150), (0, 0, 0)
Pixels = NDArray[np.uint8]


def disc(side: int, x: float, y: float, radius: float) -> NDArray[np.bool_]:
    away = np.hypot(*np.meshgrid(np.arange(side) - x * side, np.arange(side) - y * side))
    return np.asarray(away < radius * side)


def field(side: int = 96, *, has_nucleus: bool = True, has_corner: bool = False) -> tuple[Pixels, NDArray[np.bool_]]:
    """A nucleus among red cells, and where it is; a black corner, as of a turned photograph."""
    image = np.full((side, side, 3), GROUND, np.uint8)
    for x, y in ((0.1, 0.2), (0.8, 0.15), (0.85, 0.8), (0.2, 0.85), (0.5, 0.1)):
        image[disc(side, x, y, 0.09)] = RED_CELL
    where = disc(side, 0.5, 0.5, 0.14)
    if has_nucleus:
        image[where] = NUCLEUS
    if has_corner:
        image[np.add.outer(np.arange(side), np.arange(side)) < side / 3] = BLACK
    noisy = image + np.random.default_rng(0).normal(0, 3, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), where


@pytest.mark.parametrize("has_corner", [False, True])
def test_nuclei_are_found_among_red_cells_and_black_corners_are_none(has_corner: bool) -> None:
    image, where = field(has_corner=has_corner)
    (found,) = nuclei(image[None])
    assert (found & where).sum() / (found | where).sum() > 0.85


def test_where_there_is_no_nucleus_none_is_found_and_the_middle_counts_as_the_cell() -> None:
    image, _ = field(has_nucleus=False)
    blank = np.full((96, 96, 3), 240, np.uint8)
    assert not nuclei(np.stack([blank])).any() and nuclei(np.empty((0, 8, 8, 3), np.uint8)).shape == (0, 8, 8)
    (middle,) = cells_of(blank[None])
    assert middle[48, 48] and not middle[4, 4] and 0.15 < middle.mean() < 0.25
    assert nuclei(image[None]).mean() < 0.2  # red cells at most


def test_two_thresholds_part_three_levels() -> None:
    counts = np.zeros(256)
    counts[[20, 22, 100, 103, 200]] = (500, 400, 60, 70, 20)
    assert two_thresholds(counts) == (100, 200)
    assert two_thresholds(np.eye(256)[5]) is None


def copies_of(image: Pixels, seen: int | None = None, *, disturbed: bool = False) -> dict[tuple[str, int], Pixels]:
    copies = Copies(FILL, disturbed)
    made = copies.made(image[None], seen or len(image), [7])
    return {key: some[0] for key, some in zip(copies.keys, made, strict=True)}


def test_what_is_hidden_is_gone_and_the_rest_stays() -> None:
    image, where = field()
    found = copies_of(image)
    assert set(found) == {(UNCHANGED, 0), *((key, 0) for key in HIDDEN)}
    assert (found[UNCHANGED, 0] == image).all()
    ring = round(RING * 96)
    border, background, cell = (found[key, 0] for key in ("border", "background", "cell"))
    inside = border[ring:-ring, ring:-ring].reshape(-1, 3)
    assert (inside == inside[0]).all(), "one colour, which tells nothing of what was there"
    edge = np.concatenate([image[:ring].reshape(-1, 3), image[-ring:].reshape(-1, 3)]).mean(axis=0)
    assert np.abs(inside[0] - edge).max() < 5 and (border[:ring] == image[:ring]).all()
    assert (background[where] == background[48, 48]).all() and (background[:20] == image[:20]).all()
    assert (cell[where] == image[where]).all() and (cell[0, 0] == FILL).all()


def test_nothing_of_a_masked_cell_shows_in_its_background() -> None:
    """Two cells that differ in all but their outline give one picture."""
    one, where = field()
    other = one.copy()
    other[where] = other[where] // 2 + np.array([30, 5, 90], np.uint8)
    assert (copies_of(one)["background", 0] == copies_of(other)["background", 0]).all()
    assert (copies_of(one)["border", 0] == copies_of(other)["border", 0]).all()


def test_blurred_grey_and_turned_copies_lose_form_colour_and_hue() -> None:
    image, _ = field()
    found = copies_of(image)
    assert found["blurred", 0].std(axis=(0, 1)).max() < 0.6 * image.std(axis=(0, 1)).max()
    grey, luma = found["grey", 0].astype(int), np.array([0.299, 0.587, 0.114])
    assert (grey == grey[..., :1]).all() and np.abs(grey[..., 0] - image @ luma).max() <= 1
    turned = found["turned", 0]
    inside = (turned > 0).all(axis=2) & (turned < 255).all(axis=2)
    assert np.abs((turned @ luma) - image @ luma)[inside].max() < 2
    assert turned[48, 48, 0] < turned[48, 48, 1] < turned[48, 48, 2], "purple became teal"
    assert np.abs(turned_hue(image[None], 360.0)[0].astype(int) - image).max() <= 1


def test_only_what_the_network_sees_is_changed() -> None:
    image, _ = field()
    for copy in copies_of(image, 48, disturbed=True).values():
        rest = copy.copy()
        rest[24:72, 24:72] = image[24:72, 24:72]
        assert (rest == image).all()


def test_each_disturbance_grows_with_its_severity_and_is_the_same_in_any_batch() -> None:
    image, _ = field()
    alone = copies_of(image, disturbed=True)
    for each in DISTURBANCES:
        apart = [np.abs(alone[each.key, k].astype(int) - image).mean() for k in range(1, 5)]
        assert apart == sorted(apart) and apart[0] > 0.1, each.key
    copies = Copies(FILL, True)
    other = field(has_corner=True)[0]
    batch = copies.made(np.stack([other, image]), 96, [-3, 7])
    for key, some in zip(copies.keys, batch, strict=True):
        assert some.dtype == np.uint8 and (some[1] == alone[key]).all(), key


def test_steps_do_what_they_say() -> None:
    image, _ = field()
    found = copies_of(image, disturbed=True)
    assert found["darker", 4].astype(int).mean() == pytest.approx(image.mean() / 2, abs=1)
    noise = found["noise", 3].astype(float) - image
    assert noise[(image > 80) & (image < 170)].std() == pytest.approx(20, rel=0.05)
    density = [-np.log(np.maximum(some.astype(float), 1) / 255).sum() for some in (image, found["stain", 4])]
    assert density[1] != pytest.approx(density[0], rel=0.02)
    told = [each.told(each.steps[0]) for each in DISTURBANCES]
    assert told[:2] == ["standard deviation 5 of 255", "Gaussian, 0.5 % of the side"]
