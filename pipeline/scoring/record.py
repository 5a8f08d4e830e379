"""run.json: the account of a finished run, which other programs read as well. Keys are only ever added.

What an older version wrote is read too: keys that it did not have take their defaults, keys that are gone are ignored.
"""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from pipeline.base.record import COMPLETE, JobRecord
from pipeline.images.depth import GUESSED
from pipeline.images.unit import Unit
from pipeline.model.bundle import Bundle
from pipeline.model.drift import OOD_SCORE, Statistic
from pipeline.model.reference import OodRule, is_far_above, told
from pipeline.model.review import Band, ReviewRule
from pipeline.scoring.request import Request, Workforce

TOO_MANY_ERRORS = "too_many_errors"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Counts(_Entry):
    """Images, counted in the files that were written: listed = scored + quarantined + skipped.

    What holds an unknown number of images (`uncounted`) is in none of these four.
    """

    listed: int
    scored: int
    quarantined: int
    quarantined_again: int = 0  # of these, those that an earlier run quarantined as well
    skipped: int = 0
    deleted_at_source: int = 0  # of earlier runs, gone since
    codes: Mapping[str, int] = {}  # quarantined, by Code
    remarks: Mapping[str, int] = {}  # scored all the same, by what was noticed
    in_training: int = 0  # scored, though the model learned from them or was chosen by them
    skipped_reasons: Mapping[str, int] = {}
    left_out: Mapping[str, int] = {}  # files that are no images, by reason; not listed
    masks: tuple[str, ...] = ()  # the first of left_out's masks
    uncounted: int = 0  # archives and folders that could not be read to their end
    uncounted_unchanged: int = 0  # of these, those that an earlier run met as they are: rows of skipped/
    uncounted_accepted: int = 0  # of these, those that an earlier run was to accept
    meta_left_out: int = 0  # keys of sidecars, or columns of a manifest, that have no column: beyond the first by name
    meta_first: tuple[str, ...] = ()  # the first of these
    out_of_distribution: int = 0  # scored all the same, though unlike the model's training images

    @property
    def at_least(self) -> str:
        """What a person is to read before `listed`."""
        return "at least " if self.uncounted else ""

    @property
    def error_share(self) -> float:
        """Share of the quarantined in what was tried, 0..1; what failed in an earlier run already does not count."""
        news = self.quarantined - self.quarantined_again
        return news / (self.scored + news) if news else 0.0


class ModelUsed(_Entry):
    """The bundle, and the rule it decided by."""

    uri: str
    name: str
    version: str
    sha256: str  # BundleInfo.identity
    threshold: float  # on the probability of disease, 0..1
    temperature: float = 1.0
    positive_classes: tuple[str, ...] = ()  # empty: its classes say nothing about disease
    preprocessing_digest: str = ""
    bit_depth: int | None = None  # fixed for 16-bit samples
    synthetic: bool = False  # trained on generated images
    unit: Unit | None = None  # what the images of training show
    ood: OodRule | None = None  # null: nothing tells images unlike those
    subject_label: str = ""  # which subjects `subject_probability` means, in words; empty: none is given
    review_band: Band | None = None  # [low, high) of the probability, left to a person
    review: ReviewRule | None = None  # what is promised outside it; null: nothing
    features: Statistic | None = None  # `ood_score` of the model's own images; null: not known
    mean_probability: float | None = None  # of held-out images of training

    @classmethod
    def of(cls, bundle: Bundle) -> "ModelUsed":
        info = bundle.info
        given = info.model_dump(
            include=set(cls.model_fields) - {"uri", "sha256", "features", "mean_probability", "subject_label"}
        )
        known = {} if info.reference_statistics is None else info.reference_statistics.statistics
        rules = info.subject_rules
        label = str(rules.label) if rules is not None and rules.roll_up is not None else ""
        return cls(
            uri=bundle.uri, sha256=info.identity(), subject_label=label, features=known.get(OOD_SCORE),
            mean_probability=info.reference_scores.get("mean"), **given,
        )  # fmt: skip


class Pace(_Entry):
    """What the last process of the run did, and how fast."""

    images: int
    resumed_images: int = 0  # done before an interruption, not in the rates
    elapsed_s: float
    images_per_s: float
    mb_per_s: float  # of encoded bytes, 10^6
    first_part_s: float | None = None  # until the first shard was done
    workers: int
    images_by_worker: Mapping[str, int] = {}  # host:pid
    stage_seconds: Mapping[str, float] = {}  # summed over workers
    stage_shares: Mapping[str, float] = {}  # of the workers' busy time, 0..1
    bottleneck: str | None = None  # the stage with the largest share
    fetch_attempts: int = 0


class RunRecord(JobRecord):
    """One finished run. `status` is COMPLETE, INCOMPLETE or TOO_MANY_ERRORS."""

    number: int = 0  # in the order in which the runs of an output end, whatever clocks say; 0: of 0.1, which come first
    schema_version: int  # of the rows
    counts: Counts
    error_share: float  # 0..1, see Counts
    max_error_share: float  # what was accepted
    accepts_damaged: bool = False  # archives whose images cannot be counted are no reason to be incomplete
    model: ModelUsed
    request: Request
    layout: str = ""  # of the source's paths
    unit: Unit | None = None  # what the images show: by their layout or manifest, else what the model's do
    unit_note: str = ""  # where the model was made of other images
    pixel_rules: Mapping[str, int] = {}  # rows of any version of the model in the output so far, by digest
    continued: bool = False  # after an interruption
    listing_s: float = 0.0
    bytes: int = 0  # of encoded images, as listed
    progress: Pace
    resources: Workforce
    notice: str = ""

    @property
    def training_note(self) -> str:
        """A sentence where images of training were scored, else empty."""
        count = self.counts.in_training
        if not count:
            return ""
        return (
            f"{count:,} of the images scored are, byte for byte, among those that the model learned from or was chosen "
            "by (in_training): of how well it does on others they say nothing"
        )

    @property
    def pixel_note(self) -> str:
        """A sentence where the output holds rows of the model under several pixel rules, else empty."""
        if len(self.pixel_rules) < 2:
            return ""
        rows = ", ".join(f"{count:,} of {digest[:12]}" for digest, count in self.pixel_rules.items())
        return (
            f"this output holds rows of the model under {len(self.pixel_rules)} pixel rules ({rows}; this run has "
            f"{self.model.preprocessing_digest[:12]}): compare probabilities of one preprocessing_digest only"
        )

    @property
    def meta_note(self) -> str:
        """A sentence where not all that was said of the images has a column, else empty."""
        counts = self.counts
        if not counts.meta_left_out:
            return ""
        more = ", ..." if counts.meta_left_out > len(counts.meta_first) else ""
        return (
            f"{counts.meta_left_out:,} keys of sidecars or columns of a manifest have no column meta_* in the outputs, "
            f"which take the first by name: {', '.join(counts.meta_first)}{more}"
        )

    @property
    def depth_note(self) -> str:
        """A sentence where images of the run were guessed to have different depths, else empty."""
        guessed = [kind for kind in self.counts.remarks if kind.startswith(GUESSED)]
        if len(guessed) < 2:
            return ""
        bits = " and ".join(sorted(kind.removeprefix(GUESSED) for kind in guessed))
        return (
            f"16-bit images were guessed to have {bits}: where one camera took them, the darker ones are read too "
            "bright; fix their depth with --bit-depth"
        )

    @property
    def review_note(self) -> str:
        """What is promised of the images that are not left to a person, a sentence; empty where nothing is."""
        rule = self.model.review
        if rule is None or not rule.is_promised:
            return ""
        return f"{rule}; images unlike those it was made with are not meant"

    @property
    def ood_note(self) -> str:
        """How many images look unlike those of training, a sentence; empty where nothing tells, or none was scored."""
        rule = self.model.ood
        if rule is None or rule.threshold is None:
            return ""
        return told(self.counts.out_of_distribution, self.counts.scored, rule.false_flag_rate)

    @property
    def notes(self) -> list[str]:
        """All that a person should know of the run beside its counts, a sentence each."""
        notes = (self.training_note, self.pixel_note, self.depth_note, self.meta_note, self.unit_note, self.review_note)
        return [note for note in (*notes, self.ood_note) if note]

    @property
    def is_far_from_training(self) -> bool:
        """Whether far more images look unlike those of training than its rule states."""
        rate = None if self.model.ood is None else self.model.ood.false_flag_rate
        return is_far_above(self.counts.out_of_distribution, self.counts.scored, rate)

    @property
    def is_accepted(self) -> bool:
        return self.status == COMPLETE
