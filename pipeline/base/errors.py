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


class PlatformError(LeukorayError):
    """The machine, the cluster or the store cannot do what the job needs: cores, memory, port, disk, lock."""

    exit_code = 5


class Stage(StrEnum):
    """Where on its way an image was rejected."""

    LIST = "list"
    FETCH = "fetch"
    DECODE = "decode"
    PREDICT = "predict"
    WRITE = "write"


class Code(StrEnum):
    """Stable reasons for a quarantined image; batch and serving share them."""

    NOT_FOUND = "not_found"  # gone between listing and reading
    ACCESS_DENIED = "access_denied"  # the store or the file system refuses to read it
    IO_ERROR = "io_error"  # the store failed after all retries
    TIMEOUT = "timeout"  # the store did not answer within the limit, after all retries
    CHANGED = "changed"  # an archive was replaced after it was listed, so its offsets mean nothing now
    EMPTY = "empty"  # zero bytes
    TOO_LARGE = "too_large"  # more bytes than the limit
    TOO_MANY_PIXELS = "too_many_pixels"  # header announces more pixels than the limit
    TOO_MANY_FRAMES = "too_many_frames"  # more frames or pages than the limit
    UNSUPPORTED_FORMAT = "unsupported_format"  # not one of the image formats we read
    TRUNCATED = "truncated"  # ends before its own header or markers say
    CORRUPT = "corrupt"  # complete, but the decoder finds damage
    UNSAFE_PATH = "unsafe_path"  # an archive member that tries to leave its archive
    CRASHED_DECODER = "crashed_decoder"  # decoding it kills the process
    PREDICT_FAILED = "predict_failed"  # the model gave no finite probability


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
