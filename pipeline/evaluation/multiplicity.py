"""Groups of images against all others: which are answered worse than luck explains, though many were looked at.

Takes arrays over images and the columns that divide them; gives one JSON-ready record. What is compared is whether an
answer is right, less the share of right ones of its class, so that a group is not called worse for holding more of a
hard class. Where each subject lies in one group, subjects change groups at random; else the images of each subject do
among themselves. Both are permutation tests (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585, for their p), one-sided;
the p of all groups are adjusted by Holm (1979).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.definitions import Floats, Ints

LEVEL = 0.05
METHOD = "permutation of {what}, one-sided, of right answers less the share of right ones of the class"
_SHUFFLES = 2000  # at least; 20 times as many as groups, so that each could be called worse after Holm
_CHUNK_BYTES = 50_000_000


def groups_against_others(
    right: Ints, truth: Ints, codes: Ints, columns: Mapping[str, Sequence[str | None]], seed: int,
    called: str = "subjects",
) -> dict[str, Any] | None:  # fmt: skip
    """Of answers right or not (N,), of classes `truth` and subjects `codes` (N,); None where no column divides them.

    `called`: what the units of `codes` are, images where no subject is known: these are taken as independent.

    Unknown values are among the others of each group.
    """
    share = np.bincount(truth, right) / np.maximum(np.bincount(truth), 1)
    residual = right - share[truth]  # (N,)
    groups = {name: sorted({value for value in values if value is not None}) for name, values in columns.items()}
    shuffles = max(_SHUFFLES, int(1 / LEVEL) * sum(map(len, groups.values())))
    rows: list[dict[str, Any]] = []
    for name, names in groups.items():
        if len(names) < 2:
            continue
        member = np.array([[value == one for value in columns[name]] for one in names], np.float64)  # (G, N)
        rows += _compared(name, names, member, residual, codes, seed, shuffles, called)
    if not rows:
        return None
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row |= {"p_holm": p, "is_worse": p <= LEVEL}
    return {"level": LEVEL, "groups": len(rows), "by_luck": LEVEL * len(rows), "rows": rows}


def _compared(
    column: str, names: Sequence[str], member: Floats, residual: Floats, codes: Ints, seed: int, shuffles: int,
    called: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row a group: how far its answers are from those of others, and p of as little or less by luck."""
    sizes = np.bincount(codes).astype(np.float64)
    held = np.stack([np.bincount(codes, one, len(sizes)) for one in member])  # (G, K)
    is_whole = bool(((held == 0) | (held == sizes)).all())
    rng = np.random.default_rng(seed)
    seen = _means(member, residual)
    worse = np.zeros(len(names), np.int64)
    chunk = max(1, _CHUNK_BYTES // (8 * max(len(names) * len(sizes) if is_whole else 0, len(codes))))
    for start in range(0, shuffles, chunk):
        count = min(chunk, shuffles - start)
        if is_whole:  # subjects change groups: their images go with them
            order = rng.permuted(np.tile(np.arange(len(sizes)), (count, 1)), axis=1)  # (R, K)
            whose = (held > 0).astype(np.float64)[:, order]  # (G, R, K)
            drawn = whose @ np.bincount(codes, residual) / np.maximum(whose @ sizes, 1)
        else:  # images change groups within their subject
            mixed = residual[_within(codes, rng.random((count, len(codes))))]  # (R, N)
            drawn = member @ mixed.T / np.maximum(member.sum(axis=1), 1)[:, None]  # (G, R)
        worse += (drawn <= seen[:, None] + 1e-12).sum(axis=1)
    others = _means(1 - member, residual)
    method = METHOD.format(what=called if is_whole else f"images within {called}")
    return [
        {
            "column": column, "value": name, "images": int(member[k].sum()), "difference": float(seen[k] - others[k]),
            "p": float((1 + worse[k]) / (1 + shuffles)), "method": method,
        }
        for k, name in enumerate(names)
    ]  # fmt: skip


def _means(member: Floats, residual: Floats) -> Floats:
    found: Floats = member @ residual / np.maximum(member.sum(axis=1), 1)
    return found


def _within(codes: Ints, keys: Floats) -> Ints:
    """Orders (R, N) in which each image is taken by one of its own subject, by random keys (R, N) in 0..1."""
    home = np.argsort(codes, kind="stable")
    mixed = np.argsort(codes + keys, axis=1)  # subjects stay in their order, their images do not
    orders = np.empty_like(mixed)
    orders[:, home] = mixed
    return orders


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for being several: the chance that one of those called real is not, at most (Holm 1979). NaN stays."""
    order = sorted((k for k, p in enumerate(p_values) if not np.isnan(p)), key=lambda k: p_values[k])
    adjusted, least = [float("nan")] * len(p_values), 0.0
    for rank, k in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[k]))
        adjusted[k] = least
    return adjusted


def told(record: Mapping[str, Any] | None) -> list[str]:
    """How many groups were looked at, and which are worse; a warning as well where one is."""
    if record is None:
        return []
    worse = [f"{row['column']} {row['value']} ({row['images']:,} images, by {-100 * row['difference']:.0f} of 100)"
             for row in record["rows"] if row["is_worse"]]  # fmt: skip
    looked = f"{record['groups']} groups were looked at; of so many {record['by_luck']:.1f} would look worse by luck"
    if not worse:
        return [f"{looked}. None is shown to be answered worse than the others (Holm)."]
    return [f"{looked}. Shown to be answered worse than the others (Holm): {', '.join(worse)}."]
