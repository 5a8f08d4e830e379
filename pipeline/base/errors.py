"""Every failure this project reports: one tree of exceptions for commands, one list of codes for images.

Exceptions carry a single message that says what is wrong, where, and what to do. Only the outermost layer
(`jobs.common`, `serving.errors`) turns them into an exit code or an HTTP status.
"""

from enum import StrEnum


class LeukorayError(Exception):
    """Base of all errors a user is expected to read. `exit_code` is what the command exits with."""

    exit_code = 1


class UsageError(LeukorayError):
    """A flag, a configuration value or their combination is wrong."""

    exit_code = 2


class InputError(LeukorayError):
    """A source, manifest, bundle or file that was named cannot be used."""

    exit_code = 3


class IncompleteError(LeukorayError):
    """The run ended, but not every image is accounted for, or too many were quarantined."""

    exit_code = 4


class TooDifferentError(IncompleteError):
    """Images look too different from those of training to trust a threshold, or cannot be told, which was to fail."""


class PlatformError(LeukorayError):
    """The machine, the cluster or the store cannot do what the job needs: cores, memory, port, disk, lock."""

    exit_code = 5


class NotBetterThanChanceError(LeukorayError):
    """A model was trained and kept, but nothing shows that it does more than guess, so it replaces no best one."""

    exit_code = 6


class NotPromotedError(LeukorayError):
    """A version does not meet, or cannot be shown to meet, the promotion protocol, so best.json stays."""

    exit_code = 7


class Stage(StrEnum):
    """Where on its way an image was rejected."""

    LIST = "list"
    FETCH = "fetch"
    DECODE = "decode"
    PREDICT = "predict"
    WRITE = "write"


_READ = (Stage.LIST, Stage.FETCH)
_ANYWHERE = (Stage.LIST, Stage.FETCH, Stage.DECODE)


class Code(StrEnum):
    """Stable reasons for a quarantined image, what each means and where it is met; batch and serving share them."""

    meaning: str
    stages: tuple[Stage, ...]

    def __new__(cls, value: str, meaning: str = "", stages: tuple[Stage, ...] = ()) -> "Code":
        member = str.__new__(cls, value)
        member._value_, member.meaning, member.stages = value, meaning, stages
        return member

    NOT_FOUND = "not_found", "Gone between listing and reading.", _READ
    ACCESS_DENIED = "access_denied", "The store or file system refuses to read it.", _READ
    IO_ERROR = "io_error", "The store failed after all retries.", _READ
    TIMEOUT = "timeout", "The store did not answer in time, after all retries.", _READ
    CHANGED = "changed", "The object was replaced after it was listed.", _READ
    EMPTY = "empty", "The file has no bytes.", (Stage.LIST, Stage.DECODE)
    TOO_LARGE = "too_large", "More bytes than the limit.", _ANYWHERE
    TOO_MANY_PIXELS = "too_many_pixels", "The header announces more pixels than the limit.", (Stage.DECODE,)
    TOO_MANY_FRAMES = "too_many_frames", "A film or a stack of more frames than the limit.", (Stage.DECODE,)
    UNSUPPORTED_FORMAT = (
        "unsupported_format",
        "No image, or one of a format or kind that is not read.",
        (Stage.LIST, Stage.DECODE),
    )
    TRUNCATED = "truncated", "Ends before its own header or markers say.", _ANYWHERE
    CORRUPT = "corrupt", "Complete, but damaged inside.", _ANYWHERE
    UNSAFE_PATH = "unsafe_path", "An archive member whose name tries to leave the archive.", (Stage.LIST,)
    CRASHED_DECODER = "crashed_decoder", "Decoding it, or the model on it, ended the process.", (Stage.DECODE,)
    PREDICT_FAILED = "predict_failed", "The model gave no finite probability.", (Stage.PREDICT,)


# A later run tries these again; the others are properties of the bytes and stay until the object changes.
TRANSIENT_CODES = frozenset({Code.NOT_FOUND, Code.ACCESS_DENIED, Code.IO_ERROR, Code.TIMEOUT, Code.CHANGED})


# Not the object's fault: where many images have one of these, the store is out.
OUTAGE_CODES = frozenset({Code.IO_ERROR, Code.TIMEOUT})


class ImageRejected(LeukorayError):
    """One image cannot be used. Batch turns it into a quarantine row, serving into an HTTP error."""

    exit_code = 4

    def __init__(self, code: Code, message: str, stage: Stage = Stage.DECODE, attempts: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.stage = stage
        self.attempts = attempts

    def __reduce__(self) -> tuple[type, tuple[Code, str, Stage, int]]:
        return ImageRejected, (self.code, self.message, self.stage, self.attempts)
