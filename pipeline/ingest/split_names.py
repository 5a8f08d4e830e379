"""Which folders, and which words of a table, are parts of a set kept apart: train, validation, test.

Takes and gives plain strings. People write 'train', 'Test-B', 'training_data', '01_train', 'Held-out set'.
"""

import re
from collections.abc import Mapping
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
