"""From a tally to Observations: how many images of what, and shares of the leukocytes scored."""

from collections import Counter
from typing import Any

from serving.protocols.fhir.codes import BLASTS, GROUPS, Kind, local, per_leukocytes
from serving.protocols.fhir.resources import Context, Resource, observation, quantity
from serving.protocols.fhir.tally import Meaning, Outcome, Tally

_OUTCOMES: dict[Outcome, str] = {
    "review": "left to a person (review band)",
    "out-of-distribution": "unlike the images of training",
    "rejected": "not read as an image",
}


def images_counted(context: Context, device_url: str, meant: Meaning, found: Tally) -> Resource:
    """How many files there were and what became of each; the numbers add up to `files`. No 0 where nobody looked."""
    counts = {"files": (found.files, "Files")}
    if meant.kinds:
        counts["leukocytes"] = (found.leukocytes, "Leukocytes scored: the denominator")
        counts["no-leukocytes"] = (found.beside, "Cells and others that are no leukocytes")
    else:
        counts["scored"] = (found.outcomes["counted"], "Images scored")
    looked_for = {code: text for code, text in _OUTCOMES.items() if code not in found.not_looked_for}
    counts |= {code: (found.outcomes[code], text) for code, text in looked_for.items()}
    components = [{"code": local(code, text), "valueInteger": count} for code, (count, text) in counts.items()]
    code = local("images-counted", "Images counted")
    return observation(context, device_url, code) | {"component": components}


def shares(context: Context, device_url: str, meant: Meaning, found: Tally) -> list[Resource]:
    """Blasts first, where there are any, then each kind; of other cells how many are positive; of fields nothing."""
    if meant.kinds:
        return [_share(context, device_url, kind, count, found.leukocytes) for kind, count in _by_kind(meant, found)]
    sides = [found.classes.get(name, 0) for name in context.info.classes if name in context.info.positive_classes]
    if context.unit != "cell" or not sides or not found.outcomes["counted"]:
        return []
    code = local("positive-per-100-cells", "Positive cells/100 cells scored")
    return [_ratio(context, device_url, code, "%", sum(sides), found.outcomes["counted"], "cells scored")]


def _by_kind(meant: Meaning, found: Tally) -> list[tuple[Kind, int]]:
    """Of classes that are one kind by name the sum, of a group that of its parts too (codes.GROUPS).

    Blasts of every lineage are blasts as well; none of 0 is told.
    """
    if not found.leukocytes:
        return []
    counts = Counter[Kind]()
    for name, kind in meant.kinds.items():
        counts[kind] += found.classes.get(name, 0)
    sums = {kind: sum(counts[part] for part in parts) for kind, parts in GROUPS.items() if kind in counts}
    for kind, of_parts in sums.items():
        counts[kind] += of_parts
    blasts = sum(count for kind, count in counts.items() if kind.role == "blast")
    rest = [(kind, count) for kind, count in counts.items() if kind != BLASTS and (kind.role != "blast" or count)]
    return [*([(BLASTS, blasts)] if blasts else []), *rest]


def _share(context: Context, device_url: str, kind: Kind, count: int, leukocytes: int) -> Resource:
    unit = "/100{WBCs}" if kind.role == "beside" else "%"
    return _ratio(context, device_url, per_leukocytes(kind), unit, count, leukocytes, "leukocytes scored")


def _ratio(
    context: Context, device_url: str, code: dict[str, Any], unit: str, count: int, of: int, called: str
) -> Resource:
    components = [
        {"code": local("count", "Cells"), "valueInteger": count},
        {"code": local("denominator", called.capitalize()), "valueInteger": of},
    ]
    value = {"valueQuantity": quantity(round(100 * count / of, 2), unit), "component": components}
    return observation(context, device_url, code, f"{count} of {of} {called}") | value


def conclusion(meant: Meaning, found: Tally) -> str:
    """What was counted and what was left out, in words; no diagnosis."""
    left = [f"{found.outcomes[code]} {text}" for code, text in _OUTCOMES.items() if found.outcomes[code]]
    if meant.kinds:
        said = f"leukocytes scored: {found.leukocytes} in {found.files} files"
        blasts = sum(found.classes.get(name, 0) for name, kind in meant.kinds.items() if kind.role == "blast")
        knows_blasts = any(kind.role == "blast" for kind in meant.kinds.values())
        if blasts:
            said += f", blasts: {blasts} ({100 * blasts / found.leukocytes:.2f} %)"
        elif knows_blasts and found.leukocytes:
            said += f", none named a blast{_bound(found) if not left and not found.again else ''}"
        elif not knows_blasts:
            said += "; the model knows no blasts"
    else:
        said = f"{found.outcomes['counted']} of {found.files} files scored; {meant.why_not}"
    again = f" Files with the same bytes as another: {found.again}." if found.again else ""
    unseen = "; ".join(_OUTCOMES[code] for code in found.not_looked_for)
    not_looked_for = f" Not looked for: images {unseen}." if unseen else ""
    return f"{said}. Not counted: {', '.join(left) or 'none'}.{not_looked_for}{again}"


def _bound(found: Tally) -> str:
    """What 'no blast' says of the blood, which it says only where every cell sent was counted, and once.

    No event in n: the upper limit of an exact one-sided 95 % interval (Clopper and Pearson 1934).
    """
    limit = 100 * (1 - 0.05 ** (1 / found.leukocytes))
    return f" (were the model to miss none, so many would show none up to a share of {limit:.1f} %)"
