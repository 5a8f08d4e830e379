"""What a bundle knows of subjects: how it calls their cells, and how probable it is that one is positive as a whole.

A subject's cells are called positive in a share that differs from subject to subject, so the count called is taken as
beta-binomial: around one mean in subjects that have the label, around a lower one in those that have not, with one
overdispersion. Bayes' rule then gives a probability that rises with the count called, and that more cells make surer.
Four numbers, with their covariance, are all that is fitted; `pipeline/evaluation/subject_fit.py` does it.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.base.errors import UsageError
from pipeline.model.cell_rates import (
    CONFIDENCE,
    MISSED_AT_MOST,
    CellRates,
    Share,
    corrected_share,
    detection_limit,
    missed,
    missed_at_best,
)

SHARE_LIMIT = 0.2  # blasts of which acute leukemia is spoken (WHO)
_SAMPLES = 400  # of the four numbers
_MORE_CELLS = 500
_SHARE_TOLD = 0.01
Floats = NDArray[np.float64]


class SubjectLabel(BaseModel):
    """Which subjects are positive: those with a value in a column of the manifest, or by their true share of cells."""

    model_config = ConfigDict(frozen=True)

    column: str | None = None
    values: tuple[str, ...] = ()
    share_above: float = SHARE_LIMIT  # where no column is named

    @classmethod
    def parse(cls, text: str) -> "SubjectLabel":
        """Read `diagnosis=APL` or `diagnosis=APL,AML`. Raises UsageError."""
        column, sign, values = text.partition("=")
        named = tuple(part.strip() for part in values.split(",") if part.strip())
        if not (column.strip() and sign and named):
            raise UsageError(f"{text!r}: expected COLUMN=VALUE, as in diagnosis=APL; several values with commas")
        return cls(column=column.strip(), values=named)

    def __str__(self) -> str:
        if self.column is None:
            return f"more than {100 * self.share_above:g} % of the cells are truly positive"
        return f"{self.column} is {' or '.join(self.values)}"


class RollUp(BaseModel):
    """The probability that a subject is positive, from how many of its cells were called."""

    model_config = ConfigDict(frozen=True)

    positives: int  # subjects that it was fitted to
    negatives: int
    # logit of the share called in negative subjects; log of how far that of positive ones lies above; logit of the
    # overdispersion; log odds of being positive among the subjects fitted to
    centre: tuple[float, float, float, float]
    covariance: tuple[tuple[float, float, float, float], ...]  # (4, 4)

    def probability(self, called: int, cells: int, confidence: float = CONFIDENCE) -> Share:
        """With its interval, which comes of how few subjects the numbers are known from."""
        if not 0 <= called <= cells or cells < 1:
            raise UsageError(f"{called} of {cells} cells called positive: expected 0 to all of one or more")
        low_share, high_share, spread, odds = _sampled(self)
        log_odds = odds + _log_likelihood(called, cells, high_share, spread)
        log_odds -= _log_likelihood(called, cells, low_share, spread)
        drawn = 1 / (1 + np.exp(-np.clip(log_odds, -700, 700)))
        tail = (1 - confidence) / 2
        value, low, high = (float(found) for found in (drawn.mean(), *np.quantile(drawn, [tail, 1 - tail])))
        return Share(value, min(low, value), max(high, value))  # a mean of few large ones lies above most of them


class SubjectRules(BaseModel):
    """`subject_rules` of `bundle.json`. What is null has its reason beside it."""

    model_config = ConfigDict(frozen=True)

    threshold: float  # that cells are called by
    temperature: float  # of their probabilities
    rates: CellRates | None = None
    no_rates: str = ""
    label: SubjectLabel = SubjectLabel()
    roll_up: RollUp | None = None
    no_roll_up: str = ""

    def at(self, threshold: float, temperature: float) -> "SubjectRules":
        """What holds of it where cells are called by this threshold, of probabilities by this temperature."""
        if (self.threshold, self.temperature) == (threshold, temperature):
            return self
        why = (
            f"they are known where cells are called at {self.threshold:.3f} (temperature {self.temperature:.3f}), here "
            f"they are at {threshold:.3f} ({temperature:.3f})"
        )
        return SubjectRules(
            threshold=threshold, temperature=temperature, no_rates=why, label=self.label, no_roll_up=why
        )

    def share(self, called: int, cells: int, confidence: float = CONFIDENCE) -> Share | None:
        return None if self.rates is None else corrected_share(self.rates, called, cells, confidence)

    def probability(self, called: int, cells: int, confidence: float = CONFIDENCE) -> Share | None:
        return None if self.roll_up is None else self.roll_up.probability(called, cells, confidence)


def detection(rates: CellRates, cells: int) -> list[str]:
    """What so many cells of a subject cannot show, in sentences."""
    return list(_detection(rates, cells))


@functools.lru_cache(maxsize=1000)
def _detection(rates: CellRates, cells: int) -> Sequence[str]:
    share, more = _SHARE_TOLD, cells + _MORE_CELLS
    now, then, best = missed(rates, cells, share), missed(rates, more, share), missed_at_best(rates, share)
    first = (
        f"Of {cells:,} {'cell' if cells == 1 else 'cells'} of a subject, a share of {100 * share:g} % that is positive "
        f"is missed with probability {percent(now)}"
    )
    is_less = then < now and percent(then) != percent(now)
    more_cells = (
        f"; {_MORE_CELLS} more cells bring it to {percent(then)}." if is_less else ", and more cells hardly help."
    )
    floor = (
        f" With any number of them it stays at {percent(best)}: false alarms differ between subjects." if best else ""
    )
    return (first + more_cells + floor, _smallest(rates, cells))


def _smallest(rates: CellRates, cells: int) -> str:
    """The shares that are detected, by so many cells and at best."""
    told = f"missed with at most {100 * MISSED_AT_MOST:g} %"
    here, best = detection_limit(rates, cells), detection_limit(rates, None)
    if best is None:
        return f"No share is {told}, whatever the number of cells."
    if here is None:
        return f"No share is {told} of {cells:,} cells; {percent(best)} is, of any number."
    return f"The smallest share {told} is {percent(here)} of {cells:,} cells, {percent(best)} of any number."


def percent(share: float) -> str:
    """13 %, 0.4 %, < 0.1 %; nothing but all is 100 %."""
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.5 <= value < 100:
        return "> 99 %"
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.1f} %"


@functools.lru_cache(maxsize=4)
def _sampled(roll_up: RollUp) -> tuple[Floats, Floats, Floats, Floats]:
    """(_SAMPLES,) each: share called in negative and in positive subjects, overdispersion, log odds; the same ones."""
    rng = np.random.default_rng(0)
    low, gap, spread, odds = rng.multivariate_normal(roll_up.centre, roll_up.covariance, _SAMPLES, method="eigh").T
    logit_high = low + np.exp(np.minimum(gap, 4.0))
    return _expit(low), _expit(logit_high), _expit(spread), odds


def _expit(values: Floats) -> Floats:
    return np.asarray(np.clip(1 / (1 + np.exp(-np.clip(values, -30, 30))), 1e-9, 1 - 1e-9))


def _log_likelihood(called: int, cells: int, share: Floats, overdispersion: Floats) -> Floats:
    """Beta-binomial, but for a term that both kinds of subjects have."""
    from scipy.special import betaln

    size = 1 / overdispersion - 1
    a, b = share * size, (1 - share) * size
    found: Floats = betaln(called + a, cells - called + b) - betaln(a, b)
    return found
