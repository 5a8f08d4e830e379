"""What was noticed about an image that is scored all the same: `kind`, or `kind: detail`, joined in one column.

Kinds are few, so that a run can count them; numbers and names that differ from image to image are details.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

_BETWEEN = "; "


def remark(kind: str, detail: str = "") -> str:
    text = " ".join(detail.replace(";", ",").split())
    return f"{kind}: {text}" if text else kind


def joined(remarks: Sequence[str]) -> str | None:
    """As the column has it: null where there is nothing to say."""
    return _BETWEEN.join(remarks) or None


def count_kinds(column: Iterable[str]) -> Counter[str]:
    """Images by kind of remark."""
    return Counter(kind for text in column for kind in {one.split(": ", 1)[0] for one in text.split(_BETWEEN)})
