"""A search's folder, `<model>/.searches/<digest>/`: checkpoints of trials that run, records of those that ended.

It is all that lasts of a search. Whatever is killed, what lies there says what is still to be done.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.storage.stores import Stores
from pipeline.storage.uris import join
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Files, State
from pipeline.training.run_folder import TrainingRun, checkpoint_files
from pipeline.training.search_report import Trial

_RECORD = "trial.json"


@dataclass(frozen=True)
class Search:
    """What is tried. `proposals` by trial number; no trial is longer than `epochs`."""

    uri: str
    stores: Stores
    check_lock: Callable[[], None]
    proposals: Mapping[int, Mapping[str, str]]
    metric: str  # of a row, higher is better
    epochs: int

    def run(self, number: int) -> TrainingRun:
        return TrainingRun(join(self.uri, f"trial-{number:03d}"), self.stores, self.check_lock)

    def trials(self) -> list[Trial]:
        """All, as far as they came."""
        return [self.trial(number) for number in self.proposals]

    def trial(self, number: int) -> Trial:
        """By its record, or as it was left."""
        found = self.stores.read_if_there(join(self.run(number).uri, _RECORD))
        if found is not None:
            record = json.loads(found)
            return Trial(number, self.proposals[number], record["history"], record["ending"])
        return Trial(number, self.proposals[number], self._state(number).history, "unfinished")

    def end(self, number: int, failure: str | None = None) -> Trial:
        """Keep what a trial came to, in place of its checkpoints."""
        state, run = self._state(number), self.run(number)
        ending = failure or ("finished" if state.finished else "stopped")
        trial = Trial(number, self.proposals[number], state.history, ending)
        record = {"proposal": dict(trial.proposal), "history": list(trial.history), "ending": ending}
        self.stores.of(run.uri).write(join(run.uri, _RECORD), json.dumps(record, indent=2).encode())
        run.drop_checkpoints()
        return trial

    def _state(self, number: int) -> State:
        run = self.run(number)
        name = run.mend()
        if name is None:
            return State()
        with checkpoint_files(run.uri, name, self.stores) as folder:
            return checkpoint.read_state(folder)


def keep(run: TrainingRun, epoch: int, files: Files) -> None:
    """A trial's checkpoint after `epoch` epochs, in place of the one before."""
    name = f"checkpoint_{epoch:06d}"
    checkpoint.upload(files, join(run.uri, name), run.stores)
    run.drop_checkpoints(but=name)
