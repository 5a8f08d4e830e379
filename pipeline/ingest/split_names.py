"""Which folders, and which words of a table, are parts of a set kept apart: train, validation, test.

Takes and gives plain strings. People write 'train', 'Test-B', 'training_data', '01_train', 'Held-out set'.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLIT_NAMES: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "learn", "learning", "fit", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development", "tune", "tuning"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout", "eval", "evaluation", "unseen"), "test"),
    # Spanish, Portuguese, French, Italian, German, Chinese
    **dict.fromkeys(("entrenamiento", "treinamento", "treino", "entrainement", "apprentissage"), "train"),
    **dict.fromkeys(("addestramento", "xunlian", "\u8bad\u7ec3"), "train"),
    **dict.fromkeys(("validacion", "validacao", "validazione", "validierung", "\u9a8c\u8bc1"), "validation"),
    **dict.fromkeys(("prueba", "pruebas", "teste", "tests", "\u6d4b\u8bd5"), "test"),
}
# Words that may stand beside it without making the folder the name of something else.
_NEUTRAL = frozenset(
    {"set", "sets", "data", "dataset", "datasets", "images", "image", "imgs", "img", "samples", "cells"}
    | {"split", "part", "fold", "folder", "dir", "files", "simple", "final", "new", "the", "of", "for"}
    | {"hold", "held", "out", "copy", "phase", "prelim", "preliminary", "blind", "blinded", "independent", "cohort"}
    | {"is", "public", "private", "internal", "external", "patients", "subjects", "aug", "augmented", "original", "raw"}
    | {"resized", "cropped", "labeled", "labelled", "unlabeled", "unlabelled"}
    | {"daten", "satz", "datensatz", "bilder", "\u96c6"}
)

# Names that may mean such a part, but do not say which. Folds are for cross-validation, and mixed on purpose.
_PART_LIKE = re.compile(
    r"(?:set|subset|part|split|group|cohort|phase|round|stage|series|collection)[ _-]?(?:[a-z]|\d{1,2})"
    r"|(?:prelim\w*|final|public|private|internal|external|discovery|primary|secondary|main|extra|kept|reserved?)"
    r"(?:[ _-](?:set|data|dataset|images|phase|part|cohort)\w*)?",
    re.IGNORECASE,
)
_COMPOUND = re.compile(rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})s?({'|'.join(sorted(_NEUTRAL))})")
_MOST = 0.95  # of the images


@lru_cache(maxsize=65_536)
def split_named(folder: str) -> Split | None:
    """The part of a set that a folder's own name means: 'Training set', 'TestA', '02_test' or 'Hold-out'; else None.

    'test_positive' and 'evaluation_blasts' are names of something else, kept in no part by them, and nobody knows
    whether 'external validation' is for choosing a model or for testing it.
    """
    words = _words(folder)
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if not found and "".join(words) in {"holdout", "heldout", "holdoutset", "heldoutset"}:
        return "test"
    others = [word for word in words if word not in SPLIT_NAMES and word not in _NEUTRAL and len(word) > 1]
    if found == {"validation"} and "external" in words:
        return None
    if found == {"train", "validation"}:  # of which the one is still to be taken from the other
        found.remove("validation")
    return found.pop() if len(found) == 1 and not others else None


def _words(folder: str) -> list[str]:
    """In lower case and without accents; 'testset' and 'TrainingsDaten' are two."""
    plain = unicodedata.normalize("NFKD", folder)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    words: list[str] = []
    for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[\u4e00-\u9fff]+", plain):
        compound = _COMPOUND.fullmatch(word.casefold())
        words += compound.groups() if compound else [word.casefold()]
    return words


@lru_cache(maxsize=65_536)
def _parts_meant(folder: str) -> frozenset[Split]:
    """The parts that words in a name mean, whatever else it says: 'leukemia_test', 'C-NMC_training'."""
    return frozenset(SPLIT_NAMES[word] for word in _words(folder) if word in SPLIT_NAMES)


def unread_parts(folders: Sequence[str]) -> tuple[list[str], bool]:
    """(folders that look like parts of a set and do not say which, whether others beside them do say).

    `folders`: one an image, from the source down. Nothing where they do not lie above nearly all images.
    """
    parts: Counter[str] = Counter()
    named = 0
    counts = Counter(folders)
    of_folder = {folder: {split for name in folder.split("/") for split in _parts_meant(name)} for folder in counts}
    several = len(set().union(*of_folder.values())) > 1
    for folder, count in counts.items():
        names = folder.split("/")
        if any(split_named(name) is not None for name in names):
            named += count
        elif part := next((n for n in names if _PART_LIKE.fullmatch(n) or (several and _parts_meant(n))), None):
            parts[part] += count
    is_above_all = parts.total() + named >= _MOST * len(folders)
    if not is_above_all or len(parts) + bool(named) < 2:
        return [], False
    return sorted(parts), named > 0
