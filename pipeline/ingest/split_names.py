"""Which folders, and which words of a table, are parts of a set kept apart: train, validation, test.

Takes and gives plain strings. People write 'train', 'Test-B', 'training_data', '01_train', 'Held-out set'.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLIT_NAMES: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "learn", "learning", "fit"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development", "tune", "tuning"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout", "eval", "evaluation", "unseen"), "test"),
}
# Words that may stand beside it without making the folder the name of something else.
_NEUTRAL = frozenset(
    {"set", "sets", "data", "dataset", "datasets", "images", "image", "imgs", "img", "samples", "cells"}
)
_NEUTRAL |= {
    "split",
    "part",
    "fold",
    "folder",
    "files",
    "simple",
    "final",
    "new",
    "the",
    "of",
    "for",
    "hold",
    "held",
    "out",
}

# Names that may mean such a part, but do not say which. Folds are for cross-validation, and mixed on purpose.
_PART_LIKE = re.compile(
    r"(?:set|subset|part|split|group|cohort|phase|round|stage|series|collection)[ _-]?(?:[a-z]|\d{1,2})"
    r"|(?:prelim\w*|final|public|private|internal|external|discovery|primary|secondary|main|extra|kept|reserved?)"
    r"(?:[ _-](?:set|data|dataset|images|phase|part|cohort)\w*)?",
    re.IGNORECASE,
)
_MOST = 0.95  # of the images


@lru_cache(maxsize=65_536)
def split_named(folder: str) -> Split | None:
    """The part of a set that a folder's own name means: 'Training set', 'TestA', '02_test' or 'Hold-out'; else None.

    'test_positive' and 'evaluation_blasts' are names of something else, kept in no part by them.
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", folder)
    lowered = [word.casefold() for word in words]
    text = "".join(lowered)
    found = {SPLIT_NAMES[word] for word in lowered if word in SPLIT_NAMES}
    if not found and text in {"holdout", "heldout", "holdoutset", "heldoutset"}:
        return "test"
    others = [word for word in lowered if word not in SPLIT_NAMES and word not in _NEUTRAL and len(word) > 1]
    return found.pop() if len(found) == 1 and not others else None


def unread_parts(folders: Sequence[str]) -> tuple[list[str], bool]:
    """(folders that look like parts of a set and do not say which, whether others beside them do say).

    `folders`: one an image, from the source down. Nothing where they do not lie above nearly all images.
    """
    parts: Counter[str] = Counter()
    named = 0
    for folder, count in Counter(folders).items():
        names = folder.split("/")
        if any(split_named(name) is not None for name in names):
            named += count
        elif part := next((name for name in names if _PART_LIKE.fullmatch(name)), None):
            parts[part] += count
    is_above_all = parts.total() + named >= _MOST * len(folders)
    if not is_above_all or len(parts) + bool(named) < 2:
        return [], False
    return sorted(parts), named > 0
