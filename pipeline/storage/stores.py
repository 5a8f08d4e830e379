"""Which store holds a URI: the one seam between the library and disks, S3, and whatever a test puts in their place."""

from dataclasses import dataclass, field

from pipeline.base.errors import Code, InputError
from pipeline.storage.local import LocalStore
from pipeline.storage.types import S3Settings, Store, StoreError
from pipeline.storage.uris import is_hidden, is_s3


@dataclass(frozen=True)
class Stores:
    """Gives the store of every URI. Travels to other processes; S3 clients are shared within one.

    `mounts`: (beginning of URIs, the store that holds them), before the disk and S3; the longest that fits wins.
    """

    s3: S3Settings = field(default_factory=S3Settings)
    mounts: tuple[tuple[str, Store], ...] = ()

    def of(self, uri: str) -> Store:
        """The store that holds `uri`. Raises InputError for a pseudonym whose key was not given."""
        mounted = [(prefix, store) for prefix, store in self.mounts if uri.startswith(prefix)]
        if mounted:
            return max(mounted, key=lambda item: len(item[0]))[1]
        if is_hidden(uri):
            raise InputError(f"{uri[:40]}…: a pseudonym; give --pseudonymize the key file that it was made with")
        if not is_s3(uri):
            return LocalStore()
        from pipeline.storage.s3 import s3_store  # boto3 takes 0.4 s to import: only those who need S3 pay

        return s3_store(self.s3)

    def read_if_there(self, uri: str) -> bytes | None:
        """The bytes of an object, None where there is none. Raises StoreError when the store does not say."""
        try:
            return self.of(uri).read(uri).data
        except StoreError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
