"""How many images of a run could not be used, and why: what is told, kept with the bundle, and refused by."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.base.errors import OUTAGE_CODES, IncompleteError, PlatformError


@dataclass(frozen=True)
class Rejected:
    """Images that could not be used, by code, with the first message of each; and what was noticed about the others."""

    total: int
    codes: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)  # images by kind

    @property
    def count(self) -> int:
        return sum(self.codes.values())

    def __str__(self) -> str:
        named = ", ".join(
            f"{number} {code} (e.g. {self.examples[code]})" for code, number in sorted(self.codes.items())
        )
        return f"{self.count} of {self.total} images could not be used: {named}"

    def refuse_all(self) -> None:
        """Raise IncompleteError when no image is left."""
        if self.count == self.total:
            raise IncompleteError(f"{self}; none is left")

    def refuse_too_many(self, max_share: float) -> None:
        """Raise IncompleteError when more than `max_share` are missing, PlatformError where the store is to blame."""
        not_given = sum(self.codes.get(code.value, 0) for code in OUTAGE_CODES)
        if not_given > self.total * max_share:
            raise PlatformError(f"the store does not give the images: {self}; run the same command when it is back")
        if self.count > self.total * max_share:
            raise IncompleteError(
                f"{self}; that is more than --max-error-share {max_share:g}: repair the source and ingest again, or "
                "raise the limit"
            )


def refuse_missing_classes(counts: Sequence[int], classes: Sequence[str], what: str) -> None:
    """Raise IncompleteError where damage has left a class no image of a split, called `what`: a model would never
    learn it, or be chosen by the other classes alone."""
    missing = [name for name, count in zip(classes, counts, strict=True) if not count]
    if missing:
        raise IncompleteError(
            f"no usable {what} image of class {', '.join(missing)} is left; repair the source and ingest again"
        )
