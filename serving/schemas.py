"""The JSON that goes over the wire, as `/openapi.json` describes it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from pipeline.images.unit import Unit
from pipeline.model.chance import AgainstChance
from pipeline.model.reference import OodRule
from pipeline.model.review import ReviewRule
from serving.agreed import Ended, Follows
from serving.rule import Rule, Verdict

NOTICE = "Research software, not a medical device."

Decision = TypeAliasType("Decision", Literal["positive", "negative", "review"])  # by its name in /openapi.json


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ErrorDetail(_Body):
    """`code` is stable and meant for programs, `message` for people."""

    code: str
    message: str
    request_id: str


class ErrorBody(_Body):
    """Problem details (RFC 9457); `error` is an extension of it, and what programs should go by."""

    type: str = Field(description="reference to the code's line in /docs")
    title: str
    status: int = Field(description="as in the status line", ge=400, le=599)
    detail: str = Field(description="as error.message")
    instance: str = Field(description="reference to this one request, with its id behind the #")
    error: ErrorDetail


class OipError(_Body):
    """An error of the Open Inference Protocol."""

    error: str


class FhirResource(_Body):
    """FHIR R4: a Bundle, or an OperationOutcome."""

    resource_type: str = Field(alias="resourceType")


class ImageInfo(_Body):
    """The image as it was sent: pixels as stored, before EXIF orientation."""

    format: str
    width: int
    height: int
    size_bytes: int


class Explanation(_Body):
    """Where the image speaks for a class: a class-activation map, as docs/explain.md has it. No proof of a reason."""

    of: str = Field(description="class that the map is of: of two the second, of more the one that is named")
    peak: float = Field(description="in logits; 0: no place speaks for the class")
    map: list[list[float]] = Field(description="rows from above, 0..1 of the image's own peak, in the model's size")
    text: str = Field(description="what it shows, in words")


class ImageAnswer(_Body):
    """What the model says of one image."""

    decision: Decision | None = Field(description="null where no class of the model means disease")
    probability: float = Field(description="calibrated, of disease; of the top class where no class means disease")
    class_name: str = Field(description="the most probable class")
    classes: dict[str, float] = Field(description="calibrated probability of each class")
    is_ood: bool | None = Field(
        None,
        description="the image looks unlike those the model learnt from, so decision and probability mean little; "
        "null where the model has no limit",
    )
    ood_score: float | None = Field(
        None, description="distance to the training images, which have about 1; null where it is not known"
    )
    image: ImageInfo
    remarks: tuple[str, ...] = Field(
        (), description="what was noticed about the image, e.g. that its depth was guessed"
    )
    explanation: Explanation | None = Field(None, description="where it was asked for")


class ModelInfo(_Body):
    """Which model answered. `sha256` covers weights, calibration, decision rule and preprocessing."""

    name: str
    version: str
    sha256: str
    architecture: str
    preprocessing_digest: str
    input_size: int
    turns: int = Field(1, description="of an image, whose logits are averaged: forward passes an image")
    task: str
    unit: Unit | None = Field(None, description="what its images show: one white cell, or a field; null: nobody said")
    classes: tuple[str, ...]
    positive_classes: tuple[str, ...]
    threshold: float
    review_band: tuple[float, float] | None
    review: ReviewRule | None = Field(None, description="what is promised of images outside review_band; null: nothing")
    ood: OodRule | None = Field(None, description="beyond which ood_score is_ood is said, and what that rests on")
    synthetic: bool = Field(description="trained on generated images")
    better_than_chance: bool | None = Field(
        None, description="shown on validation images; null: published by a version that did not ask"
    )


class CandidateBody(_Body):
    """The model on trial beside the one that answers. `verdict`: of the counts of all replicas, at this moment."""

    trial: str = Field(description="as the label of its metrics")
    name: str
    version: str
    sha256: str
    stage: Literal["loading", "shadow", "canary"] = Field(description="canary: it answers a share of requests")
    share: float
    since: str = Field(description="when every replica had it; before, when loading began; ISO 8601, UTC")
    rule: Rule | None = Field(None, description="null: people promote or drop it")
    verdict: Verdict | None = Field(None, description="null: no rule, or the counts cannot be had now")


class CandidateState(_Body):
    """What there is of candidates. All null: none was asked for."""

    now: CandidateBody | None = None
    refused: str | None = Field(default=None, description="why the candidate that is asked for is not on trial")
    last: Ended | None = Field(default=None, description="how the last trial ended")


class ModelBody(ModelInfo):
    """`against_chance` says what `better_than_chance` rests on; `against_chance_text` says it in a sentence."""

    against_chance: AgainstChance | None = None
    against_chance_text: str | None = None
    generation: int | None = Field(None, description="rises with every change; the same in all replicas")
    cause: str | None = Field(
        None, description="configuration, best.json, reload, rollback or promotion: of the last change"
    )
    since: str | None = Field(None, description="when it was agreed on, ISO 8601, UTC")
    refused: str | None = Field(None, description="why the model last asked for was not taken")
    follows: Follows | None = Field(None, description="the pointer of a registry that is followed; null: none")
    card: str | None = Field(None, description="model card as published, Markdown; null: none that is true of it")
    candidate: CandidateState = CandidateState()
    notice: str = NOTICE


class Switched(_Body):
    """What every replica answers with after an administrator's order. `has_changed`: it did not before."""

    has_changed: bool
    generation: int
    name: str
    version: str
    sha256: str


class Provenance(_Body):
    model: ModelInfo
    request_id: str
    elapsed_ms: float = Field(description="inside the replica, from the first byte to the answer")
    notice: str = NOTICE


class PredictionBody(Provenance, ImageAnswer):
    """Answer to one image sent as the body."""

    threshold: float


class FileAnswer(_Body):
    """One file of a multipart request: either `prediction` or `error`."""

    filename: str
    prediction: ImageAnswer | None = None
    error: ErrorDetail | None = None


class BatchBody(Provenance):
    """Answer to a multipart request, files in the order sent. `error` repeats the first when none was predicted."""

    results: list[FileAnswer]
    predicted: int
    failed: int
    error: ErrorDetail | None = None


class BatchFailure(BatchBody, ErrorBody):
    """Answer to a multipart request of which no file was predicted: the first file's error, and that of each."""

    error: ErrorDetail


class Ready(_Body):
    """The model answered a probe image. `refused` tells why a newer model was not taken."""

    status: Literal["ready"] = "ready"
    model: ModelInfo
    max_bytes: int
    max_pixels: int
    max_frames: int
    max_files: int
    max_request_bytes: int
    decode_timeout_s: float
    needs_api_key: bool
    refused: str | None = None
    keys_refused: str | None = Field(None, description="why the file of keys was not taken; the keys before it count")
    candidate: CandidateState = CandidateState()
    roles: dict[str, Literal["leukocyte", "blast", "beside"]] = Field(
        {},
        description="of each class, where all are kinds of cells: shares are of leukocytes and blasts; beside: on the "
        "slide, but no leukocyte",
    )
    notice: str = NOTICE


class Alive(_Body):
    status: Literal["alive"] = "alive"
