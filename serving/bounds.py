"""Limits of a share that hold at every look, however often one looks: a confidence sequence of independent trials.

A share is left out where the counts are 1/(1 - confidence) times as likely, averaged over Jeffreys's prior Beta(1/2,
1/2), as under that share. This ever happens to the true share with a probability of 1 - confidence at most, by Ville's
inequality (Robbins, 1970, doi:10.1214/aoms/1177696786; Waudby-Smith and Ramdas, 2020, arXiv:2006.04347, section 2).
"""

import math
from collections.abc import Callable

_STEPS = 60  # of halving: finer than any count


def limits(found: int, trials: int, confidence: float) -> tuple[float, float]:
    """Lower and upper limit of the share that `found` of `trials` come from; (0, 1) of nothing.

    Raises ValueError where there cannot be so many.
    """
    if not 0 <= found <= trials:
        raise ValueError(f"found must lie in 0..{trials}, got {found}")
    if trials == 0:
        return 0.0, 1.0
    missed = trials - found
    average = _log_beta(found + 0.5, missed + 0.5) - _log_beta(0.5, 0.5)
    enough = -math.log1p(-confidence)

    def is_left_out(share: float) -> bool:
        return average - _times_log(found, share) - _times_log(missed, 1.0 - share) >= enough

    share = found / trials
    low = 0.0 if found == 0 else _border(is_left_out, 0.0, share)
    high = 1.0 if missed == 0 else _border(is_left_out, 1.0, share)
    return low, high


def _border(is_left_out: Callable[[float], bool], outside: float, inside: float) -> float:
    """Between one that is left out and one that is not, on the side of the first: the limit is never too narrow."""
    if not is_left_out(outside):
        return outside
    for _ in range(_STEPS):
        middle = (outside + inside) / 2
        if is_left_out(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _times_log(count: int, share: float) -> float:
    if count == 0:
        return 0.0
    return count * math.log(share) if share > 0 else -math.inf


def _log_beta(one: float, other: float) -> float:
    return math.lgamma(one) + math.lgamma(other) - math.lgamma(one + other)
