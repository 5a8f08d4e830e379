"""An image that a candidate and the model that answers were both asked about: how it is counted, counts as figures."""

from datetime import UTC, datetime

from pipeline.model.prediction import Prediction
from serving.agreed import Trial
from serving.monitoring.recorder import OOD_LABELS, Recorder
from serving.monitoring.state import (
    TRIAL_DECISIONS,
    TRIAL_DIFFERENCE,
    TRIAL_IMAGES,
    TRIAL_OOD,
    TRIAL_SECONDS,
    Metric,
    State,
)
from serving.rule import Figures, Verdict, judge

COMPARED = "compared"
UNANSWERED = "unanswered"  # by the candidate alone
AGREED_UNANSWERED = "agreed_unanswered"  # by the model that answers alone
DROPPED = "dropped"  # no place or no time for it
OTHER_SIZE = "other_size"  # pixels alone, or a large image, for a model of another size
_AGREED, _CANDIDATE = "agreed", "candidate"


def note(recorder: Recorder, trial: str, agreed: Prediction, candidate: Prediction) -> None:
    """Count what both said of one image. Models of the same classes, in the same order."""
    recorder.count(TRIAL_IMAGES, trial, COMPARED)
    recorder.count(TRIAL_DECISIONS, trial, _decided(agreed), _decided(candidate))
    recorder.count(TRIAL_OOD, trial, OOD_LABELS[agreed.is_ood], OOD_LABELS[candidate.is_ood])
    recorder.observe(TRIAL_DIFFERENCE, difference(agreed, candidate), trial)


def note_seconds(recorder: Recorder, trial: str, agreed_s: float, candidate_s: float) -> None:
    """Their parts of a forward pass."""
    recorder.observe(TRIAL_SECONDS, agreed_s, trial, _AGREED)
    recorder.observe(TRIAL_SECONDS, candidate_s, trial, _CANDIDATE)


def difference(agreed: Prediction, candidate: Prediction) -> float:
    """Of the probability of disease; where no class means disease, of the class that the model that answers named."""
    if agreed.decision is not None:
        return candidate.probability - agreed.probability
    top = max(range(len(agreed.classes)), key=agreed.classes.__getitem__)
    return candidate.classes[top] - agreed.classes[top]


def figures(state: State, trial: str) -> Figures:
    """Of one trial, in the counts of all replicas."""
    changed = sum(
        count
        for (name, labels), count in state.counts.items()
        if name == TRIAL_DECISIONS.name and labels[0] == trial and labels[1] != labels[2]
    )
    return Figures(
        images=state.counts[TRIAL_IMAGES.name, (trial, COMPARED)],
        changed=changed,
        unanswered=state.counts[TRIAL_IMAGES.name, (trial, UNANSWERED)],
        agreed_s=_mean(state, TRIAL_SECONDS, (trial, _AGREED)),
        candidate_s=_mean(state, TRIAL_SECONDS, (trial, _CANDIDATE)),
    )


def verdict(state: State, trial: Trial) -> Verdict | None:
    """What the rule of a trial says of these counts now; None without one."""
    if trial.wish.rule is None:
        return None
    lasted = datetime.now(UTC) - datetime.fromisoformat(trial.since)
    return judge(trial.wish.rule, figures(state, trial.id), max(0.0, lasted.total_seconds() / 3600))


def _decided(said: Prediction) -> str:
    return said.decision or said.class_name


def _mean(state: State, metric: Metric, labels: tuple[str, ...]) -> float | None:
    found = state.histograms.get((metric.name, labels))
    return None if found is None or not sum(found.buckets) else found.total / sum(found.buckets)
