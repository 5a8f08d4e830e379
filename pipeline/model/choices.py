"""What may be chosen of a network, by the words of the command; for those as well who import no torch."""

from typing import Literal

Norm = Literal["batch", "frozen", "group"]  # `norms`
Unfreeze = Literal["head", "last", "lora", "all"]  # `trainable.freeze`
