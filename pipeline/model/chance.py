"""Whether a model was shown to be better than chance on its validation images: what a bundle keeps of it, in words."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

NOT_SHOWN = "not shown to be better than chance"


class AgainstChance(BaseModel):
    """The monitored metric of the chosen epoch, higher is better, with its interval and what guessing would give."""

    model_config = ConfigDict(frozen=True)

    metric: str  # as `BundleInfo.metrics` calls it
    value: float | None  # null where undefined
    chance: float = Field(ge=0, le=1)
    low: float | None = None  # limits; null where so few units tell nothing
    high: float | None = None
    confidence: float = Field(gt=0, lt=1)
    unit: Literal["subject", "image"]  # what was counted as independent
    units: int = Field(ge=0)
    called: str = "subjects"  # the units, as the manifest calls them
    looks: int = Field(1, ge=1)  # validations among which this one was chosen; the interval allows for them
    untold: str = ""  # why there are no limits

    @property
    def is_shown(self) -> bool:
        return self.low is not None and self.low > self.chance

    @property
    def includes_chance(self) -> bool:
        """The interval can be told and does not lie above chance."""
        return self.low is not None and self.low <= self.chance

    def __str__(self) -> str:
        value = "undefined" if self.value is None else f"{self.value:.3f}"
        found = f"validation {self.metric} {value}"
        if self.low is None or self.high is None:
            return f"{NOT_SHOWN}: {found}, and no interval can be told ({self.untold})"
        chosen = f", the best of {self.looks} validations" if self.looks > 1 else ""
        limits = (
            f"{100 * self.confidence:g} % interval {self.low:.3f} to {self.high:.3f} over {self.units} "
            f"{self.called if self.unit == 'subject' else 'images'}{chosen}"
        )
        if self.is_shown:
            return f"better than chance ({self.chance:.3g}): {found}, {limits}"
        return f"{NOT_SHOWN} ({self.chance:.3g}): {found}, {limits}"
