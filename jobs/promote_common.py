"""What both ways of `leukoray promote` share, by hand and by a protocol: options, the folder, the checked version."""

from pydantic import Field, model_validator

from jobs.common import writing_stores
from jobs.config import NamingConfig, positional
from pipeline.base.errors import InputError
from pipeline.model.bundle import Bundle, read_bundle
from pipeline.model.predictor import Predictor
from pipeline.model.promotions import is_version_name, user_name
from pipeline.model.registry import ModelFolder
from pipeline.storage.uris import join

_OF_PROTOCOL = {"out", "workers", "cpus_per_worker", "gpus_per_worker", "mistakes"}
_OF_MOVES = {"why", "by", "single_writer"}


class PromoteConfig(NamingConfig):
    """Point best.json, which scoring and serving follow, to another version of a model."""

    model: str = positional(description="a model's folder in the registry, REGISTRY/NAME")
    version: str | None = Field(None, description="version to point to; its files are checked first")
    protocol: str | None = Field(None, description="YAML file of what the version must reach before best.json moves")
    force: bool = Field(False, description="move best.json though the protocol is not met; needs --why")
    sign: str | None = Field(
        None, description="PEM file of a private key: sign the version; without --version MODEL is a bundle's folder"
    )
    rollback: bool = Field(False, description="point best.json to the version that was the best before")
    why: str = Field("", description="reason, for the archive of promotions")
    by: str | None = Field(None, description="who promotes, for the archive (default: the user's name)")
    out: str = Field("promotion", description="folder for comparison.html, comparison.json and study/ of a protocol")
    list: bool = Field(False, description="list the versions with their validation metrics, and the last promotions")
    workers: int | None = Field(None, ge=1, description="predictors side by side (default: one a core)")
    cpus_per_worker: float = Field(1.0, ge=1e-4, description="cores a worker holds")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs a worker holds; 0 predicts with ONNX Runtime")
    mistakes: int = Field(24, ge=0, le=200, description="how many images that the two versions disagree on to show")
    single_writer: bool = Field(
        False, description="nobody else moves this best.json: for a store that cannot hold a lock"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "PromoteConfig":
        if self.rollback and (self.version or self.protocol):
            raise ValueError("--rollback goes to the version before: leave out --version and --protocol")
        if self.protocol and not self.version:
            raise ValueError("--protocol: name the --version that it judges")
        if self.rollback and self.sign:
            raise ValueError("--rollback goes to a version as it is: sign it by itself, with its folder as MODEL")
        if self.force and not (self.protocol and self.why.strip()):
            raise ValueError("--force: needs the --protocol that it overrules, and --why")
        self._refuse_unused()
        return self

    def _refuse_unused(self) -> None:
        """What was given and would change nothing: somebody believes it does."""
        flags = {name: "--" + name.replace("_", "-") for name in self.model_fields_set}
        if not self.protocol and (unused := sorted(flags[name] for name in _OF_PROTOCOL & flags.keys())):
            raise ValueError(f"{', '.join(unused)}: only with --protocol, which measures the version")
        moves = self.version or self.rollback
        if not moves and (unused := sorted(flags[name] for name in _OF_MOVES & flags.keys())):
            raise ValueError(f"{', '.join(unused)}: only with --version or --rollback, which move best.json")

    @property
    def who(self) -> str:
        return self.by if self.by is not None else user_name()


def writable_folder(config: PromoteConfig, uri: str) -> ModelFolder:
    return ModelFolder(uri, writing_stores(config, uri, single_writer=config.single_writer))


def checked(folder: ModelFolder, version: str) -> Bundle:
    """The bundle of a version, whole and answering. Raises InputError where its folder has another name."""
    bundle = read_bundle(join(folder.uri, version), folder.stores)
    if bundle.info.version != version or not is_version_name(version):  # best.json would name another folder, or none
        raise InputError(
            f"{bundle.uri}: its bundle.json says version {bundle.info.version}: a copied or renamed folder; name it "
            f"{bundle.info.version}, as best.json would"
        )
    return proved(bundle)


def proved(bundle: Bundle) -> Bundle:
    """Whole and answering."""
    bundle.verify()
    Predictor(bundle, engine="onnx").prove()
    return bundle


def tell_chance(bundle: Bundle) -> None:
    if bundle.info.against_chance is not None and not bundle.info.against_chance.is_shown:
        print(f"warning: this version is {bundle.info.against_chance}")
