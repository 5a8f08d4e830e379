"""Which store holds a URI."""

from pipeline.base.errors import Code
from pipeline.storage.local import LocalStore
from pipeline.storage.types import S3Settings, Store, StoreError
from pipeline.storage.uris import is_s3


def store_for(uri: str, s3: S3Settings | None = None) -> Store:
    """The store that holds `uri`. S3 clients are shared within a process."""
    if not is_s3(uri):
        return LocalStore()
    from pipeline.storage.s3 import s3_store  # boto3 takes 0.4 s to import: only those who need S3 pay

    return s3_store(s3 or S3Settings())


def read_if_there(uri: str, s3: S3Settings | None = None) -> bytes | None:
    """The bytes of an object, None where there is none. Raises StoreError when the store does not say."""
    try:
        return store_for(uri, s3).read(uri).data
    except StoreError as error:
        if error.code is Code.NOT_FOUND:
            return None
        raise
