"""The account of a finished scoring run, read back from the files it wrote.

Row groups are read one at a time and only in the columns that are counted; the few rows to be shown are remembered by
place and read whole at the end. Memory is that of one row group, whatever the number of images.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.base.errors import IncompleteError, InputError
from pipeline.base.text import human_time
from pipeline.scoring.history.ledger import UNCHANGED, UNCHANGED_BAD
from pipeline.scoring.history.uncounted import described
from pipeline.scoring.record import ModelUsed, Pace, RunRecord
from pipeline.scoring.run_folder import RECORD, REQUEST, SUBJECTS, Output, RunFolder
from pipeline.scoring.schemas import IS_OOD, IS_UNCOUNTED
from pipeline.scoring.summary import advice
from pipeline.scoring.summary.advice import Advice
from pipeline.scoring.summary.drift import Drift
from pipeline.storage.stores import Stores

GALLERY = 12  # images of each kind that are shown
MAX_SUBJECTS = 200
BINS = 50
_OOD = ["ood_score", IS_OOD]
_COUNTED = ["probability", "decision", "class_name", *_OOD]
_SHOWN = [
    "image_id", "uri", "member", "etag", "size_bytes", "probability", "class_name", "decision", "subject_id", *_OOD,
]  # fmt: skip
REASONS = {
    UNCHANGED: "scored by an earlier run, unchanged since",
    UNCHANGED_BAD: "quarantined by an earlier run, unchanged since",
}


@dataclass(frozen=True)
class CodeCount:
    """One quarantine code: rows, the stages they failed in, and one of the messages."""

    code: str
    rows: int
    stages: tuple[str, ...]
    example: str


@dataclass(frozen=True)
class Summary:
    """What a run found. Rows are dictionaries with the columns of the output."""

    folder: RunFolder
    run: RunRecord
    histogram: list[int]  # images in each of BINS equal intervals of 0..1
    decisions: dict[str, int]
    classes: dict[str, int]
    review_band: tuple[float, float] | None  # lowest and highest probability that was sent to review
    highest: list[dict[str, Any]]
    strangest: list[dict[str, Any]]  # of those unlike the training images, the farthest
    borderline: list[dict[str, Any]]  # nearest to the threshold
    quarantined: list[dict[str, Any]]  # of every code some
    codes: list[CodeCount]
    subjects: list[dict[str, Any]]  # of subjects.parquet, most suspicious first, at most MAX_SUBJECTS
    subject_count: int
    uncounted: list[str]  # the first archives and folders that could not be read to their end, and why
    drift_note: str = ""  # how the images lie to the model's own, a sentence; empty where nothing can be compared

    @property
    def decides(self) -> bool:
        """False for a model whose classes say nothing about disease."""
        return bool(self.run.model.positive_classes) or bool(self.decisions)

    @property
    def threshold(self) -> float | None:
        return self.run.model.threshold if self.decides else None

    def count(self, decision: str) -> int:
        return self.decisions.get(decision, 0)

    def headline(self) -> str:
        """The run in one sentence."""
        counts = self.run.counts
        if not (counts.scored or counts.quarantined or counts.uncounted):
            return f"Nothing new to score: {counts.skipped:,} images were done by earlier runs."
        parts = [f"{counts.scored:,} {'image' if counts.scored == 1 else 'images'} scored"]
        if self.decides:
            parts += [f"{self.count('positive'):,} positive", f"{self.count('review'):,} to review"]
        if counts.out_of_distribution:
            parts.append(f"{counts.out_of_distribution:,} unlike the training images")
        parts.append(f"{counts.quarantined:,} quarantined")
        if counts.uncounted:
            parts.append(f"{counts.uncounted:,} archives or folders that could not be read to their end")
        return ", ".join(parts) + "."


def find_run(uri: str, stores: Stores) -> RunFolder:
    """The run at `uri`, or the latest finished run below it. Raises InputError where there is none."""
    folder, output = RunFolder.at(uri, stores), Output.at(uri, stores)
    if folder.is_finished:
        return folder
    if folder.has(REQUEST) or folder.has(RECORD):
        raise InputError(f"{uri}: this run is not finished; run the same `leukoray score` command again first")
    finished = output.finished()
    if finished:
        return finished[-1][0]
    started = len(output.runs())
    found = f"{started} unfinished runs" if started else "no scoring run"
    raise InputError(f"{uri}: {found} here; name the folder that `leukoray score` printed at its end")


def summarize(folder: RunFolder) -> Summary:
    """Read a finished run. Raises IncompleteError when its files hold other rows than its account says."""
    run = folder.record()
    scores = _Scores(run.model)
    files = folder.outputs("predictions")
    for number, name in enumerate(files):
        for group, table in _row_groups(folder, name, _COUNTED):
            scores.add(table, number, group)
    quarantine = _Quarantine()
    for name in folder.outputs("quarantine"):
        for _, table in _row_groups(folder, name, None):
            quarantine.add(table)
    found = (int(scores.histogram.sum()), sum(quarantine.rows.values()), quarantine.uncounted)
    counts = run.counts
    said = (counts.scored, counts.quarantined, counts.uncounted - counts.uncounted_unchanged)
    if found != said:
        raise IncompleteError(
            f"{folder.uri}: {found[0]} scored and {found[1] + found[2]} quarantined rows in the files, run.json says "
            f"{said[0]} and {said[1] + said[2]}; the output was changed after the run, score again into another folder"
        )
    subjects, subject_count = _subjects(folder)
    return Summary(
        folder=folder,
        run=run,
        histogram=scores.histogram.tolist(),
        decisions=dict(scores.decisions),
        classes=dict(scores.classes.most_common()),
        review_band=scores.review_band,
        highest=_rows_at(folder, files, scores.highest.places()),
        strangest=_rows_at(folder, files, scores.strangest.places()),
        borderline=_rows_at(folder, files, scores.borderline.places()),
        quarantined=quarantine.mixed(GALLERY),
        codes=quarantine.counts(),
        subjects=subjects,
        subject_count=subject_count,
        uncounted=described(folder, GALLERY) if counts.uncounted else [],
        drift_note=scores.drift.note(run.model, subject_count),
    )


Place = tuple[int, int, int]  # file, row group, row


def _row_groups(folder: RunFolder, name: str, columns: Sequence[str] | None) -> Iterator[tuple[int, pa.Table]]:
    with folder.sound(name), folder.open(name) as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            yield group, parquet.read_row_group(group, columns=_there(parquet, columns))


def _there(parquet: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    """Those of the columns that the version which wrote the file knew; None: all."""
    return None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]


@dataclass
class _Best:
    """The places of the highest scores seen; of equals, the first."""

    kept: list[tuple[float, Place]] = field(default_factory=list)

    def offer(self, scores: NDArray[np.float32], file: int, group: int) -> None:
        """Of a row group's rows; one whose score is NaN is never among them."""
        rows = np.argsort(-scores, kind="stable")[: min(GALLERY, np.count_nonzero(~np.isnan(scores)))]
        new = [(float(scores[row]), (-file, -group, -int(row))) for row in rows]
        self.kept = heapq.nlargest(GALLERY, self.kept + new)

    def places(self) -> list[Place]:
        return [(-file, -group, -row) for _, (file, group, row) in self.kept]


class _Scores:
    """What is counted of the predictions."""

    def __init__(self, model: ModelUsed) -> None:
        self._threshold = model.threshold if model.positive_classes else None
        self.histogram = np.zeros(BINS, np.int64)
        self.decisions: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.review_band: tuple[float, float] | None = None
        self.highest, self.strangest, self.borderline = _Best(), _Best(), _Best()
        self.drift = Drift.of(model)

    def add(self, table: pa.Table, file: int, group: int) -> None:
        probabilities = table["probability"].to_numpy().astype(np.float32)
        self.histogram += np.histogram(probabilities, BINS, (0, 1))[0]
        for name, counter in (("decision", self.decisions), ("class_name", self.classes)):
            values = pc.value_counts(table[name].combine_chunks().drop_null())
            counter.update({item["values"]: item["counts"] for item in values.to_pylist()})
        review = probabilities[pc.fill_null(pc.equal(table["decision"], "review"), False).to_numpy()]
        if len(review):
            low, high = float(review.min()), float(review.max())
            band = self.review_band or (low, high)
            self.review_band = (min(band[0], low), max(band[1], high))
        self.highest.offer(probabilities, file, group)
        if IS_OOD in table.column_names:  # 0.1 wrote none
            flagged = pc.fill_null(table[IS_OOD], False)
            self.drift.add(probabilities, pc.fill_null(table["ood_score"], np.nan).to_numpy())
            self.strangest.offer(pc.if_else(flagged, table["ood_score"], np.nan).to_numpy(), file, group)
        # Without a threshold the least sure images are the borderline ones.
        distance = probabilities if self._threshold is None else np.abs(probabilities - np.float32(self._threshold))
        self.borderline.offer(-distance, file, group)


class _Quarantine:
    """What is counted of the quarantine, and the first rows of each code."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.uncounted = 0  # archives and folders, which are no images
        self._stages: dict[str, set[str]] = {}
        self._first: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: pa.Table) -> None:
        if IS_UNCOUNTED in table.column_names:  # 0.1 wrote none
            is_image = pc.invert(pc.fill_null(table[IS_UNCOUNTED], False))
            self.uncounted += table.num_rows - pc.sum(is_image, min_count=0).as_py()
            table = table.filter(is_image)
        groups = table.group_by(["code", "stage"]).aggregate([([], "count_all")])
        for item in groups.to_pylist():
            self.rows[item["code"]] += item["count_all"]
            self._stages.setdefault(item["code"], set()).add(item["stage"])
            first = self._first.setdefault(item["code"], [])
            if len(first) < GALLERY:
                same = pc.and_(pc.equal(table["code"], item["code"]), pc.equal(table["stage"], item["stage"]))
                first += table.filter(same).slice(0, GALLERY - len(first)).to_pylist()

    def counts(self) -> list[CodeCount]:
        return [
            CodeCount(code, rows, tuple(sorted(self._stages[code])), self._first[code][0]["message"] or "")
            for code, rows in self.rows.most_common()
        ]

    def mixed(self, limit: int) -> list[dict[str, Any]]:
        """One row of each code, then the second of each, and so on, so that a frequent code hides no rare one."""
        turns = ((turn, code) for turn in range(limit) for code, _ in self.rows.most_common())
        rows = (self._first[code][turn] for turn, code in turns if turn < len(self._first[code]))
        return [row for row, _ in zip(rows, range(limit), strict=False)]


def _rows_at(folder: RunFolder, files: Sequence[str], places: Sequence[Place]) -> list[dict[str, Any]]:
    """The rows at some places, in their order; each row group is read once."""
    found: dict[Place, dict[str, Any]] = {}
    for number, group in sorted({place[:2] for place in places}):
        with folder.sound(files[number]), folder.open(files[number]) as file:
            parquet = pq.ParquetFile(file)
            table = parquet.read_row_group(group, columns=_there(parquet, _SHOWN))
        for place in places:
            if place[:2] == (number, group):
                found[place] = table.slice(place[2], 1).to_pylist()[0]
    return [found[place] for place in places]


def _subjects(folder: RunFolder) -> tuple[list[dict[str, Any]], int]:
    if not folder.has(SUBJECTS):  # no image of a known subject
        return [], 0
    with folder.sound(SUBJECTS), folder.open(SUBJECTS) as file:
        parquet = pq.ParquetFile(file)
        rows = parquet.read_row_group(0).slice(0, MAX_SUBJECTS).to_pylist()
        return rows, parquet.metadata.num_rows


@dataclass(frozen=True)
class StageTime:
    """What one stage took of a run. `share`: of the workers' busy time, 0..1; `milliseconds` an image."""

    name: str
    share: float
    milliseconds: float
    is_slowest: bool
    advice: Advice


def stages(pace: Pace) -> list[StageTime]:
    images = max(1, pace.images)
    return [
        StageTime(name, share, 1000 * pace.stage_seconds[name] / images, name == pace.bottleneck, advice.of_stage(name))
        for name, share in pace.stage_shares.items()
    ]


def throughput(run: RunRecord) -> str:
    """Rates and the bottleneck in a sentence or two; empty where nothing was scored in this run's last process."""
    pace = run.progress
    if not pace.images:
        return ""
    text = (
        f"{pace.images:,} images in {human_time(pace.elapsed_s)} on {pace.workers} "
        f"{'worker' if pace.workers == 1 else 'workers'}: {pace.images_per_s:,.0f} images/s, "
        f"{pace.mb_per_s:,.1f} MB/s; listing took {human_time(run.listing_s)}. "
    )
    if pace.resumed_images:
        text += f"{pace.resumed_images:,} more were done before an interruption and are not in these rates. "
    slowest = pace.bottleneck
    return text + (f"Most time went into {slowest}: {advice.of_stage(slowest).remedy}." if slowest else "")
