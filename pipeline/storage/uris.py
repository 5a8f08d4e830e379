"""What a URI names: a path of this machine, or an object on S3."""

import os
from urllib.parse import unquote_to_bytes

from pipeline.base.errors import UsageError


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """Local paths made absolute against the caller's folder; other machines would resolve them elsewhere."""
    if not uri.strip():
        raise UsageError("an empty path was given (an unset variable?); name a folder or s3:// URI")
    if "\0" in uri:
        raise UsageError(f"{uri!r}: a path cannot hold a zero byte")
    if is_s3(uri):
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise UsageError(f"{uri}: only local paths and s3:// URIs can be read; copy the data there first")
    if uri.startswith("file://"):
        path = local_path(uri)
        return path if _is_utf8(path) else uri
    return os.path.abspath(os.path.expanduser(uri))


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def local_path(uri: str) -> str:
    """The path behind a local URI; `file://` URIs carry names that are no UTF-8, percent-escaped."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))) if uri.startswith("file://") else uri
