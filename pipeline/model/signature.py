"""Signed bundles: `model.sig`, by a plain key and without network, in the format of sigstore's model-signing.

It covers every file of a bundle that decides an answer or says what the bundle is made of, by SHA-256. The card and
report/ are for people, who edit them, and for `leukoray evaluate`, which adds to them: they are not covered.
OpenSSF Model Signing 1.0 (DSSE envelope, in-toto statement); keys are ECDSA's on P-256, P-384 or P-521.
"""

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import InputError, PlatformError
from pipeline.base.text import first_line
from pipeline.model.bom import bill_of_materials
from pipeline.model.bundle import BOM, CARD, INFO, SIGNATURE, Bundle, read_info
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join, local_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

EXTRA = "signing"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_REPORT = "report"
_FREE = re.compile(rf"{re.escape(SIGNATURE)}|MODEL_CARD(\.\d+)?\.md|{_REPORT}/.*", re.DOTALL)
_LONGEST = 1 << 20  # bytes of a signature
_AGAIN = "copy the bundle again from where it was published"


def is_covered(name: str) -> bool:
    """Whether a file of a bundle, by its name there, is what a signature speaks of."""
    return _FREE.fullmatch(name) is None


def is_signed(bundle: Bundle) -> bool:
    """Whether a signature lies there, by whomever."""
    path = join(bundle.uri, SIGNATURE)
    return bundle.stores.of(path).head(path) is not None


# ---- keys ------------------------------------------------------------------------------------------------------------


def public_key(given: str) -> str:
    """The PEM text of a public key, given as such or as the file that holds it.

    Raises InputError where it is none of a curve that signatures are made with.
    """
    if given.lstrip().startswith("-----BEGIN"):
        fingerprint(given)
        return given
    path = local_path(absolute(given))
    try:
        text = Path(path).read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no PEM"
        raise InputError(f"{path}: cannot be read as a public key ({why})") from error
    fingerprint(text, path)
    return text


def fingerprint(key: str, named: str = "the public key") -> str:
    """SHA-256, hex, of a public key in PEM: what a signature calls the key that made it. Raises InputError."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if "PRIVATE KEY" in key:
        raise InputError(f"{named}: is a private key; give the public one: openssl pkey -in KEY -pubout")
    try:
        found = serialization.load_pem_public_key(key.encode())
    except Exception as error:  # cryptography raises several kinds of its own on what is no key
        raise InputError(f"{named}: is no public key in PEM ({first_line(error)})") from error
    if not isinstance(found, EllipticCurvePublicKey) or found.curve.name not in _CURVES:
        raise InputError(f"{named}: signatures are by keys on P-256, P-384 or P-521; make one as docs/supply-chain.md")
    return _digest(_pem(found))


def _pem(key: "EllipticCurvePublicKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def check_private_key(path: str, password: bytes | None = None) -> bool:
    """Whether a password is needed that was not given. Raises InputError where it is no key that can sign."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    named = f"--sign {path}"
    try:
        found = serialization.load_pem_private_key(Path(path).read_bytes(), password)
    except OSError as error:
        raise InputError(f"{named}: cannot be read ({error.strerror}); name the PEM file of a private key") from error
    except TypeError:  # of a key that is encrypted, or is not
        if password is not None:
            raise InputError(f"{named}: is not encrypted, yet a password was given") from None
        return True
    except Exception as error:  # cryptography raises several kinds of its own on what is no key
        why = "wrong password, or damaged" if password is not None else first_line(error)
        raise InputError(f"{named}: is no private key in PEM ({why}); see docs/supply-chain.md") from None
    if not isinstance(found, EllipticCurvePrivateKey) or found.curve.name not in _CURVES:
        raise InputError(f"{named}: a key on P-256, P-384 or P-521 is needed; make one as docs/supply-chain.md")
    return False


def require() -> None:
    """Raise PlatformError where the packages are missing that signatures need."""
    try:
        import model_signing.signing  # noqa: F401
    except ImportError as error:
        raise PlatformError(f"signatures need more packages ({error}): pip install 'leukoray[{EXTRA}]'") from error


# ---- signing ---------------------------------------------------------------------------------------------------------


def sign(bundle: Bundle, key: str, password: bytes | None = None) -> str:
    """Put `model.sig` into the bundle, by the private key in the PEM file `key`; gives the file's URI.

    Raises InputError for a bundle that is not whole, PlatformError where packages are missing.
    """
    require()
    from model_signing import signing

    bundle.verify()
    if bundle.stores.read_if_there(join(bundle.uri, BOM)) is None:  # of a version that wrote none
        bundle.write(BOM, bill_of_materials(bundle.info, {name: bundle.file(name) for name in _names(bundle)}))
    files = {name: _read(bundle, name) for name in _names(bundle)}
    with tempfile.TemporaryDirectory(prefix="leukoray-") as folder:
        model, made = _laid_out(folder, bundle, files), Path(folder, SIGNATURE)
        signer = signing.Config().use_elliptic_key_signer(private_key=key, password=password)
        signer.set_hashing_config(_hashing()).sign(model, made)
        bundle.write(SIGNATURE, made.read_bytes())
    return join(bundle.uri, SIGNATURE)


def _hashing() -> Any:
    """What of a bundle's folder stock tools leave out as we do."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[CARD, _REPORT, SIGNATURE], ignore_git_paths=False)


def _names(bundle: Bundle) -> list[str]:
    """Of the files that are covered."""
    try:
        found = [item.uri.removeprefix(bundle.uri + "/") for item in bundle.stores.of(bundle.uri).walk(bundle.uri)]
    except StoreError as error:
        raise error.refusal() from error
    return sorted(name for name in found if is_covered(name))


def _read(bundle: Bundle, name: str) -> bytes:
    try:
        return bundle.stores.of(bundle.uri).read(join(bundle.uri, name)).data
    except StoreError as error:
        raise error.refusal(f"bundle {bundle.uri}: {name} cannot be read ({error})") from error


def _laid_out(folder: str, bundle: Bundle, files: Mapping[str, bytes]) -> Path:
    """The covered files as they were read, in a folder named as the version."""
    model = Path(folder, bundle.uri.rpartition("/")[2])
    for name, data in files.items():
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return model


# ---- checking --------------------------------------------------------------------------------------------------------


def verified(bundle: Bundle, key: str) -> Bundle:
    """The same bundle as it was signed with the private half of `key`, a public key in PEM, its files held.

    What is checked is what is held: nothing is read again from a store that may have changed. Raises InputError that
    names the file where it is not signed, by another key, or a covered file is other, missing or new.
    """
    envelope = _Envelope.of(bundle)
    require()
    own = fingerprint(key)
    if envelope.key != own:
        raise InputError(
            f"bundle {bundle.uri}: was signed with another key ({envelope.key[:12]}, --verify is {own[:12]}); "
            "ask whoever published it for their public key"
        )
    _refuse_other_names(bundle, envelope.signed, _names(bundle))
    files = {name: _read(bundle, name) for name in envelope.signed}
    why_not = _why_not(bundle, key, envelope, files)
    if changed := sorted(name for name, data in files.items() if _digest(data) != envelope.signed[name]):
        raise InputError(f"bundle {bundle.uri}: {', '.join(changed)} {_is(changed)} not what was signed; {_AGAIN}")
    if why_not:
        raise InputError(f"bundle {bundle.uri}: {SIGNATURE} is not valid ({why_not}); {_AGAIN}")
    info = read_info(bundle.uri, files[INFO])
    held = {name: data for name, data in files.items() if name != INFO}
    return replace(bundle, info=info, held=held, signed_by=own).verify()


class _Envelope:
    """What a `model.sig` says, not yet whether that is true. `raw` holds this alone, so nobody reads it otherwise."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        material, envelope = found["verificationMaterial"], found["dsseEnvelope"]
        self.key = str(material["publicKey"]["hint"])
        statement = json.loads(base64.b64decode(envelope["payload"], validate=True))
        self.signed: dict[str, str] = {}
        for item in statement["predicate"]["resources"]:
            if item["algorithm"] != "sha256" or not _is_inside(item["name"]):
                raise ValueError(f"{item['name']}: by {item['algorithm']}")
            self.signed[item["name"]] = item["digest"]
        self.raw = json.dumps(
            {
                "mediaType": found["mediaType"],
                "verificationMaterial": {"publicKey": {"hint": self.key}, "tlogEntries": []},
                "dsseEnvelope": {name: envelope[name] for name in ("payload", "payloadType", "signatures")},
            }
        ).encode()

    @classmethod
    def of(cls, bundle: Bundle) -> "_Envelope":
        path = join(bundle.uri, SIGNATURE)
        try:
            found = bundle.stores.of(path).head(path)
            data = b"" if found is None or found.size > _LONGEST else bundle.stores.of(path).read(path).data
        except StoreError as error:
            raise error.refusal() from error
        if found is None:
            raise InputError(
                f"bundle {bundle.uri}: is not signed ({SIGNATURE} is missing), and --verify takes signed ones only; "
                "`leukoray promote BUNDLE --sign KEY` signs it"
            )
        try:
            return cls(json.loads(data))
        except Exception as error:  # whatever a file that is no signature leads to
            raise InputError(f"{path}: cannot be read as a signature ({first_line(error)}); {_AGAIN}") from error


def _is_inside(name: str) -> bool:
    """Whether a name from a file leads nowhere but into the bundle."""
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _refuse_other_names(bundle: Bundle, signed: Mapping[str, str], there: list[str]) -> None:
    needed = {INFO, *bundle.info.digests}
    if unsigned := sorted((needed | set(there)) - set(signed)):
        raise InputError(
            f"bundle {bundle.uri}: {', '.join(unsigned)} {_is(unsigned)} not covered by the signature: added since, or "
            "never signed; remove what is new, or sign again"
        )
    if missing := sorted(set(signed) - set(there)):
        raise InputError(f"bundle {bundle.uri}: {', '.join(missing)} {_is(missing)} missing, though signed; {_AGAIN}")


def _why_not(bundle: Bundle, key: str, envelope: _Envelope, files: Mapping[str, bytes]) -> str:
    """Why the signature is not that of `files` by `key`, as model-signing finds; empty where it is."""
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    with tempfile.TemporaryDirectory(prefix="leukoray-") as folder:
        model, made, public = _laid_out(folder, bundle, files), Path(folder, SIGNATURE), Path(folder, "public.pem")
        made.write_bytes(envelope.raw)
        public.write_text(key)
        try:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=public)
            verifier.set_hashing_config(_hashing()).verify(model, made)
        except InvalidSignature:
            raise InputError(f"bundle {bundle.uri}: {SIGNATURE} was altered since it was made; {_AGAIN}") from None
        except Exception as error:  # it reads what a stranger may have written: whatever it raises is a refusal
            return first_line(error) or type(error).__name__
    return ""


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
