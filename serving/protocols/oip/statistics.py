"""What a model has done in this replica: the counts of the protocol's statistics extension.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

import contextlib
import time
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from serving.model import LoadedModel, Work
from serving.protocols.oip.schemas import Duration, InferenceStats, ModelStats, Statistics


class Counted:
    """Requests for inference by this protocol; what the forward passes cost is counted by the model itself."""

    def __init__(self) -> None:
        self._requests: WeakKeyDictionary[Work, dict[bool, Duration]] = WeakKeyDictionary()

    @contextlib.contextmanager
    def request(self, model: LoadedModel) -> Iterator[None]:
        """Count the block as one request, failed where it raises."""
        started, is_answered = time.perf_counter_ns(), False
        try:
            yield
            is_answered = True
        finally:
            counts = self._requests.setdefault(model.work, {True: Duration(), False: Duration()})
            before = counts[is_answered]
            counts[is_answered] = Duration(count=before.count + 1, ns=before.ns + time.perf_counter_ns() - started)

    def of(self, model: LoadedModel) -> Statistics:
        counts, work = self._requests.get(model.work, {}), model.work
        stats = ModelStats(
            name=model.info.name,
            version=model.info.version,
            last_inference=work.last_ms,
            inference_count=work.images,
            execution_count=work.passes,
            inference_stats=InferenceStats(
                success=counts.get(True, Duration()),
                fail=counts.get(False, Duration()),
                compute_infer=Duration(count=work.passes, ns=work.ns),
            ),
        )
        return Statistics(model_stats=[stats])
