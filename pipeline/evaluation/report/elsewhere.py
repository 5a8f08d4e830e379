"""External beside internal, in sentences; takes the record of `evaluation.external` and of the matched classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.names import MAIN_METRICS, METRIC_NAMES
from pipeline.evaluation.report import words

_NAMED = 8
_OTHER_SIDE = {
    "positive": ("healthy", "false alarms, specificity"),
    "negative": ("diseased", "what is found, sensitivity"),
}


def sentences(record: Mapping[str, Any], task: str) -> list[str]:
    """Which classes were measured and which not, how the main figures differ, what the threshold does there."""
    return [*about_classes(record), *_main(record, task), *about_threshold(record)]


def about_classes(record: Mapping[str, Any]) -> list[str]:
    """What stands for what, what was left out, what cannot be told."""
    pairs = [(f"{pair['theirs']} as {pair['ours']}", pair["images"]) for pair in record["matched"]]
    said = [f"Measured: {_counted(pairs)}."]
    if record["unmatched"]:
        count = sum(record["unmatched"].values())
        said.append(
            f"Left out: {count:,} images of classes that match none of the model's: "
            f"{_counted(list(record['unmatched'].items()))}; --classes 'theirs=ours' names pairs."
        )
    if record["left_out"]:
        said.append(f"Left out as well: {_counted([(reason, n) for reason, n in record['left_out'].items()])}.")
    if record["one_side"]:
        missing, untold = _OTHER_SIDE[record["one_side"]]
        said.append(
            f"No {missing} image is among them: {untold}, ROC-AUC, balanced accuracy and the right threshold cannot be "
            "told there."
        )
    if record["absent"] and not record["one_side"]:
        said.append(
            f"No image of class {', '.join(record['absent'])} is among them, so figures over all classes are of other "
            "classes there than here; compare class by class."
        )
    return said


def about_threshold(record: Mapping[str, Any]) -> list[str]:
    """What the model's threshold does there beside here, and which one would have been right."""
    found = record["threshold"]
    if found is None:
        return []
    told = []
    for key, whose, what in (
        ("sensitivity", "diseased", "are found"),
        ("specificity", "healthy", "raise a false alarm"),
    ):
        there, here = (_per_hundred(found[place][key], key) for place in ("there", "here"))
        if there is not None:
            told.append(f"of 100 {whose} images {there} {what}" + (f" ({here} {_here(record)})" if here else ""))
    said = [f"At the model's threshold {words.number(found['value'])}: {', '.join(told)}."]
    right = found["right"]
    if right is not None:
        limits = words.interval(right)
        said.append(
            f"Chosen on these very images, its rule would have given {words.number(right['value'])}"
            + (f" (95 % CI {limits}, percentile bootstrap)" if limits else " (too few subjects for an interval)")
            + f", with sensitivity {words.number(right['sensitivity'])} and specificity "
            f"{words.number(right['specificity'])} in hindsight. No figure here uses it: a threshold looks better than "
            "it is on the images that chose it. `leukoray calibrate` chooses one on some cells and judges it on others."
        )
    return said


def internal(record: Mapping[str, Any]) -> str:
    """'its own test split (471 images of 13 subjects)': what the internal figures are of."""
    own = record["internal"]
    where = f"its own {own['on']} split" if own["on"] in ("test", "validation") else f"its {own['on']} scores"
    if own["images"] is None:
        return where
    units = "" if own["called"] == "images" or not own["units"] else f" of {own['units']:,} {own['called']}"
    other = own.get("other_confidence")
    level = f"; its limits, of {100 * other:g} %, are not of the level of these and left out" if other else ""
    return f"{where} ({own['images']:,} images{units}{level})"


def _main(record: Mapping[str, Any], task: str) -> list[str]:
    """The headline figures of both places."""
    told = []
    for name in MAIN_METRICS[task]:
        row = record["metrics"].get(name)
        if row is None or row["external"]["value"] is None:
            continue
        apart = row["difference"]
        by = "" if apart["value"] is None else f", difference {signed(apart)}"
        here = words.number(row["internal"]["value"])
        told.append(f"{METRIC_NAMES[name]} {words.with_interval(row['external'])}, here {here}{by}")
    return [f"There, beside {internal(record)}: {'; '.join(told)}."] if told else []


def signed(apart: Mapping[str, Any]) -> str:
    """-0.081 (-0.120 to -0.040)."""
    if apart["value"] is None:
        return words.DASH
    limits = "" if apart["low"] is None else f" ({apart['low']:+.3f} to {apart['high']:+.3f})"
    return f"{apart['value']:+.3f}{limits}"


def _here(record: Mapping[str, Any]) -> str:
    return f"on {'its own test split' if record['internal']['on'] == 'test' else record['internal']['on'] + ' images'}"


def _per_hundred(value: float | None, key: str) -> str | None:
    if value is None:
        return None
    return words.per_hundred(value if key == "sensitivity" else 1 - value)


def _counted(named: Sequence[tuple[str, int]]) -> str:
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(f"{name} ({count:,})" for name, count in named[:_NAMED]) + more
