"""How many subjects and images a figure needs, in words."""

from pipeline.evaluation.intervals import exact_interval
from pipeline.evaluation.sample_size import enough_units, few_of


def test_enough_is_the_first_number_of_tens_whose_interval_is_narrow() -> None:
    enough = enough_units()
    wide, narrow = (exact_interval(9 * units // 10, units) for units in (enough - 10, enough))
    assert 0.9 - narrow.low <= 0.1 < 0.9 - wide.low


def test_a_class_is_named_once_and_the_scarcest_come_first() -> None:
    units = {"a": 1, "b": 4, "c": 9}
    images = {"a": 3, "b": 50, "c": 29, "d": 30}
    assert few_of(units, images, "subjects") == "1 subject of a, 4 subjects of b, 29 images of c"
    assert few_of({}, {"a": 1, "b": 30}, "blocks") == "1 image of a"
    assert few_of({"a": 5}, {"a": 30, "b": 0}, "subjects") == ""


def test_of_many_scarce_classes_a_few_are_named() -> None:
    images = {f"c{number}": 10 + number for number in range(6)}
    assert few_of({}, images, "subjects").endswith("13 images of c3 and 2 more classes")
    assert few_of({}, dict(list(images.items())[:5]), "subjects").endswith(" and 1 more class")
