"""What a search may change, as a person writes it, and the proposals it makes of that: the same for the same seed.

`learning_rate=1e-4..3e-3` is drawn on a logarithmic scale, rounded where the option takes whole numbers,
`label_smoothing=0,0.05,0.1` one of these. Proposals are a
Halton sequence (doi:10.1007/BF01386213), moved by the seed: they fill the space evenly however many are made, and more
of them leave the earlier ones as they were.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.base.errors import UsageError

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)
_DIGITS = 3  # of a drawn number: what a person would type


@dataclass(frozen=True)
class Range:
    """Both ends above 0, drawn by their logarithm."""

    low: float
    high: float
    is_whole: bool = False

    def at(self, share: float) -> str:
        value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        value = min(max(value, self.low), self.high)
        if self.is_whole:
            return str(round(value))
        written = f"{value:.{_DIGITS}g}"
        return written if self.low <= float(written) <= self.high else repr(value)

    def ends(self) -> tuple[str, str]:
        return f"{self.low:g}", f"{self.high:g}"


@dataclass(frozen=True)
class Choice:
    values: tuple[str, ...]

    def at(self, share: float) -> str:
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def ends(self) -> tuple[str, ...]:
        return self.values


Space = dict[str, Range | Choice]  # by the option's name


def read_space(written: Sequence[str], allowed: Sequence[str], whole: Collection[str] = ()) -> Space:
    """`whole`: options that take whole numbers. Raises UsageError that names what cannot be read."""
    space: Space = {}
    for each in written:
        name, _, values = each.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if name not in allowed:
            raise UsageError(f"--space {each}: {name or 'nothing'} cannot be searched; one of {', '.join(allowed)}")
        if name in space:
            raise UsageError(f"--space {each}: {name} is given twice")
        space[name] = _read_values(each, values.strip(), is_whole=name in whole)
    if not 1 <= len(space) <= len(_PRIMES):
        raise UsageError(f"--space: give one to {len(_PRIMES)} options to search")
    return space


def _read_values(written: str, values: str, *, is_whole: bool) -> Range | Choice:
    low, is_range, high = values.partition("..")
    if is_range:
        try:
            found = Range(float(low), float(high), is_whole)
        except ValueError:
            raise UsageError(f"--space {written}: two numbers are needed, NAME=LOW..HIGH") from None
        if not 0 < found.low < found.high < math.inf:
            raise UsageError(f"--space {written}: LOW must be above 0 and below HIGH; for 0, list values: NAME=0,0.1")
        if is_whole and not (found.low.is_integer() and found.high.is_integer()):
            raise UsageError(f"--space {written}: LOW and HIGH must be whole numbers")
        return found
    choices = tuple(value.strip() for value in values.split(","))
    if len(set(choices)) < max(2, len(choices)) or not all(choices):
        raise UsageError(f"--space {written}: give NAME=LOW..HIGH, or different values, NAME=ONE,OTHER")
    return Choice(choices)


def proposal(space: Space, number: int, seed: int) -> dict[str, str]:
    """The `number`-th set of values, from 1; 0 is nothing changed, what everything else is compared with."""
    if number == 0:
        return {}
    moves = np.random.default_rng(seed).random(len(_PRIMES))
    return {
        name: values.at((_radical_inverse(number, prime) + move) % 1.0)
        for (name, values), prime, move in zip(space.items(), _PRIMES, moves, strict=False)
    }


def _radical_inverse(number: int, base: int) -> float:
    """The digits of `number` behind the point, mirrored: in [0, 1)."""
    share, scale = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        share += digit * scale
        scale /= base
    return share
