"""What a scoring run tells Prometheus: how far it is, what it refused, and when the last run ended.

Counts come from the progress of the driver, at the end from the account of the files written (`RunRecord`).
"""

from collections.abc import Sequence
from datetime import datetime

from pipeline.base.measures import Measure, Measures
from pipeline.base.secrets import without_secrets
from pipeline.scoring.record import RunRecord
from pipeline.scoring.work.progress import Progress

_OUTPUT = ("output",)
IMAGES = Measure("leukoray_score_images", "Counter", "Images done, scored or quarantined", _OUTPUT)
QUARANTINED = Measure("leukoray_score_quarantined", "Counter", "Images quarantined, by code", ("output", "code"))
BYTES = Measure("leukoray_score_bytes", "Counter", "Encoded bytes of the images done", _OUTPUT)
STAGES = Measure(
    "leukoray_score_stage_seconds", "Counter", "Seconds of workers, by stage", ("output", "stage")
)  # fmt: skip
IMAGES_LEFT = Measure("leukoray_score_images_left", "Gauge", "Images listed that are not done yet", _OUTPUT)
SHARDS_LEFT = Measure("leukoray_score_shards_left", "Gauge", "Shards that have no part yet", _OUTPUT)
BEGUN = Measure("leukoray_score_begun_seconds", "Gauge", "When the run in work began, Unix time", _OUTPUT)
FINISHED = Measure("leukoray_score_finished_seconds", "Gauge", "When the last accepted run ended, Unix time", _OUTPUT)
RUN_IMAGES = Measure("leukoray_score_run_images", "Gauge", "Account of the run that ended", ("output", "what"))
ERROR_SHARE = Measure("leukoray_score_error_share", "Gauge", "Quarantined of what was tried, 0 to 1", _OUTPUT)
MEASURES = (
    IMAGES, QUARANTINED, BYTES, STAGES, IMAGES_LEFT, SHARDS_LEFT, BEGUN, FINISHED, RUN_IMAGES, ERROR_SHARE,
)  # fmt: skip
WHAT = (  # of the account; names of Counts
    "listed", "scored", "quarantined", "quarantined_again", "skipped", "deleted_at_source", "in_training", "uncounted",
    "out_of_distribution",
)  # fmt: skip


class Measured:
    """Of one run."""

    def __init__(self, output: str, started_at: str, earlier: Sequence[RunRecord]) -> None:
        """`earlier`: finished runs of the output. The last accepted one is told, whatever becomes of this one."""
        self._measures = Measures(MEASURES, output=without_secrets(output))
        self._measures.show(BEGUN, _unix(started_at))
        self._measures.show(
            FINISHED, max((_unix(record.finished_at) for record in earlier if record.is_accepted), default=None)
        )

    def progress(self, progress: Progress, shards_left: int) -> None:
        show, count = self._measures.show, self._measures.count
        show(SHARDS_LEFT, shards_left)
        show(IMAGES_LEFT, progress.rows_left)
        count(IMAGES, progress.rows)
        count(BYTES, progress.bytes)
        for code, images in progress.codes.items():
            count(QUARANTINED, images, code=code)
        for stage, seconds in progress.seconds.items():
            count(STAGES, seconds, stage=stage)

    def finished(self, record: RunRecord) -> None:
        for what in WHAT:
            self._measures.show(RUN_IMAGES, getattr(record.counts, what), what=what)
        self._measures.show(ERROR_SHARE, record.error_share)
        self._measures.show(SHARDS_LEFT, 0)
        self._measures.show(IMAGES_LEFT, 0)
        if record.is_accepted:
            self._measures.show(FINISHED, _unix(record.finished_at))


def _unix(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
