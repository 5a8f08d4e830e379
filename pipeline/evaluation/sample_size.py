"""How many subjects and images of a class a figure needs: said where a split is made, and where it is measured."""

from collections.abc import Mapping
from functools import cache

from pipeline.evaluation.intervals import exact_interval

FEW_UNITS = 5  # subjects of a class: fewer, and its figures hang on each of them
FEW_IMAGES = 30
_NAMED = 4  # classes
_SHARE, _MARGIN = 9, 0.1  # tenths of a class that are found, and how well that is to be known


@cache
def enough_units() -> int:
    """The fewest, in steps of ten, whose interval (Clopper and Pearson) at 0.9 lies within 0.1 of it."""
    tens = 1
    while (found := exact_interval(_SHARE * tens, 10 * tens)).value - found.low > _MARGIN:
        tens += 1
    return 10 * tens


def what_is_enough(called: str) -> str:
    """`called`: subjects or blocks."""
    return f"{enough_units()} {called} of a class tell a sensitivity of 0.9 to within {_MARGIN} (95 %)"


def few_of(units: Mapping[str, int], images: Mapping[str, int], called: str) -> str:
    """'2 subjects of blast, 12 images of smudge and 3 more classes', the scarcest first; empty where all have enough.

    A class is named once, by its subjects where these are few. No `units`: none are known.
    """
    scarce = sorted((count, name, called) for name, count in units.items() if 0 < count < FEW_UNITS)
    named = {name for _, name, _ in scarce}
    scarce += sorted(
        (count, name, "images") for name, count in images.items() if 0 < count < FEW_IMAGES and name not in named
    )
    said = [f"{count} {what if count > 1 else what[:-1]} of {name}" for count, name, what in scarce[:_NAMED]]
    rest = len(scarce) - _NAMED
    more = f" and {rest} more {'classes' if rest > 1 else 'class'}" if rest > 0 else ""
    return ", ".join(said) + more
