"""Every knob of the service in one checked model: the `args` of a Serve config are its fields.

Keys never lie in a configuration: it holds their SHA-256 only, taken from $LEUKORAY_API_KEYS and $LEUKORAY_ADMIN_KEYS
where `build` runs.
"""

import hashlib
import os
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.base.errors import UsageError
from pipeline.base.text import problems
from pipeline.images.load import Limits
from pipeline.model.signature import public_key
from pipeline.storage.stores import Stores
from pipeline.storage.types import S3Settings
from pipeline.storage.uris import absolute
from serving.agreed import CandidateWish

API_KEYS_VARIABLE = "LEUKORAY_API_KEYS"
ADMIN_KEYS_VARIABLE = "LEUKORAY_ADMIN_KEYS"
_DAY_S = 86_400.0  # HAProxy's clocks hold 24 of them
_ORIGIN = re.compile(r"https?://[a-z0-9.\-\[\]:]+")  # RFC 6454, as browsers send it: no path, no slash behind


class ServingSettings(BaseModel):
    """Settings of one application. Per-replica limits multiply with the number of replicas."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    model: str = Field(description="bundle folder or registry, local path or s3:// URI")
    verify: str | None = Field(
        None, description="public key that every model must be signed with: a PEM file where this is read, or its text"
    )
    s3_endpoint: str | None = Field(None, description="S3 endpoint URL (default: $AWS_ENDPOINT_URL[_S3])")
    s3_region: str | None = Field(None, description="S3 region (default: $AWS_REGION, else us-east-1)")
    s3_anonymous: bool = Field(False, description="read public buckets without credentials")
    s3_requester_pays: bool = Field(False, description="accept the transfer cost of a requester-pays bucket")

    max_bytes: int = Field(Limits.max_bytes, ge=1, description="encoded bytes of one image")
    max_pixels: int = Field(36_000_000, ge=1, description="pixels its header may announce; fewer than in scoring")
    max_frames: int = Field(Limits.max_frames, ge=1, description="frames of an animation or pages of a file")
    max_files: int = Field(32, ge=1, description="images in one multipart request")
    max_request_bytes: int = Field(128 * 1024 * 1024, ge=1, description="bytes of one multipart request")

    max_in_flight: int = Field(128, ge=1, description="requests a replica works on; more get 503 + Retry-After")
    max_in_flight_bytes: int = Field(384 * 1024 * 1024, ge=1, description="request bytes a replica holds")
    max_receiving: int = Field(256, ge=1, description="bodies that arrive at a time; the slowest is ended for another")
    min_body_rate: int = Field(8192, ge=1, description="bytes a second that a body keeps up after 5 s, else 408")
    decode_timeout_s: float = Field(
        20.0, gt=0, le=_DAY_S, description="for a large image to be decoded, else it is refused"
    )
    max_queued_requests: int = Field(256, ge=1, description="requests Serve's proxy holds for busy replicas")
    retry_after_s: int = Field(1, ge=1, description="what a refused client is told to wait")
    request_timeout_s: float = Field(
        30.0, gt=0, le=_DAY_S, description="from the first byte to the answer, else 408 or 504"
    )

    max_batch_size: int = Field(16, ge=1, description="images in one forward pass")
    batch_wait_s: float = Field(0.002, ge=0, description="how long a lone image waits for company")
    decode_threads: int = Field(2, ge=1, description="images decoded at the same time")
    threads: int = Field(1, ge=1, description="ONNX Runtime threads of one forward pass")

    min_replicas: int = Field(1, ge=1, description="processes that answer, at least")
    max_replicas: int = Field(1, ge=1, description="processes that answer, at most")
    target_ongoing_requests: float = Field(8.0, gt=0, description="load at which another replica is started")
    cpus_per_replica: float = Field(0.5, gt=0, description="Ray CPUs a replica holds")
    gpus_per_replica: float = Field(0.0, ge=0, description="GPUs a replica holds; above 0 it predicts with PyTorch")

    api_key_sha256: tuple[str, ...] = Field((), description="SHA-256, hex, of accepted keys; empty: open to all")

    admin_key_sha256: tuple[str, ...] = Field(
        (), description="SHA-256, hex, of keys that /admin accepts; empty: there is no /admin"
    )
    keys_file: str | None = Field(
        None, description="file of keys with names and limits on every node, read again when it changes"
    )
    audit_log: str | None = Field(
        None, description="folder for a line an image that was answered; what cannot be recorded gets no answer"
    )
    follow_s: float = Field(30.0, ge=0, description="how often best.json of a registry is looked at; 0: never")

    metrics_need_key: bool = Field(False, description="/metrics asks for a key as /predict does")

    cors_origins: tuple[str, ...] = Field(
        (), description="origins whose pages may ask from a browser, as https://lab.example; '*': all; empty: none"
    )

    @field_validator("cors_origins")
    @classmethod
    def _is_origin(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; expected scheme://host or scheme://host:port, or '*'")
        return origins

    @field_validator("api_key_sha256", "admin_key_sha256")
    @classmethod
    def _is_sha256(cls, digests: tuple[str, ...]) -> tuple[str, ...]:
        for digest in digests:
            if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
                raise ValueError("expected SHA-256 digests of 64 lower-case hex digits, not the keys themselves")
        return digests

    @model_validator(mode="after")
    def _fits(self) -> "ServingSettings":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        if max(self.max_bytes, self.max_request_bytes) > self.max_in_flight_bytes:
            raise ValueError("max_in_flight_bytes must hold one request of max_bytes and of max_request_bytes")
        if self.batch_wait_s >= self.request_timeout_s:
            raise ValueError(
                f"batch_wait_s {self.batch_wait_s:g} leaves nothing of request_timeout_s {self.request_timeout_s:g}: "
                "seconds, in which a lone image waits for company"
            )
        return self

    @property
    def limits(self) -> Limits:
        return Limits(self.max_bytes, self.max_pixels, self.max_frames)

    @property
    def stores(self) -> Stores:
        return Stores(S3Settings.from_config(self))

    @property
    def asks_key(self) -> bool:
        """Whether requests for predictions need a key."""
        return bool(self.api_key_sha256 or self.keys_file)

    @property
    def may_have_admins(self) -> bool:
        """Whether there may be an administrator's key."""
        return bool(self.admin_key_sha256 or self.keys_file)

    @property
    def engine(self) -> Literal["onnx", "torch"]:
        """A replica without a GPU of its own never imports torch, whatever the machine has."""
        return "torch" if self.gpus_per_replica > 0 else "onnx"

    def deployment_options(self) -> dict[str, Any]:
        """For `Deployment.options`. A Serve config's `deployments:` section still overrides them."""
        return {
            # Slack lets the replica refuse in JSON by itself, and answer health checks while it is full.
            "max_ongoing_requests": self.max_receiving + 2 * self.max_in_flight + 16,
            "max_queued_requests": self.max_queued_requests,
            "backpressure_config": {"status_code": 503, "retry_after_s": float(self.retry_after_s)},
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing_requests,
            },
            "ray_actor_options": {"num_cpus": self.cpus_per_replica, "num_gpus": self.gpus_per_replica},
        }


def proxy_timeout_s(request_timeout_s: float) -> float:
    """When Serve's proxy gives up: it only catches what is left, the replica answers its own timeout in JSON."""
    return request_timeout_s + 15.0


class ModelChoice(BaseModel):
    """The `user_config` of the deployment: which model, at which operating point. Empty: as in `args`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str | None = Field(
        default=None, min_length=1, description="bundle folder or registry, local path or s3:// URI"
    )
    threshold: float | None = Field(default=None, ge=0, le=1, description="instead of the bundle's own")
    candidate: CandidateWish | None = Field(default=None, description="another model, on trial beside it")


def read_choice(user_config: dict[str, Any] | None) -> ModelChoice:
    """Raises UsageError naming the key."""
    try:
        return ModelChoice(**(user_config or {}))
    except (ValidationError, TypeError) as error:
        found = problems(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"user_config: {found}") from error


def read_settings(args: dict[str, Any]) -> ServingSettings:
    """Check the `args` of a Serve config; hash the keys of the environment into it.

    Raises UsageError naming the argument.
    """
    try:
        settings = ServingSettings(**args)
    except ValidationError as error:
        raise UsageError(f"serving: {problems(error, 'args')}; see infra/serve_config.yaml") from error
    return settings.model_copy(
        update={
            "model": absolute(settings.model),
            "verify": public_key(settings.verify) if settings.verify is not None else None,  # replicas lack the file
            "keys_file": absolute(settings.keys_file) if settings.keys_file is not None else None,
            "audit_log": absolute(settings.audit_log) if settings.audit_log is not None else None,
            "s3_endpoint": settings.stores.s3.endpoint,  # as seen here: replicas elsewhere have another environment
            "s3_region": settings.stores.s3.region,
            "api_key_sha256": _digests(API_KEYS_VARIABLE, settings.api_key_sha256),
            "admin_key_sha256": _digests(ADMIN_KEYS_VARIABLE, settings.admin_key_sha256),
        }
    )


def _digests(variable: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Of the keys in a variable of the environment, and those that were given.

    Raises UsageError, which quotes none, where keys are meant to be given and no client could send one.
    """
    said = os.environ.get(variable, "")
    keys = {key.strip() for key in said.split(",")} - {""}
    if said and not keys:
        raise UsageError(
            f"${variable}: is set and holds no key, so nobody would be asked for one; unset it, or give keys"
        )
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise UsageError(f"${variable}: a key holds characters that no header carries; ASCII alone, parted by commas")
    return tuple(sorted({hashlib.sha256(key.encode()).hexdigest() for key in keys} | set(given)))
