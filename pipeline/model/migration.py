"""A version of a model for today's pixel rules: the weights of another version, beside it, with the digest of now.

What the model was calibrated and measured on were other pixels, so whoever makes such a version says how much its
probabilities moved (`Change`), and the bundle keeps it.
"""

from dataclasses import asdict, dataclass, replace

from pipeline import __version__
from pipeline.model.bom import bill_of_materials
from pipeline.model.bundle import BOM, CARD, GOLDEN, INFO, SIGNATURE, Bundle, read_bundle, write_bundle
from pipeline.model.golden import Golden
from pipeline.model.predictor import Predictor
from pipeline.model.promotions import move, record, user_name
from pipeline.model.registry import ModelFolder
from pipeline.storage.filled_in import sealed, unsealed


@dataclass(frozen=True)
class Change:
    """What other pixel rules did to images that were scored before. Probabilities lie in 0..1."""

    images: int
    mean: float  # of the distance between the two probabilities of an image
    largest: float
    decisions: int  # that are others now

    def __str__(self) -> str:
        return (
            f"on {self.images} images scored before, probabilities move by {self.mean:.4f} on average, "
            f"{self.largest:.4f} at most; {self.decisions} decisions change"
        )


def under_todays_rules(bundle: Bundle) -> Bundle:
    """The same files with today's digest, as another version; not written. The bundle itself where it has them."""
    digest = bundle.info.pixels.digest()
    if bundle.info.preprocessing_digest == digest:
        return bundle
    changes = {"preprocessing_digest": digest, "version": f"{bundle.info.version}-px{digest[:8]}"}
    return replace(bundle, info=bundle.info.model_copy(update=changes))


def published(bundle: Bundle) -> Bundle | None:
    """The version for today's rules that lies beside a bundle, None where there is none."""
    uri = _beside(bundle)
    is_there = bundle.stores.of(uri).head(f"{uri}/{INFO}") is not None
    return read_bundle(uri, bundle.stores) if is_there else None


def publish(bundle: Bundle, change: Change) -> Bundle:
    """Write the version for today's rules beside a bundle, which stays as it is."""
    new, store = under_todays_rules(bundle), bundle.stores.of(bundle.uri)
    names = [item.uri.removeprefix(bundle.uri + "/") for item in store.walk(bundle.uri)]
    files = {name: bundle.file(name) for name in names if name not in (INFO, SIGNATURE)}  # nobody has signed this one
    record = {
        "from_version": bundle.info.version,
        "from_preprocessing_digest": bundle.info.preprocessing_digest,
        **asdict(change),
        "leukoray": __version__,
    }
    note = (
        f"\n## Pixel rules\n\nThe weights of version {bundle.info.version} under other rules from bytes to pixels than "
        f"those that it was trained, calibrated and measured under (`leukoray migrate`): {change}.\n"
    )
    card = files.get(CARD, b"").decode(errors="replace")
    whole = unsealed(card)
    files[CARD] = (card + note if whole is None else sealed(whole + note)).encode()  # an edited one stays told as such
    info = new.info.model_copy(update={"migrated": record})
    if bundle.info.golden_sha256:  # the same images are other pixels now
        golden = Golden.unpacked(files[GOLDEN], f"{bundle.uri}: {GOLDEN}")
        files[GOLDEN] = Predictor(replace(new, held=files), engine="onnx").golden(golden.images).packed()
    files[BOM] = bill_of_materials(info, files)
    return write_bundle(_beside(bundle), info, files, bundle.stores)


def move_pointer(old: Bundle, new: Bundle) -> bool:
    """Point best.json to `new` where it names `old`, under its lock, and archive it; whether it did.

    Raises PlatformError where another run holds the lock.
    """
    folder = ModelFolder(old.uri.rpartition("/")[0], old.stores)
    if not _names(folder, old):
        return False
    with folder.moving() as check_lock:
        if not _names(folder, old):  # moved while this one waited
            return False
        check_lock()
        move(folder, new, record("pointed", new, old.info.version, user_name(), why="leukoray migrate"))
    return True


def _names(folder: ModelFolder, bundle: Bundle) -> bool:
    pointer = folder.pointer()
    return pointer is not None and pointer.version == bundle.info.version


def _beside(bundle: Bundle) -> str:
    return f"{bundle.uri.rpartition('/')[0]}/{under_todays_rules(bundle).info.version}"
