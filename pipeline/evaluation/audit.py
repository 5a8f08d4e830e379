"""What a model's answers rest on, and what they bear: its figures on changed copies of a sample of the images measured.

Takes the figures of `remaining`, gives the records of `metrics.json` and the sentences that a reader must hear. That a
picture without cells still gets right answers is the sign of a shortcut (Geirhos et al. 2020, arXiv:2004.07780); that a
bad picture gets wrong ones unflagged is what no probability tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.changes import DISTURBANCES, HIDDEN, UNCHANGED, Copies, Disturbance
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.names import METRIC_NAMES
from pipeline.evaluation.outcomes import Outcomes, true_class
from pipeline.evaluation.remaining import SIDES, Remaining, remaining
from pipeline.evaluation.report.words import number, with_interval
from pipeline.evaluation.shown import Shown
from pipeline.sources.manifest import ManifestRow

NOT_ASKED = "--audit is 0"
NOTABLE = 0.2  # of the way from guessing to no error: from here on a reader must hear of it
NEARLY_ALL_LOST = 0.2  # of what the model has above guessing: what is left then is little
_EXAMPLES = 2
FALL = 0.05  # of the main metric, or of the decisions: images so changed are answered worse
RISE = 0.1  # of the images flagged, above those flagged as they are
MUCH = 0.5  # of what the model has above guessing


@dataclass(frozen=True)
class Audit:
    """Figures of all copies; `why_not` says why there are none."""

    why_not: str = NOT_ASKED
    of: int = 0  # images measured, of which the sample is
    seed: int = 0
    found: Remaining | None = None
    copies: Copies | None = None
    examples: Sequence[ManifestRow] = ()  # one of each of two classes, to be seen

    @property
    def has_disturbances(self) -> bool:
        return self.copies is not None and self.copies.with_disturbances

    def record(self) -> dict[str, Any]:
        """`audit` of `metrics.json`."""
        if self.found is None:
            return {"why_not": self.why_not}
        names = {UNCHANGED: "The images as they are", **HIDDEN}
        rows = [
            {"shown": key, "name": name, **self.found.of(key), "kept": self.found.kept(key)}
            for key, name in names.items()
        ]
        return {"why_not": None, **self._sample(self.found), "rows": rows, "notes": self._shortcuts(self.found)}

    def robustness(self) -> dict[str, Any] | None:
        """`robustness` of `metrics.json`; None where it was not asked for."""
        found = self.found
        if found is None or not self.has_disturbances:
            return None
        kinds = [
            {
                "kind": each.key,
                "name": each.name,
                "levels": [
                    {"severity": k, "step": step, "told": each.told(step), **found.of(each.key, k)}
                    for k, step in enumerate(each.steps, start=1)
                ],
                "told": _told(each, found),
            }
            for each in DISTURBANCES
        ]
        return {**self._sample(found), UNCHANGED: found.unchanged, "kinds": kinds}

    def notes(self) -> list[str]:
        """What speaks against the model, each a sentence."""
        if self.found is None:
            return []
        silent = self._silent(self.found) if self.has_disturbances else []
        return [*self._shortcuts(self.found), *silent]

    def _sample(self, found: Remaining) -> dict[str, Any]:
        return {
            "images": found.images, "images_of": self.of, "units": found.units, "unit": found.unit, "seed": self.seed,
            "metric": found.metric, "chance": found.chance,
        }  # fmt: skip

    @staticmethod
    def _shortcuts(found: Remaining) -> list[str]:
        name, as_is = _name(found), f"of {with_interval(found.unchanged)} for the images as they are"
        notes = []
        if is_notable(found, "border"):
            notes.append(
                "Shown only the border of the images, all cells masked, the model still has "
                f"{_above(found, 'border')}, {as_is}; guessing gives {found.chance:.3g}. It has learnt something "
                "beside the cells: stain, light, camera or slide."
            )
        if is_notable(found, "background") and (found.kept("background") or 0.0) >= MUCH:
            notes.append(
                f"With all white cells masked the model still has {_above(found, 'background')}, {as_is}: much of what "
                "it knows lies around these cells, or in their outline."
            )
        whole, blurred = found.unchanged, found.of("blurred")
        floor = whole["value"] if whole["low"] is None else max(whole["low"], found.chance)
        if is_notable(found, "blurred") and blurred["value"] >= floor and (found.kept("blurred") or 0.0) >= MUCH:
            notes.append(
                f"On images so blurred that no form is left the model has {_above(found, 'blurred')}, {as_is}: nothing "
                "shows that it needs more than colours and coarse sizes."
            )
        lost = [key for key in ("grey", "turned") if _is_lost(found, key)]
        if lost:
            what = {"grey": "without colour", "turned": "with colours exchanged"}
            each = " and ".join(f"{with_interval(found.of(key))} {what[key]}" for key in lost)
            notes.append(
                f"The model loses nearly all when colours change: the {name} is {each}, {as_is}. Another stain or "
                "camera may do the same."
            )
        return notes

    @staticmethod
    def _silent(found: Remaining) -> list[str]:
        falls = [(each, _falls_at(each, found)) for each in DISTURBANCES if not _warned(each, found)]
        silent = [f"{each.name.lower()} ({each.told(each.steps[fall - 1])})" for each, fall in falls if fall]
        if not silent:
            return []
        flags = "no flag tells of it by then" if found.unchanged["ood"] else "this model flags no images"
        return [f"Answers get worse and {flags}, from: {', '.join(silent)} (see what the answers bear)."]


NO_AUDIT = Audit()


def is_notable(found: Remaining, kind: str) -> bool:
    """Whether a copy is answered far better than by guessing, and not by luck."""
    row = found.of(kind)
    is_far = row["value"] >= found.chance + NOTABLE * (1 - found.chance)
    return bool(is_far and row["above_guessing"] is not False)


def _is_lost(found: Remaining, kind: str) -> bool:
    kept = found.kept(kind)
    return is_notable(found, UNCHANGED) and kept is not None and kept < NEARLY_ALL_LOST


def _above(found: Remaining, kind: str) -> str:
    """A figure that is above guessing, and by what that is known where its interval holds guessing."""
    row = found.of(kind)
    shown = f"a {_name(found)} of {with_interval(row)}"
    if row["low"] is None or row["low"] > found.chance:
        return shown
    if row["above_guessing"] is None:
        return f"{shown}, which so few subjects could not tell from luck"
    return f"{shown}, which by the method of 'better than chance' is more than luck"


def _name(found: Remaining) -> str:
    """The metric within a sentence."""
    name = METRIC_NAMES[found.metric]
    return name if "-" in name else name.lower()


def _lost_at(each: Disturbance, severity: int, found: Remaining) -> float:
    """By how much answers are worse at a severity: by the metric, or by its decisions at the threshold."""
    row, whole = found.of(each.key, severity), found.unchanged
    lost = [-row["difference"]["value"]]
    if "sensitivity" in row:
        lost.append(sum(whole[side]["value"] - row[side]["value"] for side in SIDES) / 2)
    return float(max(lost))


def _falls_at(each: Disturbance, found: Remaining) -> int | None:
    """The severity from which answers are worse, at all that follow too; None where they hold."""
    falls = [_lost_at(each, k, found) > FALL for k in range(1, len(each.steps) + 1)]
    return next((k for k in range(1, len(falls) + 1) if all(falls[k - 1 :])), None)


def _flags_at(each: Disturbance, found: Remaining) -> int | None:
    """The severity from which more images are flagged than as they are, and far more than of the model's own kind."""
    if found.unchanged["ood"] is None:
        return None
    rows = [found.of(each.key, k)["ood"] for k in range(1, len(each.steps) + 1)]
    floor = found.unchanged["ood"]["value"] + RISE
    return next((k for k, row in enumerate(rows, 1) if row["is_far_above"] and row["value"] >= floor), None)


def _warned(each: Disturbance, found: Remaining) -> bool:
    """Whether the flag rises no later than the answers get worse."""
    fall, flag = _falls_at(each, found), _flags_at(each, found)
    return flag is not None and (fall is None or flag <= fall)


def _told(each: Disturbance, found: Remaining) -> str:
    """In words what a disturbance does and whether the flag tells of it."""
    fall, flag = _falls_at(each, found), _flags_at(each, found)
    worst = f"{_name(found)} {number(found.of(each.key, len(each.steps))['value'])} at {each.told(each.steps[-1])}"
    holds = f"Answers hold: {worst}."
    first = holds if fall is None else f"Answers get worse from {each.told(each.steps[fall - 1])} on; {worst}."
    if found.unchanged["ood"] is None:
        return f"{first} This model flags no images."
    if flag is None:
        return f"{first} The share flagged hardly rises."
    rises = f"The share flagged rises from {each.told(each.steps[flag - 1])} on"
    if fall is None:
        return f"{first} {rises}."
    return f"{first} {rises}: {'in time' if flag <= fall else 'too late'}."


def audit(
    shown: Sequence[Shown], copies: Copies, outcomes: Outcomes, threshold: float, resampling: Resampling
) -> Audit:
    """Judge what was said of `copies` of a sample of the images of `outcomes`."""
    found = remaining(shown, copies.keys, outcomes.info, threshold, resampling)
    if found is None:
        return Audit("the images that could be read again are of one class only")
    rows = sorted((each.row for each in shown if each.said), key=lambda row: int(row.image_id))
    by_class = {true_class(outcomes.info, row): row for row in reversed(rows)}
    examples = [by_class[k] for k in sorted(by_class)][:_EXAMPLES]
    return Audit("", len(outcomes.scored), resampling.seed, found, copies, examples)
