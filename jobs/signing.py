"""`--sign KEY` of `leukoray promote`: the private key, its password where it has one, and the signature."""

import getpass
import sys

from pipeline.base.errors import InputError
from pipeline.model.bundle import Bundle
from pipeline.model.signature import check_private_key, require, sign
from pipeline.storage.uris import absolute, local_path


class Signer:
    """Looked at before the work: a key that cannot sign, or packages that are missing, end the job at once."""

    def __init__(self, key: str) -> None:
        require()
        self._key = local_path(absolute(key))
        self._password: bytes | None = None
        if not check_private_key(self._key):
            return
        if not sys.stdin.isatty():
            raise InputError(
                f"--sign {key}: has a password, and there is no terminal to ask for it; sign from one, or give a key "
                "without a password"
            )
        self._password = getpass.getpass(f"password of {key}: ").encode()
        check_private_key(self._key, self._password)

    def sign(self, bundle: Bundle) -> None:
        """Put the signature into the bundle and say so. Raises InputError where it is not whole."""
        print(f"signed: {sign(bundle, self._key, self._password)}", flush=True)
