"""Which images train, which choose (validation), which judge (test): disjoint by subject, alike in classes.

Takes one class, subject and given split an image, gives one split an image. Rows that must stay together (one
subject, one group of near-duplicates) form a unit; units are dealt out greedily, largest first, where the
class counts are furthest below their targets. The result depends on the seed and the names, never on the
order of the rows.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest.split_units import FREE, Ints, Rows, Units, make_units
from pipeline.sources.manifest import SPLITS

SplitRule = Literal["auto", "subjects", "sites", "images", "given"]
Use = Literal["split", "test"]  # what the images are for
FRACTIONS = (0.7, 0.15, 0.15)  # of train, validation and test

Value = TypeVar("Value")

_TRAIN, _VALIDATION, _TEST = 0, 1, 2
_ENOUGH_FOR_TWO_IN_TEST, _ENOUGH_FOR_TWO_IN_BOTH = 6, 8  # subjects of a class
# What a class with few subjects gets first: without train nothing is learnt, without test nothing is known.
_PRIORITY = (0, 2, 1)
_NAMED = 5


@dataclass(frozen=True)
class SplitResult:
    """One split a row (None for rows without a class), the rule that made them and what to know about them."""

    splits: list[str | None]
    rule: str
    reason: str
    warnings: list[str] = field(default_factory=list)


def assign_splits(
    class_names: Sequence[str | None],
    subject_ids: Sequence[str | None] | None = None,
    given_splits: Sequence[str | None] | None = None,
    *,
    keys: Sequence[str] | None = None,
    groups: Sequence[Hashable | None] | None = None,
    labels: Sequence[int | None] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    rule: SplitRule = "auto",
    units: str = "subjects",
) -> SplitResult:
    """Split the rows that have a class into train, validation and test.

    `keys` name the rows (paths or ids); with them the result is the same in any order of the rows. `groups`:
    rows of one group (copies of one image) stay on one side. `labels`: 0 or 1, both wanted in every split. `rule`:
    'given' keeps given splits and takes what is missing from train; 'subjects' and 'images' ignore given splits;
    'images' ignores subjects too, which is only honest where there are none; 'auto' takes the first of given,
    subjects, images that the rows allow. `units`: what subjects are called.

    With too few units to fill every split all rows stay without one, and a warning says why: enough for scoring.
    Raises InputError when a given split divides a subject.
    """
    shares = _check_fractions(fractions)
    nothing: Sequence[None] = [None] * len(class_names)
    subjects, given = subject_ids or nothing, given_splits or nothing
    names = keys or [f"{row:012d}" for row in range(len(class_names))]
    labelled = [row for row, class_name in enumerate(class_names) if class_name is not None]

    def of_labelled(column: Sequence[Value]) -> list[Value]:
        return [column[row] for row in labelled]

    rule = _choose_rule(rule, of_labelled(subjects), of_labelled(given))
    if not labelled:
        return SplitResult([*nothing], "none", "no image has a label, so there is nothing to split")
    if rule == "given":
        check_leaks(subjects, given, keys=names)
    rows = Rows(
        classes=[str(class_names[row]) for row in labelled],
        subjects=of_labelled(nothing if rule == "images" else subjects),
        given=[_split_code(name) for name in of_labelled(given if rule == "given" else nothing)],
        names=of_labelled(names),
        groups=of_labelled(groups or nothing),
        labels=of_labelled(labels or nothing),
        called=units,
    )
    found = _split_labelled(rows, shares, rule, seed, _rule_warnings(rule, of_labelled(subjects)))
    splits = dict(zip(labelled, found.splits, strict=True))
    return replace(found, splits=[splits.get(row) for row in range(len(class_names))])


def all_test(
    class_names: Sequence[str | None], subject_ids: Sequence[str | None], units: str = "subjects"
) -> SplitResult:
    """Every row with a class in test, for a model from elsewhere."""
    splits = ["test" if name is not None else None for name in class_names]
    names = {name for name in class_names if name is not None}
    subjects = {one for one, split in zip(subject_ids, splits, strict=True) if split and one is not None}
    count = sum(split is not None for split in splits)
    classes = "1 class" if len(names) == 1 else f"{len(names)} classes"
    reason = f"all images are for testing (--use test): {count} images of {classes}, {len(subjects)} {units}"
    return SplitResult(splits, "test", reason)


def _split_labelled(
    rows: Rows, shares: Sequence[float], rule: SplitRule, seed: int, warnings: list[str]
) -> SplitResult:
    """The labelled rows alone."""
    units = make_units(rows, seed)
    _place(units, shares, warnings)
    placed = units.split[units.of_row]
    if shortage := _shortage(placed, shares, len(units.split)):
        return SplitResult([None] * len(placed), "none", "no image is put into a split", [*warnings, shortage])
    splits: list[str | None] = [SPLITS[code] for code in placed.tolist()]
    return SplitResult(splits, rule, _reason(rule, rows, units, seed), [*warnings, *_missing(units, shares)])


def check_leaks(
    subject_ids: Sequence[str | None], splits: Sequence[str | None], *, keys: Sequence[str] | None = None
) -> None:
    """Raise InputError, naming subjects and rows, when a subject is in two splits."""
    first: dict[str, int] = {}
    leaks: dict[str, tuple[int, int]] = {}
    for row, (subject, split) in enumerate(zip(subject_ids, splits, strict=True)):
        if subject is None or split is None:
            continue
        seen = first.setdefault(subject, row)
        if splits[seen] != split:
            leaks.setdefault(subject, (seen, row))
    if not leaks:
        return

    def named(row: int) -> str:
        return f"{splits[row]} (row {row}{f' {keys[row]}' if keys is not None else ''})"

    some = [f"'{subject}' in {named(a)} and {named(b)}" for subject, (a, b) in sorted(leaks.items())[:_NAMED]]
    more = f" and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
    raise InputError(
        f"{len(leaks)} subjects are in more than one split, so figures would measure memory: "
        f"{'; '.join(some)}{more}; "
        "correct the splits, or let them be made anew by subject (--split-rule subjects)"
    )


# ---- rules and what to say about them ----------------------------------------------------------------------


def _check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    train, validation, test = fractions if len(fractions) == 3 else (math.nan,) * 3
    valid = all(0 <= share <= 1 for share in fractions) and train > 0
    if not valid or abs(train + validation + test - 1) > 1e-6:
        raise UsageError(
            f"split fractions must be three numbers (train validation test) that sum to 1, train above 0; "
            f"got {fractions}; --use test makes a set for testing alone"
        )
    return train, validation, test


def _split_code(name: str | None) -> int:
    if name is None:
        return FREE
    if name not in SPLITS:
        raise InputError(f"'{name}' is not a split; write one of {', '.join(SPLITS)}")
    return SPLITS.index(name)


def _choose_rule(rule: SplitRule, subjects: Sequence[str | None], given: Sequence[str | None]) -> SplitRule:
    """The rule that the labelled rows allow."""
    has_given, has_subjects = (any(value is not None for value in column) for column in (given, subjects))
    if rule == "auto":
        return "given" if has_given else "subjects" if has_subjects else "images"
    if given and rule == "given" and not has_given:
        raise InputError(
            "the split rule is 'given', but no image has a given split; use 'auto', 'subjects' or 'images'"
        )
    if subjects and rule == "subjects" and not has_subjects:
        raise InputError(
            "the split rule is 'subjects', but no image has a subject; give --subject-pattern or "
            "--subject-blocks, or use the rule 'images'"
        )
    return rule


def _rule_warnings(rule: SplitRule, subjects: Sequence[str | None]) -> list[str]:
    unknown = sum(subject is None for subject in subjects)
    if rule == "images" and unknown < len(subjects):
        return ["split by image although subjects are known: the same subject is on both sides, figures are inflated"]
    if rule == "images":
        return ["no subjects are known: images of one patient may be on both sides, figures are optimistic"]
    if rule == "subjects" and unknown:
        return [f"{unknown} of {len(subjects)} images have no subject; each is taken as a subject of its own"]
    return []


def _reason(rule: SplitRule, rows: Rows, units: Units, seed: int) -> str:
    n_subjects = len({subject for subject in rows.subjects if subject is not None})
    n_classes = len(set(rows.classes))
    classes = "1 class" if n_classes == 1 else f"{n_classes} classes"
    what = f"{len(rows.classes)} images of {classes}, {n_subjects} {rows.called}, seed {seed}"
    if rule == "given":
        made = bool((units.given == FREE).any())
        return f"given splits are kept{', what is missing is taken from train' if made else ''}: {what}"
    if rule == "subjects":
        return (
            f"every {rows.called.removesuffix('s')} is in one split only, classes are balanced over the splits: {what}"
        )
    return f"images are drawn at random within each class: {what}"


# ---- dealing -----------------------------------------------------------------------------------------------


def _place(units: Units, shares: Sequence[float], warnings: list[str]) -> None:
    """A split for every unit, in place."""
    allowed = _allowed_splits(units, shares, warnings)
    _deal(units, shares, allowed)
    _repair(units, allowed)


def _allowed_splits(units: Units, shares: Sequence[float], warnings: list[str]) -> list[int]:
    """Splits that may receive units; releases given train units where validation or test must be taken from them."""
    wanted = [code for code in range(3) if shares[code] > 0]
    given = set(units.given.tolist()) - {FREE}
    if not given:
        return wanted
    missing = [code for code in wanted if code not in given]
    if missing and _TRAIN in given:
        units.given[units.given == _TRAIN] = FREE
        units.split[:] = units.given
        names = " and ".join(SPLITS[code] for code in missing)
        single = bool((units.size[units.given == FREE] == 1).any())
        how = "image by image where no subject is known" if single else "by subject"
        warnings.append(f"no {names} is given: taken from train, {how}")
    elif (units.given == FREE).any():
        n_free = int(units.size[units.given == FREE].sum())
        warnings.append(f"{n_free} images have no given split; they go to {SPLITS[_TRAIN]}, given splits are kept")
    return [_TRAIN, *(code for code in missing if code != _TRAIN)]


def _targets(units: Units, shares: Sequence[float], allowed: Sequence[int]) -> NDArray[np.float64]:
    """Rows wanted of each class in each split from the free units: float64 (3, classes)."""
    free = units.split[units.pair_unit] == FREE
    total = np.bincount(units.pair_class[free], units.pair_count[free], minlength=len(units.class_names))
    weight = np.zeros(3)
    weight[list(allowed)] = [max(shares[code], 1e-9) for code in allowed]
    return np.outer(weight / weight.sum(), total)


def _deal(units: Units, shares: Sequence[float], allowed: Sequence[int]) -> None:
    """Place every free unit: those of several rows one by one, single rows in bulk into what is left."""
    target = _targets(units, shares, allowed)
    gap = target.copy()  # rows still wanted, (3, classes); below 0 when a split has too many
    starts = np.searchsorted(units.pair_unit, np.arange(len(units.split) + 1))
    free = units.split == FREE
    for unit in np.flatnonzero(free & (units.size > 1)).tolist():
        span = slice(starts[unit], starts[unit + 1])
        classes, counts = units.pair_class[span], units.pair_count[span]
        # Growth of sum(gap^2 / target): how much worse each split would fit its targets with this unit.
        growth = {
            code: float(((counts * counts - 2 * gap[code, classes] * counts) / target[code, classes]).sum())
            for code in allowed
        }
        best = min(allowed, key=growth.__getitem__)
        units.split[unit] = best
        gap[best, classes] -= counts
    single = np.flatnonzero(free & (units.size == 1))
    class_of = units.pair_class[starts[single]]
    for code in range(len(units.class_names)):
        members = single[class_of == code]
        units.split[members] = np.repeat(list(allowed), _apportion(len(members), gap[list(allowed), code]))


def _apportion(n: int, gap: NDArray[np.float64]) -> Ints:
    """Divide n rows over splits in proportion to what they want, by largest remainder; int64, sums to n."""
    wish = np.maximum(gap, 0)
    wish = wish if wish.sum() > 0 else np.ones_like(gap)
    exact = n * wish / wish.sum()
    whole: Ints = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - whole), kind="stable")[: n - int(whole.sum())]
    whole[rest] += 1
    return whole


def _presence(units: Units) -> Ints:
    """Units of each tag in each split: int64 (3, tags)."""
    counts = np.zeros((3, len(units.class_names) + 2), dtype=np.int64)
    np.add.at(counts, (units.split[units.tag_unit], units.tag), 1)
    return counts


def _wanted(n_units: Ints, order: Sequence[int]) -> Ints:
    """Units of each tag that each split must have: int64 (3, tags).

    One first of all, as far as they go; then two in test, for one subject tells nothing of the spread between
    subjects, and two in validation, which the threshold is chosen on.
    """
    wanted = np.zeros((3, len(n_units)), dtype=np.int64)
    for place, code in enumerate(order):
        wanted[code] = n_units > place
    for code, enough in ((_TEST, _ENOUGH_FOR_TWO_IN_TEST), (_VALIDATION, _ENOUGH_FOR_TWO_IN_BOTH)):
        if code in order:
            wanted[code, n_units >= enough] = 2
    return wanted


def _repair(units: Units, allowed: Sequence[int]) -> None:
    """Move small units so that each tag is in every split, as far as its number of free units allows."""
    order = [code for code in _PRIORITY if code in allowed]
    movable = units.given == FREE
    n_tags = len(units.class_names) + 2
    wanted = _wanted(np.bincount(units.tag[movable[units.tag_unit]], minlength=n_tags), order)
    for level in (1, 2):
        for tag in np.argsort(np.bincount(units.tag, minlength=n_tags), kind="stable").tolist():  # rarest first
            for code in order:
                present = _presence(units)
                if present[code, tag] < min(level, wanted[code, tag]):
                    _move_one(units, units.tag == tag, code, movable, np.minimum(wanted, level), present)
    for code in order:
        if not (units.split == code).any():
            everyone = np.ones(len(units.tag_unit), dtype=bool)
            _move_one(units, everyone, code, movable, np.zeros_like(wanted), _presence(units))


def _move_one(
    units: Units,
    tags: NDArray[np.bool_],
    to: int,
    movable: NDArray[np.bool_],
    wanted: Ints,
    present: Ints,
) -> None:
    """Move the smallest unit among `tags` to split `to`, if some split can spare one."""
    origin = units.split[units.tag_unit]
    needed = present[origin, units.tag] <= wanted[origin, units.tag]
    spared = movable & (units.split != to) & (np.bincount(units.split, minlength=3)[units.split] > 1)
    spared[units.tag_unit[needed]] = False
    candidates = np.unique(units.tag_unit[tags & spared[units.tag_unit]])
    if len(candidates):
        units.split[candidates[np.argmin(units.size[candidates])]] = to


def _shortage(placed: Ints, shares: Sequence[float], n_units: int) -> str | None:
    """What to say when a wanted split is empty; None when all are filled."""
    filled = set(placed.tolist())
    empty = [SPLITS[code] for code in range(3) if shares[code] > 0 and code not in filled]
    if not empty:
        return None
    return (
        f"{len(placed)} labelled images in {n_units} independent subjects are too few to fill train, validation "
        f"and test ({' and '.join(empty)} would be empty); add subjects, or set the fraction of that split to 0"
    )


def _missing(units: Units, shares: Sequence[float]) -> list[str]:
    """Which classes, and which labels, a split lacks."""
    present = _presence(units)
    warnings = []
    names = [*units.class_names, "label negative", "label positive"]
    n_units = Counter(units.tag.tolist())
    for code in range(3):
        lacking = [tag for tag in n_units if present[code, tag] == 0] if shares[code] > 0 else []
        if lacking:
            named = ", ".join(f"{names[tag]} ({n_units[tag]} independent)" for tag in sorted(lacking))
            warnings.append(f"{SPLITS[code]} has no images of {named}: too few subjects to be on every side")
    return warnings
