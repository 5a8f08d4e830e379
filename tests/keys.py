"""Key pairs for signatures, as openssl makes them: two PEM files each."""

from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


class Keys(NamedTuple):
    private: str
    public: str

    @property
    def pem(self) -> str:
        return Path(self.public).read_text()


def make_keys(folder: Path, name: str = "release", *, password: bytes | None = None) -> Keys:
    """On P-256, `NAME.key` and `NAME.pub`."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    encryption: KeySerializationEncryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return Keys(str(private), str(public))
