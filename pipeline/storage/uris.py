"""What a URI names: a path of this machine, or an object on S3."""

import os
import posixpath
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from pipeline.base.errors import UsageError

_S3 = "s3://"
_HIDDEN = "hidden-"  # what pseudonyms begin with


def is_s3(uri: str) -> bool:
    return uri.startswith(_S3)


def is_hidden(uri: str) -> bool:
    """Whether this is the pseudonym of a path."""
    return uri.startswith(_HIDDEN)


def absolute(uri: str) -> str:
    """Local paths made absolute against the caller's folder; other machines would resolve them elsewhere."""
    if not uri.strip():
        raise UsageError("an empty path was given (an unset variable?); name a folder or s3:// URI")
    if "\0" in uri:
        raise UsageError(f"{uri!r}: a path cannot hold a zero byte")
    if is_s3(uri) or is_hidden(uri):
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


def resolve(folder: str, path: str) -> str:
    """`path` as seen from `folder`, with `..` and doubled slashes undone."""
    scheme = _S3 if is_s3(folder) else ""
    return scheme + posixpath.normpath(join(folder.removeprefix(scheme), path))


def common_folder(folders: Sequence[str]) -> str:
    """The innermost folder that holds all of these; empty where none does."""
    if len({is_s3(folder) for folder in folders}) > 1:
        return ""
    scheme = _S3 if is_s3(folders[0]) else ""
    return scheme + posixpath.commonpath([folder.removeprefix(scheme) for folder in folders])


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def local_path(uri: str) -> str:
    """The path behind a local URI; `file://` URIs carry names that are no UTF-8, percent-escaped."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))) if uri.startswith("file://") else uri


def readable_path(uri: str) -> str:
    """As `local_path`, as text: bytes that are no UTF-8 as U+FFFD. What filters and layouts look at."""
    if not uri.startswith("file://"):
        return uri
    return local_path(uri).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def short_name(path: str) -> str:
    """Folder and name at the end of a path, for a person; of a hidden folder, which says nothing, the name alone."""
    parts = path.rsplit("/", 2)
    return "/".join(parts[-1:] if is_hidden(parts[0]) else parts[-2:])
