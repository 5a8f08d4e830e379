"""PyArrow's view of a store, with the settings that boto3 uses."""

from typing import TYPE_CHECKING, Any

from pipeline.storage.stores import Stores
from pipeline.storage.uris import is_s3

if TYPE_CHECKING:
    import pyarrow.fs


def arrow_filesystem(uri: str, stores: Stores = Stores()) -> tuple["pyarrow.fs.FileSystem", str]:
    """(filesystem, path) for PyArrow and Ray Data, with the settings that boto3 uses.

    The endpoint is passed explicitly: PyArrow's constructor ignores AWS_ENDPOINT_URL, its from_uri does not.
    """
    import pyarrow.fs

    if not is_s3(uri):
        return pyarrow.fs.LocalFileSystem(), uri
    settings = stores.s3
    scheme, _, host = (settings.endpoint or "").rpartition("://")
    options: dict[str, Any] = {"endpoint_override": host, "scheme": scheme or "https"} if host else {}
    filesystem = pyarrow.fs.S3FileSystem(
        region=settings.region,
        anonymous=settings.anonymous,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=settings.max_attempts),
        **options,
    )
    return filesystem, uri.removeprefix("s3://")
