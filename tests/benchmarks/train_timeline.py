"""What a trainer's process says of its run: one JSON line. Imports nothing, so that it costs no rival a start-up."""

import json
from dataclasses import asdict, dataclass, field


@dataclass
class Timeline:
    """Moments in seconds of the wall clock."""

    images: int  # that an epoch trained on
    first_step_at: float = 0.0  # the first optimizer step is done
    epochs: list[tuple[float, float]] = field(default_factory=list)  # begin and end of training, without validation
    auc: float = 0.0  # on validation, of the last epoch
    decode_s: float = 0.0  # before the first epoch, for its images

    def show(self) -> None:
        print(json.dumps(asdict(self)), flush=True)
