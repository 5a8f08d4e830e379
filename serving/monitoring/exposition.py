"""A state as Prometheus text, format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from pipeline.model.drift_counts import DriftCounts
from serving.monitoring.comparison import verdict
from serving.monitoring.state import COUNTERS, HISTOGRAMS, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "leukoray_"


def written(state: State) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Collected(state))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Family]:
        yield from self._counters()
        yield from self._histograms()
        yield from self._now()
        yield from self._drift()
        yield from _trials(self._state)

    def _counters(self) -> Iterator[Family]:
        for metric in COUNTERS:
            family = CounterMetricFamily(_PREFIX + metric.name, metric.text, labels=metric.labels)
            for (name, labels), value in sorted(self._state.counts.items()):
                if name == metric.name:
                    family.add_metric(labels, value)
            yield family

    def _histograms(self) -> Iterator[Family]:
        for metric in HISTOGRAMS:
            family = HistogramMetricFamily(_PREFIX + metric.name, metric.text, labels=metric.labels)
            for (name, labels), histogram in sorted(self._state.histograms.items(), key=lambda item: item[0]):
                if name == metric.name:
                    family.add_metric(labels, _cumulative(metric.bounds, histogram.buckets), histogram.total)
            yield family

    def _now(self) -> Iterator[Family]:
        state = self._state
        yield GaugeMetricFamily(_PREFIX + "requests_in_work", "requests without an answer yet", state.in_work)
        yield GaugeMetricFamily(
            _PREFIX + "replicas_refusing", "replicas that did not take the model last asked for", state.refusing
        )
        yield GaugeMetricFamily(
            _PREFIX + "replicas_with_old_keys", "replicas that could not take the file of keys as it is", state.old_keys
        )
        info = GaugeMetricFamily(
            _PREFIX + "model_info", "1 for each model that answers now", labels=("name", "version", "sha256")
        )
        replicas = GaugeMetricFamily(_PREFIX + "replicas", "replicas that answer with it", labels=("sha256",))
        for model, count in sorted(state.answering.items()):
            info.add_metric(model, 1)
            replicas.add_metric((model.sha256,), count)
        yield info
        yield replicas

    def _drift(self) -> Iterator[Family]:
        """Of the models that answer now, over the days that the state knows."""
        images = GaugeMetricFamily(
            _PREFIX + "drift_images", "images of today and yesterday, UTC, that drift is told of", labels=("sha256",)
        )
        psi = GaugeMetricFamily(
            _PREFIX + "drift_psi", "population stability index of the probabilities", labels=("sha256",)
        )
        chance = GaugeMetricFamily(
            _PREFIX + "drift_psi_by_chance", "what it is on average where nothing has changed", labels=("sha256",)
        )
        labels = ("sha256", "statistic")
        distance = GaugeMetricFamily(
            _PREFIX + "drift_distance",
            "Wasserstein distance to the bundle's own images, in their spreads",
            labels=labels,
        )
        limit = GaugeMetricFamily(
            _PREFIX + "drift_limit", "distance that a new subject of the own laboratory may have", labels=labels
        )
        for sha256, counts in sorted(_of_each(self._state).items()):
            images.add_metric((sha256,), counts.images)
            for family, value in ((psi, counts.psi()), (chance, counts.psi_by_chance())):
                if value is not None:
                    family.add_metric((sha256,), value)
            for shift in counts.shifts():
                distance.add_metric((sha256, shift.name), shift.distance)
                limit.add_metric((sha256, shift.name), shift.limit)
        yield from (images, psi, chance, distance, limit)


def _trials(state: State) -> Iterator[Family]:
    """Of candidates: who has which, how its rule stands, how the last trial ended."""
    labels = ("trial", "name", "version", "sha256", "stage")
    replicas = GaugeMetricFamily(_PREFIX + "candidate_replicas", "replicas that have the candidate", labels=labels)
    of_rule = ("trial", "criterion")
    figure = GaugeMetricFamily(
        _PREFIX + "candidate_figure", "what its rule judges: of shares the upper limit", labels=of_rule
    )
    limit = GaugeMetricFamily(_PREFIX + "candidate_limit", "what its rule asks for", labels=of_rule)
    of_end = ("trial", "decision", "by")
    ended = GaugeMetricFamily(_PREFIX + "candidate_ended", "1 for the last trial that ended", labels=of_end)
    having: Counter[tuple[str, ...]] = Counter()  # while a new wish goes round, replicas tell of two
    for trial, count in state.trying.items():
        chosen = trial.chosen
        having[trial.id, chosen.name, chosen.version, chosen.sha256, trial.stage] += count
    for said, count in sorted(having.items()):
        replicas.add_metric(said, count)
    for trial in {trial.id: trial for trial in sorted(state.trying, key=lambda trial: trial.revision)}.values():
        found = verdict(state, trial)
        for criterion in found.criteria if found is not None else ():
            limit.add_metric((trial.id, criterion.name), criterion.limit)
            if criterion.value is not None:
                figure.add_metric((trial.id, criterion.name), criterion.value)
    for end in sorted({(one.trial, one.decision, one.by) for one in state.ended}):
        ended.add_metric(end, 1)
    refused = GaugeMetricFamily(
        _PREFIX + "candidate_refused", "replicas that were told of a refused candidate", state.candidate_refused
    )
    yield from (replicas, figure, limit, ended, refused)


def _of_each(state: State) -> dict[str, DriftCounts]:
    """All days together, of each model that answers."""
    found: dict[str, DriftCounts] = {}
    answering = {model.sha256 for model in state.answering}
    for (sha256, _), counts in state.drift.items():
        if sha256 in answering:
            found[sha256] = found[sha256].added(counts) if sha256 in found else counts
    return found


def _cumulative(bounds: tuple[float, ...], buckets: list[int]) -> list[tuple[str, float]]:
    told, below = [], 0
    for bound, count in zip((*bounds, float("inf")), buckets, strict=True):
        below += count
        told.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(below)))
    return told
