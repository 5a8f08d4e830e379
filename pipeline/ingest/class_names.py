"""What a class is called, and what its name alone says: the same class or another, disease or health, or neither.

Takes and gives plain strings. A name that can be read both ways says nothing: whoever knows is asked.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

_NEGATIVE_WORDS = frozenset({"healthy", "normal", "benign", "hem", "control", "controls", "nonmalignant"})
_DISEASE_WORDS = frozenset(
    {"leukemia", "leukaemia", "leukemias", "leukaemias", "leukemic", "leukaemic", "aml", "apl", "cml", "cll"}
    | {"malignant", "cancer", "cancerous", "abnormal"}
    | {(_ALL := "ALL")}  # acute lymphoblastic leukemia: 'all' is a word of every day
    | {"blast", "blasts", "lymphoblast", "lymphoblasts", "myeloblast", "myeloblasts", "monoblast", "monoblasts"}
)
_SAYS_NO = frozenset({"negative", "neg"})
_NEGATIONS = frozenset({"non", "not", "no", "without"})
# What may stand between a negation and the disease that it denies: 'no evidence of acute leukemia'.
_BETWEEN = frozenset(
    {"acute", "chronic", "any", "evidence", "sign", "signs", "of", "the", "a", "visible"}
    | {"lymphoblastic", "lymphocytic", "lymphoid", "myeloid", "myelogenous", "promyelocytic"}
)
# Parts of the names of what is on a smear and is no mature white cell: healthy only where somebody says so.
_NO_CELL_OF_HEALTH = re.compile(
    r"artefact|artifact|smudge|debris|unidentified|undefined|unknown|unclassifi|indetermin|ambiguous|\bothers?\b|misc"
    r"|thrombocyt|platelet|aggregat|clump|bubble|\bdirt|\bstain|broken|damaged|\bempty\b|background|not_?able"
    r"|erythro|normoblast|\bnrbc|\brbc|plasma|immature|promyelocyt|promonocyt|prolymphocyt|\big\b|metamyelocyt|myelocyt",
    re.IGNORECASE,
)

_CELL_TYPE = re.compile(r"lymphocyt|monocyt|neutrophil|eosinophil|basophil|myelocyt|blast\b|plasma cell", re.IGNORECASE)
_ENOUGH_CELL_TYPES = 3


def are_cell_types(class_names: Collection[str]) -> bool:
    """Whether the classes are, by their names, kinds of cells: then an image shows one of them."""
    kinds = sum(_CELL_TYPE.search(folded(name)) is not None for name in class_names)
    return kinds >= max(_ENOUGH_CELL_TYPES, len(class_names) / 2)


def folded(name: str) -> str:
    """What two spellings of one class (or subject) have in common: composed letters, no case, one kind of separator."""
    return re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFC", name).casefold()).strip()


def spellings(names: Iterable[str]) -> dict[str, str]:
    """Each name -> the spelling that stands for it: the most frequent of those that are one name, else the first."""
    counts = Counter(names)
    groups: dict[str, list[str]] = {}
    for name in sorted(counts):
        groups.setdefault(folded(name), []).append(name)
    return {name: max(group, key=lambda each: counts[each]) for group in groups.values() for name in group}


def twins(spelling: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that were merged: the spelling that stands for them -> all spellings, of those with several."""
    groups: dict[str, list[str]] = {}
    for name, chosen in sorted(spelling.items()):
        groups.setdefault(chosen, []).append(name)
    return {chosen: names for chosen, names in sorted(groups.items()) if len(names) > 1}


def is_no_cell_of_health(class_name: str) -> bool:
    """Whether a class is, by its name, no mature white cell: debris, platelets, precursors, what nobody could tell."""
    return common_label(class_name) == 1 or _NO_CELL_OF_HEALTH.search(folded(class_name)) is not None


def common_label(class_name: str) -> int | None:
    """Label of a class by common words: 'Non-Leukemia' 0, '[Malignant] Pre-B' 1, 'LYMPHOCYTE' None.

    A negation counts where it denies a disease ('no leukemia', 'non-ALL'), not elsewhere ('Blast, no lineage spec',
    'AML without maturation'). None where a name says nothing, or can be read both ways ('leukemia: no').
    """
    words = _words(class_name)
    of_health = _NEGATIVE_WORDS & set(words)
    readings = {_reading(words, place) for place, word in enumerate(words) if word in _DISEASE_WORDS}
    if readings:
        label = readings.pop() if len(readings) == 1 else None
        return label if not of_health or label == 0 else None
    if _NEGATIONS & set(words):
        return None
    positive, negative = bool({"positive", "pos"} & set(words)), bool(of_health or _SAYS_NO & set(words))
    return None if positive == negative else int(positive)


def _words(name: str) -> list[str]:
    """The words in lower case; 'nonleukemic' is two. 'ALL' is the disease in capitals, or as the whole name."""
    words: list[str] = []
    for written in re.findall(r"[A-Za-z]+", name):
        word = written.casefold()
        if word.startswith("non") and (word[3:] in _DISEASE_WORDS or word[3:] == "all"):
            words.append("non")
            word, written = word[3:], written[3:]
        words.append(_ALL if written == "ALL" else word)
    if [word for word in words if word not in _NEGATIONS] == ["all"]:
        words[words.index("all")] = _ALL
    return words


def _reading(words: list[str], place: int) -> int | None:
    """1 where the disease at `place` is affirmed, 0 where it is denied, None where both can be read."""
    before, after = words[:place], words[place + 1 :]
    while before and before[-1] in _BETWEEN:
        before.pop()
    denied = before[-1:] and before[-1] in _NEGATIONS
    if denied or before[-2:] in (["negative", "for"], ["neg", "for"]) or after in (["negative"], ["neg"]):
        return 0 if not _NEGATIONS & set(before[:-1]) else None
    says_no = _NEGATIONS & set(before) or (after and after[-1] in _NEGATIONS) or _SAYS_NO & set(words)
    return None if says_no else 1
