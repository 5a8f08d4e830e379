"""What a reader must know before trusting the numbers of a split, each a sentence."""

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.sample_size import FEW_IMAGES, FEW_UNITS, what_is_enough

FEW_SUBJECTS = 20
_APART = 0.1  # share of the images by which probabilities miss, from which on it is said
_FEWEST_UNITS, _ERRORS = 10, 3.0  # whose spread tells a standard error; how many of them are no chance


def cautions(result: Mapping[str, Any]) -> list[str]:
    """Takes the dictionary that `evaluate_binary` or `evaluate_multiclass` is building."""
    return [*_of_units(result["intervals"]), *_of_classes(result), *_of_shares(result)]


def _of_shares(result: Mapping[str, Any]) -> list[str]:
    """Where the probabilities of many classes, added up, are far from how frequent these are here."""
    found = result.get("shares")
    if found is None or found["apart"] < _APART or result["intervals"]["units"] < _FEWEST_UNITS:
        return []
    differences = [told - true for told, true in zip(found["told"], found["true"], strict=True)]
    beyond = [k for k, (apart, error) in enumerate(zip(differences, found["error"], strict=True))
              if abs(apart) > _ERRORS * error]  # fmt: skip
    if not beyond:
        return []
    most = sorted(beyond, key=lambda k: -abs(differences[k]))[:3]
    named = ", ".join(
        f"{result['class_names'][k]} {100 * found['told'][k]:.1f} % where {100 * found['true'][k]:.1f} % are"
        for k in most
    )
    return [
        f"Probabilities rank images here rather than tell shares: added up they say {named}. Training with --balance "
        "loss lets rare classes weigh as much as others; --balance none, or `leukoray calibrate` on images as they "
        "come, lets probabilities tell shares."
    ]


def _of_units(method: Mapping[str, Any]) -> list[str]:
    called = method["called"]
    if method["unit"] == "image":
        return [
            "No subject is known: intervals are over single images. Images of one patient resemble each other, "
            "so the true uncertainty is larger."
        ]
    if method["units"] == 1:
        return [f"All images come from one of the {called}: nothing can be said about others."]
    if method["units"] < FEW_SUBJECTS:
        return [f"Only {method['units']} {called}: the figures hang on few, and the wide intervals say so."]
    return []


def _of_classes(result: Mapping[str, Any]) -> list[str]:
    notes = []
    images, units, method = result["images_per_class"], result["units_per_class"], result["intervals"]
    missing = [name for name, count in images.items() if not count]
    if missing:
        notes.append(f"No image of class {', '.join(missing)}: metrics that need it are undefined (shown as –).")
    if method["unit"] == "subject" and method["units"] > 1:
        single = [name for name, count in units.items() if count == 1]
        few = [f"{name} ({count})" for name, count in units.items() if 1 < count < FEW_UNITS]
        if single:
            notes.append(
                f"All images of class {', '.join(single)} come from one of the {method['called']}: what is found there "
                "may hold for no other, so metrics that need it have no interval."
            )
        if few:
            notes.append(f"Few {method['called']} of class {', '.join(few)}: its figures hang on each of them.")
        if single or few:
            notes.append(f"For comparison: {what_is_enough(method['called'])}.")
    scarce = [f"{name} ({count})" for name, count in images.items() if 0 < count < FEW_IMAGES]
    if scarce:
        notes.append(f"Few images of class {', '.join(scarce)}: its figures are a rough guide.")
    return notes
