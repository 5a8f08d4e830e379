"""The counts of one replica, or of several put together: plain numbers that add up.

Takes what `Recorder` notes; `exposition` writes it. Labels have few values: route templates, codes, classes.
"""

import bisect
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pipeline.model.drift_counts import DriftCounts
from serving.agreed import Ended, Trial

Labels = tuple[str, ...]


class Metric(NamedTuple):
    """One counter or histogram: its name after `leukoray_`, help, names of labels; a histogram has upper bounds."""

    name: str
    text: str
    labels: Labels
    bounds: tuple[float, ...] = ()


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
REQUESTS = Metric("requests", "requests by route and HTTP status", ("route", "method", "status"))
ERRORS = Metric("errors", "requests that were answered with a problem, by its code", ("code", "status"))
REFUSED_IMAGES = Metric("images_refused", "images that got no prediction, by why", ("code",))
PREDICTIONS = Metric("predictions", "images by what was said of them", ("class", "decision", "ood"))
REQUEST_SECONDS = Metric("request_seconds", "from a request's head to its answer", ("route",), _SECONDS)
STAGE_SECONDS = Metric(
    "stage_seconds",
    "of a decoded image: waiting for a decoder (queue), decode, waiting for a batch and forward pass (predict)",
    ("stage",),
    _SECONDS,
)
BATCH_IMAGES = Metric("batch_images", "images in one forward pass", (), (1, 2, 4, 8, 16, 32, 64))
PROBABILITY = Metric("probability", "of disease, or of the top class", (), tuple(k / 20 for k in range(1, 21)))
TRIAL_IMAGES = Metric(
    "candidate_images",
    "images that the candidate and the model that answers were compared on, or why they were not",
    ("trial", "outcome"),
)
TRIAL_DECISIONS = Metric(
    "candidate_decisions", "images by what either decided; by class where none is", ("trial", "agreed", "candidate")
)
TRIAL_OOD = Metric("candidate_ood", "images by what either said of is_ood", ("trial", "agreed", "candidate"))
TRIAL_REQUESTS = Metric(
    "candidate_requests", "requests while a share goes to the candidate, by what answered", ("trial", "answered_by")
)
TRIAL_DIFFERENCE = Metric(
    "candidate_difference",
    "probability by the candidate less that by the model that answers, of the same class or of disease",
    ("trial",),
    (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, -0.001, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
)
TRIAL_SECONDS = Metric(
    "candidate_pass_seconds",
    "of a forward pass, an image, of those compared; the processor's time where it is of one thread",
    ("trial", "model"),
    _SECONDS,
)
COUNTERS = (
    REQUESTS, ERRORS, REFUSED_IMAGES, PREDICTIONS, TRIAL_IMAGES, TRIAL_DECISIONS, TRIAL_OOD, TRIAL_REQUESTS,
)  # fmt: skip
HISTOGRAMS = (REQUEST_SECONDS, STAGE_SECONDS, BATCH_IMAGES, PROBABILITY, TRIAL_DIFFERENCE, TRIAL_SECONDS)
_OF_TRIALS = {metric.name for metric in (*COUNTERS, *HISTOGRAMS) if metric.labels[:1] == ("trial",)}
_TRIALS = 2  # that are kept: the one that goes on and the one before
_DAYS = 2  # of drift that are kept: today and yesterday


class Answering(NamedTuple):
    """The model that a replica answers with."""

    name: str
    version: str
    sha256: str


@dataclass
class Histogram:
    """How many values lie in each bucket, the last without an upper bound, and their sum."""

    buckets: list[int]
    total: float = 0.0

    def added(self, other: "Histogram") -> "Histogram":
        both = zip(self.buckets, other.buckets, strict=True)
        return Histogram([one + two for one, two in both], self.total + other.total)


@dataclass
class State:
    """Counts since the process began; `drift` by the model's identity and the day (since the epoch, UTC)."""

    counts: Counter[tuple[str, Labels]] = field(default_factory=Counter)
    histograms: dict[tuple[str, Labels], Histogram] = field(default_factory=dict)
    drift: dict[tuple[str, int], DriftCounts] = field(default_factory=dict)
    in_work: int = 0
    answering: Counter[Answering] = field(default_factory=Counter)  # replicas by their model
    refusing: int = 0  # replicas that did not take the model last asked for
    old_keys: int = 0  # replicas that could not take the file of keys as it is
    trying: Counter[Trial] = field(default_factory=Counter)  # replicas by the candidate that they have
    ended: Counter[Ended] = field(default_factory=Counter)  # replicas by the last trial that they know the end of
    candidate_refused: int = 0  # replicas that were told so

    def count(self, metric: Metric, labels: Labels) -> None:
        self.counts[metric.name, labels] += 1

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        key = metric.name, labels
        found = self.histograms.get(key)
        if found is None:
            found = self.histograms[key] = Histogram([0] * (len(metric.bounds) + 1))
        found.buckets[bisect.bisect_left(metric.bounds, value)] += 1
        found.total += value

    def added(self, other: "State") -> "State":
        """Both together, drift of the last days that either knows."""
        histograms = dict(self.histograms)
        for name, histogram in other.histograms.items():
            histograms[name] = histograms[name].added(histogram) if name in histograms else histogram
        drift = dict(self.drift)
        for of, counts in other.drift.items():
            drift[of] = drift[of].added(counts) if of in drift else counts
        return State(
            self.counts + other.counts, histograms, recent(drift), self.in_work + other.in_work,
            self.answering + other.answering, self.refusing + other.refusing, self.old_keys + other.old_keys,
            self.trying + other.trying, self.ended + other.ended, self.candidate_refused + other.candidate_refused,
        )  # fmt: skip

    def of_trials(self, ids: Collection[str]) -> "State":
        """Without what was counted of other trials."""
        return replace(
            self,
            counts=Counter({key: count for key, count in self.counts.items() if _is_kept(key, ids)}),
            histograms={key: one for key, one in self.histograms.items() if _is_kept(key, ids)},
        )

    def history(self) -> "State":
        """What stays true of a replica that is no more."""
        return replace(
            self, in_work=0, answering=Counter(), refusing=0, old_keys=0, trying=Counter(), ended=Counter(),
            candidate_refused=0,
        )  # fmt: skip


def added(states: Iterable[State]) -> State:
    """All together, trials that go on and the last two."""
    total = State()
    for state in states:
        total = total.added(state)
    known = {labels[0] for name, labels in (*total.counts, *total.histograms) if name in _OF_TRIALS}
    latest = sorted(known, key=lambda trial: trial.rpartition("@")[2])[-_TRIALS:]
    return total.of_trials({*latest, *(trial.id for trial in total.trying)})


def _is_kept(key: tuple[str, Labels], trials: Collection[str]) -> bool:
    name, labels = key
    return name not in _OF_TRIALS or labels[0] in trials


def recent(drift: dict[tuple[str, int], DriftCounts]) -> dict[tuple[str, int], DriftCounts]:
    """Without days that are over and gone, seen from the latest."""
    latest = max((day for _, day in drift), default=0)
    return {of: counts for of, counts in drift.items() if of[1] > latest - _DAYS}
