"""A run that is ready to be done: what was asked, what was listed for it, and with which model it is scored."""

from dataclasses import dataclass

from pipeline.model.bundle import Bundle
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import RunFolder
from pipeline.storage.stores import Stores


@dataclass(frozen=True)
class ScoringTask:
    """Everything that decides the rows of a run. Travels to workers."""

    folder: RunFolder
    request: Request
    plan: Plan
    bundle: Bundle
    stores: Stores  # of the images
