"""From the cells of a subject that were called positive to the share that is, and to what share could be missed.

Takes counts and the rates at which cells of other subjects are called, gives shares and probabilities in 0..1. The
estimate is Rogan and Gladen's (1978, doi:10.1093/oxfordjournals.aje.a112510). Its interval inverts the distribution of
the count as Clopper and Pearson (1934) do, but sensitivity and false alarms of the subject are drawn from what
subjects show: they differ between subjects, and their means are known from few, which Lang and Reiczigel (2014,
doi:10.1016/j.prevetmed.2013.09.015) allow for as well. A share is detected where its interval excludes none, as the
limit of blank of EP17 has it (Armbruster & Pry 2008). `pipeline/evaluation/subject_fit.py` fits the rates.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.base.errors import UsageError

CONFIDENCE = 0.95
DRAWN = 50  # values that stand for the rate of a subject
MISSED_AT_MOST = 0.05  # probability, of the smallest share that counts as detected
_POOLED = 64  # values that stand for the share called, at one true share
_GRID = np.linspace(0.0, 1.0, 401) ** 2  # true shares, closest near none
Floats = NDArray[np.float64]


class Rate(BaseModel):
    """The share of cells of one kind that is called positive, in 0..1, over subjects."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float  # limits of the mean, 95 %
    high: float
    overdispersion: float  # correlation of the answers within a subject: 0 all subjects alike, 1 each all or none
    cells: int
    subjects: int
    of_subject: tuple[float, ...]  # (DRAWN,) rising: in one more subject it is each of these, equally likely


class CellRates(BaseModel):
    """What a model calls positive, by one operating point."""

    model_config = ConfigDict(frozen=True)

    on: Literal["validation", "out-of-fold", "local"]
    found: Rate  # of diseased cells: sensitivity
    alarms: Rate  # of healthy cells: 1 - specificity

    @property
    def tell_cells_apart(self) -> bool:
        """Whether diseased cells are called more often than healthy ones: else a share tells nothing."""
        return self.found.mean > self.alarms.mean


@dataclass(frozen=True)
class Share:
    """A share of cells with its limits, 0..1."""

    value: float
    low: float
    high: float


@functools.lru_cache(maxsize=10_000)
def corrected_share(rates: CellRates, called: int, cells: int, confidence: float = CONFIDENCE) -> Share:
    """The true share of positive cells in a subject of whose `cells` so many were `called` positive.

    More called moves no limit down. Raises UsageError where counts do not fit, or the rates tell nothing.
    """
    _check(rates, cells)
    if not 0 <= called <= cells:
        raise UsageError(f"{called} of {cells} cells called positive: must lie in 0..{cells}")
    found, alarms = rates.found.mean, rates.alarms.mean
    value = float(np.clip((called / cells - alarms) / (found - alarms), 0.0, 1.0))
    tail = (1 - confidence) / 2
    first = _first(lambda row: _at_least(called, cells, row) > tail, rates)  # true from some share on
    beyond = _first(lambda row: 1 - _at_least(called + 1, cells, row) <= tail, rates)
    low = 0.0 if first == 0 else float(_GRID[first - 1])  # outwards: the grid is no finer
    high = 1.0 if beyond == len(_GRID) else float(_GRID[beyond])
    return Share(value, min(low, value), max(high, value))


def missed(rates: CellRates, cells: int, share: float, confidence: float = CONFIDENCE) -> float:
    """Probability that of so many cells the share looks no different from false alarms: its interval holds 0."""
    _check(rates, cells)
    return 1.0 - _at_least(critical_count(rates, cells, confidence), cells, shares_called(rates, share))


def missed_at_best(rates: CellRates, share: float, confidence: float = CONFIDENCE) -> float:
    """What `missed` comes to with any number of cells: false alarms differ between subjects, and cells do not tell."""
    _check(rates, 1)
    blank, tail = shares_called(rates, 0.0), (1 - confidence) / 2
    limit = blank[int(np.ceil((1 - tail) * len(blank))) - 1]  # not exceeded by more than `tail` of them
    return float((shares_called(rates, share) <= limit).mean())


def detection_limit(rates: CellRates, cells: int | None, confidence: float = CONFIDENCE) -> float | None:
    """The smallest share missed with at most MISSED_AT_MOST; None where even 1 is missed more often.

    Of so many cells; None: of any number.
    """

    def is_told(share: float) -> bool:
        if cells is None:
            return missed_at_best(rates, share, confidence) <= MISSED_AT_MOST
        return missed(rates, cells, share, confidence) <= MISSED_AT_MOST

    if not is_told(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(12):  # to a four-thousandth
        middle = (low + high) / 2
        low, high = (low, middle) if is_told(middle) else (middle, high)
    return high


@functools.lru_cache(maxsize=10_000)
def critical_count(rates: CellRates, cells: int, confidence: float = CONFIDENCE) -> int:
    """The fewest called that no positive cell explains with at most (1 - confidence) / 2; cells + 1: there is none."""
    blank, tail = shares_called(rates, 0.0), (1 - confidence) / 2
    low, high = 0, cells + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _at_least(middle, cells, blank) <= tail else (middle + 1, high)
    return low


def shares_called(rates: CellRates, share: float) -> Floats:
    """Of cells of a subject with this true share, the share called in the long run: equally likely values, rising.

    One in whom diseased cells are called less often than healthy ones is taken to have them called as often.
    """
    alarms = np.asarray(rates.alarms.of_subject)[:, None]
    found = np.maximum(np.asarray(rates.found.of_subject)[None, :], alarms)
    values = np.sort((alarms + share * (found - alarms)).ravel())  # so written, rounding lowers none as shares rise
    places = (np.arange(_POOLED) + 0.5) / _POOLED * len(values)
    return np.asarray(values[places.astype(np.int64)])


@functools.lru_cache(maxsize=4)
def _table(rates: CellRates) -> Floats:
    return np.stack([shares_called(rates, share) for share in _GRID])  # (grid, _POOLED)


def _first(holds: Callable[[Floats], bool], rates: CellRates) -> int:
    """The first row of the grid where it holds, by halves; its length where it does nowhere."""
    table = _table(rates)
    low, high = 0, len(_GRID)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(table[middle]) else (middle + 1, high)
    return low


def _at_least(count: int, cells: int, shares: Floats) -> float:
    """Probability of so many called or more, over equally likely shares called."""
    if count <= 0:
        return 1.0
    if count > cells:
        return 0.0
    from scipy.special import betainc  # a process that rolls up no subjects need not load it

    return float(np.mean(betainc(count, cells - count + 1, shares)))


def _check(rates: CellRates, cells: int) -> None:
    if cells < 1:
        raise UsageError(f"{cells} cells: at least one is needed")
    if not rates.tell_cells_apart:
        raise UsageError("these rates call healthy cells as often as diseased ones: no share can be told from them")
