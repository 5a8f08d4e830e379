"""Numbers as a reader without statistics takes them in: natural frequencies, intervals, undefined values as a dash.

Takes the `{"value", "low", "high"}` dictionaries of `pipeline.evaluation.metrics`.
"""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.names import MAIN_METRICS, METRIC_NAMES
from pipeline.model.subject_rules import percent

NOT_A_DEVICE = "Research software, not a medical device. Not for use in diagnosis or treatment."
SYNTHETIC = (
    "Made from synthetic images. The figures show that the software works; they say nothing about real patients."
)
DASH = "–"


def number(value: float | None, digits: int = 3) -> str:
    """0.942; never rounded up to 1 or down to 0 unless it is exactly that."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    if float(text) == 1 and value < 1:
        return f"> {1 - 10**-digits:.{digits}f}"
    if float(text) == 0 and value > 0:
        return f"< {10**-digits:.{digits}f}"
    if float(text) == 0 and value < 0:
        return f"> -{10**-digits:.{digits}f}"
    return text


def unmarked(text: str) -> str:
    """For Markdown: what would open an HTML tag there (CommonMark, 'raw HTML') is text; '< 0.001' stays as it is."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def level(confidence: float) -> str:
    """95, 99.5: of per cent, and 100 of nothing but certainty."""
    return f"{100 * confidence:.6g}"


def interval(metric: Mapping[str, Any], digits: int = 3) -> str:
    """0.910 – 0.968, or nothing where the limits are undefined."""
    if metric.get("low") is None or metric.get("high") is None:
        return ""
    return f"{number(metric['low'], digits)} – {number(metric['high'], digits)}"


def with_interval(metric: Mapping[str, Any], digits: int = 3) -> str:
    """0.942 (0.910 – 0.968)."""
    limits = interval(metric, digits)
    return number(metric["value"], digits) + (f" ({limits})" if limits else "")


def percent_with_limits(found: Mapping[str, Any] | None) -> str:
    """`12 % (5.1 – 24)`."""
    if found is None:
        return DASH
    low, high = (percent(found[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{percent(found['value'])} ({low} – {high})"


def per_hundred(share: float) -> str:
    """94; with a decimal, 99.7, or a bound, > 99.9, where the whole number would claim all or none."""
    whole = f"{100 * share:.0f}"
    if whole not in ("0", "100") or share in (0.0, 1.0):
        return whole
    finer = f"{100 * share:.1f}"
    return {"0.0": "< 0.1", "100.0": "> 99.9"}.get(finer, finer)


def complement(metric: Mapping[str, Any]) -> dict[str, Any]:
    """The metric of the opposite: false alarms from specificity."""
    turned = {"value": metric["value"], "low": metric.get("high"), "high": metric.get("low")}
    return {key: None if value is None else 1 - value for key, value in turned.items()}


def headline(metrics: Mapping[str, Any]) -> list[str]:
    """The result in a few sentences."""
    if metrics["task"] == "binary":
        return [*_headline_binary(metrics), *_chance(metrics)]
    accuracy, classes = metrics["metrics"]["accuracy"], len(metrics["class_names"])
    right = f"{per_hundred(accuracy['value'])} are given the right one of {classes} classes"
    sentences = [f"Of 100 cell images, {right}{_limits(accuracy, metrics['intervals'])}."]
    if metrics.get("disease"):
        sentences += _headline_binary(metrics["disease"])
    return sentences + _chance(metrics)


def _chance(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence where these images do not show the model to be better than chance, or where two methods differ."""
    judged = metrics.get("against_chance")
    if not judged:
        return []
    name, chance = judged["metric"], judged["chance"]
    shown = metrics["metrics"][name]
    found = f"{METRIC_NAMES[name]} {with_interval(shown)}, guessing gives {chance:.3g}"
    is_alike = judged["confidence"] == metrics["intervals"]["confidence"]
    other = "" if is_alike else f", of {level(judged['confidence'])} %,"
    by_method = f"{interval(judged)}{other} by {judged['method']}"
    is_above = shown["low"] is not None and shown["low"] > chance
    if judged["low"] is None:
        return [f"Not shown to be better than chance on these images: {found} ({judged['untold']})."]
    if judged["low"] <= chance:
        return [f"Not shown to be better than chance on these images: {found}{f' ({by_method})' if is_above else ''}."]
    if is_above or shown["low"] is None:
        return []
    return [
        f"Better than chance on these images ({by_method}), though the interval of the tables, wider by one adverse "
        f"{_unit(metrics['intervals'])}, holds guessing too: {found}."
    ]


def _unit(method: Mapping[str, Any]) -> str:
    """One of what the intervals are over."""
    return str(method["called"]).removesuffix("s") if method["unit"] == "subject" else "image"


def recognized(record: Mapping[str, Any] | None, task: str) -> list[str]:
    """A sentence where images of training are among those measured, with the figures without them.

    `record`: `training_images` of `metrics.json`; None where an older version wrote it.
    """
    if not record or not record["recognized"]:
        return []
    count, by, parts, rest = record["recognized"], record["by"], record["parts"], record["without"]
    how = [f"{by['bytes']:,} by bytes", f"{by['looks']:,} by looks alone"]
    whose = [f"{parts['train']:,} learned from", f"{parts['validation']:,} chosen by"]
    told = (
        f"{count:,} of the {record['images']:,} images measured took part in making the model ({', '.join(how)}; "
        f"{', '.join(whose)}): the figures are too good."
    )
    if rest is None:
        return [f"{told} No other image is left to measure."]
    found = (f"{METRIC_NAMES[key]} {with_interval(rest['metrics'][key])}" for key in MAIN_METRICS[task])
    return [f"{told} Of the other {rest['images']:,} images: {', '.join(found)}."]


_WAYS = {
    "images": "images dealt at random",
    "subjects": "no {unit} on both sides",
    "sites": "no site on both sides",
}


def ways_to_split(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The ways of `SplitComparison.record` in words, with their figures."""
    unit = str(record["called"]).removesuffix("s")
    return [(_WAYS[way].format(unit=unit), found) for way, found in record["ways"].items()]


def optimism(record: Mapping[str, Any]) -> list[str]:
    """What a split of single images would have promised, in sentences."""
    told, unit = [], str(record["called"]).removesuffix("s")
    for name, gain in record["optimism"].items():
        random, apart = (record["ways"][way][name] for way in ("images", "subjects"))
        limits = interval(gain)
        between = f" ({level(record['confidence'])} % CI {limits})" if limits else ""
        much = f"{number(abs(gain['value']))} too {'much' if gain['value'] >= 0 else 'little'}{between}"
        told.append(
            f"{METRIC_NAMES[name]} of a probe is {number(random)} where images are dealt at random, {number(apart)} "
            f"where no {unit} is on both sides: a random split promises {much}."
        )
    if record["unnamed"]:
        told.append(f"{record['unnamed']:,} labelled images are left out, since nobody knows their {unit}.")
    told += [f"By {way}: not told ({why})." for way, why in record["left_out"].items()]
    if any(gain["low"] is None for gain in record["optimism"].values()):
        told.append(f"No interval: {record['subjects']} {record['called']} are too few to tell how far that is luck.")
    return told


def reach(record: Mapping[str, Any]) -> list[str]:
    """For which images the figures hold, and what threshold and temperature rest on: `evaluation.reach` in words."""
    threshold, temperature = record["threshold"], record["temperature"]
    alike = ("on", "images", "units", "is_inherited")
    same = threshold is not None and all(threshold.get(key) == temperature.get(key) for key in alike)
    rest = f"{number(temperature['value'])}, from the same images" if same else _rests_on(temperature)
    scaled = f"The temperature of the probabilities is {rest}."
    if threshold is None:
        return [record["holds"], scaled]
    known = threshold["images"] is not None and threshold["low"] is None
    untold = ", too few to say how far others would have moved it" if known else _at_the_ends(threshold)
    return [record["holds"], f"The threshold is {_rests_on(threshold)}{untold}.", scaled]


def _rests_on(chosen: Mapping[str, Any]) -> str:
    """0.894 (95 % CI 0.837 – 0.961, percentile bootstrap), chosen on 332 validation images of 35 blocks."""
    if chosen.get("is_inherited"):
        return f"{number(chosen['value'])}, as of its parent, from {chosen['on']} images there"
    if chosen["images"] is None:
        return f"{number(chosen['value'])}, from {chosen['on']} images; of how many this bundle does not say"
    units = "" if chosen["called"] == "images" else f" of {chosen['units']:,} {chosen['called']}"
    told = f" ({level(chosen['confidence'])} % CI {interval(chosen)}, percentile bootstrap)"
    limits = "" if chosen["low"] is None else told
    return f"{number(chosen['value'])}{limits}, chosen on {chosen['images']:,} {chosen['on']} images{units}"


def _at_the_ends(threshold: Mapping[str, Any]) -> str:
    """What would be found here at the ends of the threshold's interval."""
    ends = threshold["at_low"], threshold["at_high"]
    if None in ends:
        return ""
    told = []
    for key, whose, what in (("sensitivity", "diseased", "are found"), ("specificity", "healthy", "raise an alarm")):
        shares = [end[key] for end in ends]
        if None not in shares:
            low, high = (per_hundred(share) for share in sorted(shares if key == "sensitivity" else _turned(shares)))
            told.append(f"of 100 {whose} ones here {low if low == high else f'{low} to {high}'} {what}")
    return f"; between its limits {', '.join(told)}" if told else ""


def _turned(shares: list[float]) -> list[float]:
    return [1 - share for share in shares]


def _headline_binary(metrics: Mapping[str, Any]) -> list[str]:
    method = metrics["intervals"]
    negative, positive = disease_words(metrics["class_names"])
    found, alarms = metrics["metrics"]["sensitivity"], complement(metrics["metrics"]["specificity"])
    if found["value"] is None:
        first = f"This split holds no {positive} image, so nothing can be said about what is found."
    else:
        first = f"Of 100 {positive} cell images, {per_hundred(found['value'])} are found{_limits(found, method)}."
    if alarms["value"] is None:
        second = f"This split holds no {negative} image, so nothing can be said about false alarms."
    elif alarms["value"] == 0:
        percent = level(method["confidence"])
        up_to = None if alarms["high"] is None else f" ({percent} % CI up to {per_hundred(alarms['high'])})"
        limit = up_to or _limits(alarms, method)
        second = f"Of 100 {negative} ones, none raises a false alarm{limit}."
    else:
        verb = "raises" if per_hundred(alarms["value"]) == "1" else "raise"
        alarmed = f"{per_hundred(alarms['value'])} {verb} a false alarm"
        second = f"Of 100 {negative} ones, {alarmed}{_limits(alarms, method)}."
    return [first, second, *_review(metrics)]


def _review(metrics: Mapping[str, Any]) -> list[str]:
    """How many of the images are left to a person; both figures before count them by the side they lie on."""
    review = metrics.get("review")
    if not review:
        return []
    if review["low"] is None:
        return ["No image need go to a person: the threshold alone keeps the promise.", *_let_pass(metrics)]
    share = per_hundred(review["images"] / metrics["images"])
    verb, goes = ("falls", "goes") if share == "1" else ("fall", "go")
    return [f"Of 100 images, {share} {verb} into the review band and {goes} to a person.", *_let_pass(metrics)]


def _let_pass(metrics: Mapping[str, Any]) -> list[str]:
    """What is decided wrongly without a person, beside what was promised."""
    review, (negative, positive) = metrics["review"], disease_words(metrics["class_names"])
    told = []
    for key, whose, called in (("missed", positive, negative), ("alarmed", negative, positive)):
        found = review[key]
        if found["value"] is not None:
            limits = _limits(found, metrics["intervals"])
            share = per_hundred(found["value"])
            verb = "is" if share == "1" else "are"
            told.append(f"of 100 {whose} images {share} {verb} called {called}{limits}")
    if not told:
        return []
    alike = f", each {_unit(metrics['intervals'])} counting alike" if metrics["intervals"]["unit"] == "subject" else ""
    sentences = [f"Without a person, {', '.join(told)}{alike}.", promise(review)]
    return [sentence for sentence in sentences if sentence]


_PROMISED_OF = {
    "own": "of the laboratory that the model comes from",
    "local": "of the laboratory that it was calibrated for",
}


def promise(review: Mapping[str, Any]) -> str:
    """What the band was to hold, and whether it does here; nothing where it is of a version without a promise."""
    rule = review["promise"]
    if not rule:
        return ""
    most = f"at most {per_hundred(rule['error'])} of 100"
    if rule["why_not"]:
        return f"The band was meant to let {most} pass on either side; this is not promised: {rule['why_not']}."
    low = [review[key]["low"] for key in ("missed", "alarmed")]
    broken = [
        name
        for name, limit in zip(("missed", "false alarms"), low, strict=True)
        if limit is not None and limit > rule["error"]
    ]
    whose = _PROMISED_OF["local" if rule["on"] == "local" else "own"]
    if review.get("is_elsewhere") and rule["on"] != "local":
        more = f", of which more are wrong ({' and '.join(broken)})" if broken else ""
        return (
            f"The band promises {most} on either side, on average over new {rule['called']} {whose}: it covers none of "
            f"these images{more}."
        )
    verdict = f", which does not hold here ({' and '.join(broken)})" if broken else ""
    return f"Promised on average over new {rule['called']} {whose}: {most} on either side{verdict}."


def disease_words(class_names: list[str]) -> tuple[str, str]:
    """What to call the two sides: 'healthy' and 'diseased' where the classes have no names of their own."""
    negative, positive = class_names
    plain = {"negative": "healthy", "positive": "diseased"}
    return plain.get(negative, negative), plain.get(positive, positive)


def _limits(metric: Mapping[str, Any], method: Mapping[str, Any]) -> str:
    """` (95 % CI 90–97)`, or that there is none."""
    if metric.get("low") is None or metric.get("high") is None:
        return f" (no interval: too few {method['called'] if method['unit'] == 'subject' else 'images'})"
    percent = level(method["confidence"])
    return f" ({percent} % CI {per_hundred(metric['low'])}–{per_hundred(metric['high'])})"
