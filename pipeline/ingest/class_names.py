"""What a class is called, and what its name alone says: the same class or another, disease or health, or neither.

Takes and gives plain strings. A name that can be read both ways says nothing: whoever knows is asked.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from pipeline.base.text import folded

_NEGATIVE_WORDS = frozenset({"healthy", "normal", "benign", "hem", "control", "controls", "nonmalignant"})
_DISEASE_WORDS = frozenset(
    {"leukemia", "leukaemia", "leukemias", "leukaemias", "leukemic", "leukaemic", "aml", "apl", "cml", "cll"}
    | {"malignant", "malignancy", "cancer", "cancerous", "abnormal"}
    | {(_ALL := "ALL")}  # acute lymphoblastic leukemia: 'all' is a word of every day
    | {"blast", "blasts", "lymphoblast", "lymphoblasts", "myeloblast", "myeloblasts", "monoblast", "monoblasts"}
)
_SAYS_NO = frozenset({"negative", "neg"})
_SAYS = _SAYS_NO | {"positive", "pos"}
_NEGATIONS = frozenset({"non", "not", "no", "without"})
_SUBTYPES = frozenset({"apl"})  # of an acute leukemia: 'non-APL' is the rest of them, where it is not health
# What makes of a disease something that can be read both ways: 'leukemia-free', 'AML in remission', 'kein Blast'.
_DOUBTS = frozenset(
    {"free", "absent", "absence", "excluded", "exclude", "remission", "cured", "never", "neither", "nor", "minus"}
    | {"rule", "ruled", "suspected", "suspicious", "suspicion", "possible", "possibly", "probable", "questionable"}
    | {"vs", "versus", "like", "mimic", "mimics", "karyotype", "cytogenetics", "cytogenetically", "quality"}
    | {"kein", "keine", "nicht", "ohne", "sin", "sans", "pas", "sem", "senza", "bez", "geen"}
)
# Beside these, 'positive' and 'negative' are said of the image; beside others of a marker: 'BCR-ABL negative'.
_OF_IMAGES = frozenset(
    {"class", "classes", "label", "labels", "cell", "cells", "image", "images", "sample", "samples", "case", "cases"}
    | {"patient", "patients", "group", "smear", "smears", "field", "fields", "result", "set", "folder", "the", "is"}
    | {"train", "training", "val", "validation", "test", "testing", "data", "all", "control", "controls"}
    | {"cancer", "cancerous", "malignant", "for", "wbc", "true"}
)
# What may stand between a negation and the disease that it denies: 'no evidence of acute leukemia'.
_BETWEEN = frozenset(
    {"acute", "chronic", "any", "evidence", "sign", "signs", "of", "the", "a", "visible"}
    | {"lymphoblastic", "lymphocytic", "lymphoid", "myeloid", "myelogenous", "promyelocytic"}
)
# A disease, however it is written or compounded ('LeukemiaCells', 'T-all', 'megakaryoblast', 'Lymphom').
_DISEASE_WITHIN = re.compile(
    r"blast|leuk(?:a?e|ä)m|leuc[eé]m|lymphoma?s?\b|myelom|malign|cancer|abnormal|unhealthy|disease|dysplas|remission"
    r"|лейк(?:оз|ем)|бласт|白血病|\b(?:mds|cmml|mpal|mpn|a[mp]l|c[lm]l|[bt] all)\b"
    r"|\bpr[eo] [bt]\b|\b(?:not|non) ?(?:normal|healthy|benign)",
    re.IGNORECASE,
)
# Parts of the names of what is on a smear and is no mature white cell: healthy only where somebody says so.
_NO_CELL_OF_HEALTH = re.compile(
    r"artefact|artifact|smudge|debris|unidentified|undefined|unknown|unclassifi|indetermin|ambiguous|\bothers?\b|misc"
    r"|thrombocyt|platelet|aggregat|clump|bubble|\bdirt|\bstain|broken|damaged|\bempty\b|background|not_?able"
    r"|erythro|normoblast|\bnrbc|\brbc|plasma|immature|promyelocyt|promonocyt|prolymphocyt|\big\b|metamyelocyt|myelocyt",
    re.IGNORECASE,
)

_UNSURE = re.compile(r"\?|\w ?[-\N{MINUS SIGN}](?=\s*$)")  # 'blast?', and 'ALL-' beside 'ALL+'

_CELL_TYPE = re.compile(
    r"(?:lympho|mono|myelo)cyt(?!i[ck])|neutrophil|eosinophil|basophil|blasts?\b|plasma cell", re.IGNORECASE
)
_VIEW = re.compile(r"smear|\bfields?\b|\bslides?\b|leuk(?:a?e|ä)mi", re.IGNORECASE)  # 'monocytic leukemia' is no cell
_ENOUGH_CELL_TYPES = 3


def are_cell_types(class_names: Collection[str]) -> bool:
    """Whether the classes are, by their names, kinds of cells: then an image shows one of them."""
    names = [folded(name) for name in class_names]
    kinds = sum(_CELL_TYPE.search(name) is not None and _VIEW.search(name) is None for name in names)
    return kinds >= max(_ENOUGH_CELL_TYPES, len(class_names) / 2)


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
    label, name = common_label(class_name), folded(class_name)
    names_disease = _DISEASE_WITHIN.search(name) or not _DISEASE_WORDS.isdisjoint(_words(class_name))
    return label == 1 or (label is None and bool(names_disease)) or _NO_CELL_OF_HEALTH.search(name) is not None


@lru_cache(maxsize=65_536)  # asked for every image
def common_label(class_name: str) -> int | None:
    """Label of a class by common words: 'Non-Leukemia' 0, '[Malignant] Pre-B' 1, 'LYMPHOCYTE' None.

    A negation counts where it denies a disease ('no leukemia', 'non-ALL'), not elsewhere ('Blast, no lineage spec',
    'AML without maturation'). None where a name says nothing, or can be read both ways ('leukemia: no').
    """
    words = _words(class_name)
    of_health = _NEGATIVE_WORDS & set(words)
    readings = {_reading(words, place) for place, word in enumerate(words) if word in _DISEASE_WORDS}
    if (readings or of_health) and (_DOUBTS & set(words) or _UNSURE.search(class_name)):
        return None
    if readings:
        label = readings.pop() if len(readings) == 1 else None
        return label if not of_health or label == 0 else None
    if _NEGATIONS & set(words):
        return None
    if said := _SAYS & set(words):
        is_of_image = all(word in _OF_IMAGES | _SAYS | _NEGATIVE_WORDS or len(word) == 1 for word in words)
        signs = {word in _SAYS_NO for word in said} | ({True} if of_health else set())
        return int(not signs.pop()) if is_of_image and len(signs) == 1 else None
    return 0 if of_health else None


def _words(name: str) -> list[str]:
    """The words in lower case; 'nonleukemic' is two. 'ALL' is the disease in capitals, or as the whole name."""
    words: list[str] = []
    for written in re.findall(r"[A-Za-z]+", unicodedata.normalize("NFKC", name)):
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
    if denied and words[place] in _SUBTYPES:
        return None
    if denied or before[-2:] in (["negative", "for"], ["neg", "for"]) or after in (["negative"], ["neg"]):
        return 0 if not _NEGATIONS & set(before[:-1]) else None
    says_no = _NEGATIONS & set(before) or (after and after[-1] in _NEGATIONS) or _SAYS_NO & set(words)
    return None if says_no else 1
