"""Our stores as the files of pyiceberg (https://py.iceberg.apache.org/configuration/#fileio), under `py-io-impl`.

PyArrow's S3 client, which pyiceberg would take, fails on Ceph's gateway and knows nothing of our settings.
"""

import io
import json
from dataclasses import asdict

from pyiceberg.io import PY_IO_IMPL, FileIO, InputFile, OutputFile
from pyiceberg.typedef import EMPTY_DICT, Properties

from pipeline.base.errors import Code
from pipeline.storage.stores import Stores
from pipeline.storage.types import Conditions, S3Settings, Store, StoreError

_SETTINGS = "leukoray.s3"  # catalogs hand over properties, which are strings


def io_properties(settings: S3Settings) -> dict[str, str]:
    """Properties of a catalog whose files are to be ours."""
    return {PY_IO_IMPL: f"{__name__}.StoreFiles", _SETTINGS: json.dumps(asdict(settings))}


class StoreFiles(FileIO):
    """Files by their URIs. Failures are StoreErrors, but for what is not there: FileNotFoundError."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        given = json.loads(properties[_SETTINGS])
        self._stores = Stores(S3Settings(**given | {"conditions": Conditions(given["conditions"])}))

    def new_input(self, location: str) -> InputFile:
        return _File(location, self._stores.of(location))

    def new_output(self, location: str) -> OutputFile:
        return _File(location, self._stores.of(location))

    def delete(self, location: str | InputFile | OutputFile) -> None:
        uri = location if isinstance(location, str) else location.location
        self._stores.of(uri).delete(uri)


class _File(InputFile, OutputFile):
    def __init__(self, location: str, store: Store) -> None:
        super().__init__(location)
        self._store = store

    def __len__(self) -> int:
        found = self._store.head(self.location)
        if found is None:
            raise FileNotFoundError(self.location)
        return found.size

    def exists(self) -> bool:
        return self._store.head(self.location) is not None

    def open(self, seekable: bool = True) -> io.BufferedReader:
        try:
            return self._store.open(self.location)
        except StoreError as error:
            if error.code is Code.NOT_FOUND:
                raise FileNotFoundError(self.location) from error
            raise

    def create(self, overwrite: bool = False) -> "_Upload":
        if not overwrite and self.exists():
            raise FileExistsError(self.location)
        return _Upload(self.location, self._store)

    def to_input_file(self) -> InputFile:
        return self


class _Upload(io.BytesIO):
    """Appears whole when it is closed."""

    def __init__(self, location: str, store: Store) -> None:
        super().__init__()
        self._location, self._store = location, store

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._store.write(self._location, data)
