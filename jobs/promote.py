"""Point a model's best.json to another version, by a written protocol or by hand, back again, or list its versions."""

from pydantic import Field, model_validator

from jobs.common import job, job_stores, refuse_unwritable, start, writing_stores
from jobs.config import NamingConfig, effective, positional
from jobs.signing import Signer
from pipeline.base.cluster import connected
from pipeline.base.errors import InputError, LeukorayError, NotPromotedError, PlatformError, UsageError
from pipeline.evaluation.comparison.page import render_comparison
from pipeline.evaluation.promotion.criteria import MET, all_met
from pipeline.evaluation.promotion.protocol import read_protocol
from pipeline.evaluation.promotion.run import Judgement, judge, manifest_of
from pipeline.evaluation.study.pccp import Decision
from pipeline.evaluation.study.write import write_study
from pipeline.model.bundle import Bundle, read_bundle
from pipeline.model.chance import NOT_SHOWN
from pipeline.model.predictor import Predictor
from pipeline.model.promotions import (
    Action,
    Promotion,
    archive,
    archived,
    is_version_name,
    move,
    move_by_hand,
    record,
    user_name,
    version_named,
)
from pipeline.model.registry import ModelFolder, version_uris
from pipeline.model.signature import is_signed
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

EXAMPLES = """examples:
  leukoray promote models/leukoray --list
  leukoray promote models/leukoray --version 20261123-191500-1a2b3c4d
  leukoray promote models/leukoray --version 20261123-191500-1a2b3c4d --protocol promotion.yaml --why 'new stain'
  leukoray promote models/leukoray --rollback --why 'false alarms on Tuesday'
  leukoray promote s3://bucket/models/leukoray --version 20261123-191500-1a2b3c4d --sign release.key
  leukoray promote models/leukoray/20261123-191500-1a2b3c4d --sign release.key      signs it and moves nothing

Research software, not a medical device."""
_LISTED = 10  # of the archive
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


def main(config: PromoteConfig) -> None:
    uri = absolute(config.model)
    if config.version is not None and not is_version_name(config.version):
        raise UsageError(f"--version {config.version!r}: the name of a folder in {uri}, without slashes; see --list")
    if not (config.version or config.list or config.rollback or config.sign):
        raise UsageError("name a --version, or see them with --list")
    signer = None if config.sign is None else Signer(config.sign)
    try:
        if config.protocol:
            _by_protocol(config, uri, signer)
        elif config.rollback:
            _roll_back(config, uri)
        elif config.version:
            _by_hand(config, uri, signer)
        elif signer is not None:
            signer.sign(_proved(read_bundle(uri, job_stores(config))))
    except NotPromotedError:
        if config.list:
            _print_versions(uri, job_stores(config))
        raise
    if config.list:
        _print_versions(uri, job_stores(config))


def _by_hand(config: PromoteConfig, uri: str, signer: Signer | None) -> None:
    folder = ModelFolder(uri, writing_stores(config, uri, single_writer=config.single_writer))
    bundle = _checked(folder, str(config.version))
    if signer is not None:  # before anybody follows best.json to it
        signer.sign(bundle)
    pointer, _ = move_by_hand(folder, bundle, config.who, config.why)
    print(f"{folder.uri}: best is now {config.version} ({pointer.metric} {_number(pointer.value)})")
    _warn(bundle)


def _checked(folder: ModelFolder, version: str) -> Bundle:
    """The bundle of a version, whole and answering. Raises InputError where its folder has another name."""
    bundle = read_bundle(join(folder.uri, version), folder.stores)
    if bundle.info.version != version or not is_version_name(version):  # best.json would name another folder, or none
        raise InputError(
            f"{bundle.uri}: its bundle.json says version {bundle.info.version}: a copied or renamed folder; name it "
            f"{bundle.info.version}, as best.json would"
        )
    return _proved(bundle)


def _proved(bundle: Bundle) -> Bundle:
    """Whole and answering."""
    bundle.verify()
    Predictor(bundle, engine="onnx").prove()
    return bundle


def _warn(bundle: Bundle) -> None:
    if bundle.info.against_chance is not None and not bundle.info.against_chance.is_shown:
        print(f"warning: this version is {bundle.info.against_chance}")


# ---- by a protocol ---------------------------------------------------------------------------------------------------


def _by_protocol(config: PromoteConfig, uri: str, signer: Signer | None) -> None:
    if not config.who:
        raise UsageError("--by: the environment names no user; say who promotes")
    folder = ModelFolder(uri, writing_stores(config, uri, single_writer=config.single_writer))
    protocol, written = read_protocol(str(config.protocol), folder.stores)
    manifest, bundle = manifest_of(protocol, folder.stores), _checked(folder, str(config.version))
    refuse_unwritable(absolute(config.out))
    before, images = version_named(folder) or "no best model", len(manifest.split(protocol.split))
    print(f"{config.version} against {before}, on {images:,} images of {manifest.uri}", flush=True)
    with connected(config.address, config.num_cpus) as ray:
        found = judge(
            ray, protocol, written, manifest, bundle, folder, workers=config.workers,
            cpus_per_worker=config.cpus_per_worker, gpus_per_worker=config.gpus_per_worker,
        )  # fmt: skip
    out, figures = absolute(config.out), found.comparison.record(effective(config))
    page = render_comparison(found.comparison, config.mistakes, folder.stores)
    found.comparison.save(out, figures, page, folder.stores)
    print("\n" + "\n".join(criteria_lines(found)))
    action = _action(config, found)
    with folder.moving() as check_lock:
        _refuse_other_best(folder, found)
        check_lock()
        if signer is not None and _action(config, found) != "refused":
            signer.sign(bundle)
        print("\n" + _decided(config, folder, bundle, found, figures))
    decision = Decision(found.criteria, action, config.who, config.why, found.written.model_dump())
    study = write_study(out, found.comparison, folder.stores, decision)
    print(f"figures: {join(out, 'comparison.html')}; for a study: {study}")
    _warn(bundle)
    if not (all_met(found.criteria) or config.force):
        raise NotPromotedError(
            f"{config.version} is not promoted: {sum(one.state != MET for one in found.criteria)} of "
            f"{len(found.criteria)} criteria are not met or cannot be told; best.json stays at "
            f"{found.best.version or 'nothing'} (--force --why REASON overrules the protocol)"
        )


def criteria_lines(found: Judgement) -> list[str]:
    """Each criterion: what came of it, what was asked, and the figures."""
    return [line for one in found.criteria for line in (f"{one.state:<15} {one.asked}", f"{'':<15}   {one.found}")]


def _refuse_other_best(folder: ModelFolder, found: Judgement) -> None:
    """Of two who promote at once the later one has compared with what is the best no longer."""
    pointer = folder.pointer()
    if (pointer.version if pointer else None) != found.best.version:
        raise PlatformError(
            f"{folder.uri}: best.json was moved to {pointer.version if pointer else 'nothing'} while this version was "
            f"compared with {found.best.version}; run the same command again"
        )


def _action(config: PromoteConfig, found: Judgement) -> Action:
    return "promoted" if all_met(found.criteria) else "forced" if config.force else "refused"


def _decided(
    config: PromoteConfig, folder: ModelFolder, bundle: Bundle, found: Judgement, figures: dict[str, object]
) -> str:
    """Archive it, move best.json where that is due; what was done, in a line or two."""
    met = all_met(found.criteria)
    promotion = record(
        _action(config, found),
        bundle,
        found.best.version,
        config.who,
        why=config.why,
        protocol=found.written.model_dump(),
        test_digest=found.protocol.test_digest,
        criteria=[one.record() for one in found.criteria],
        figures=figures,
    )
    if not promotion.moved:
        return f"archived: {archive(folder, promotion)}"
    _, place = move(folder, bundle, promotion)
    how = "all criteria are met" if met else f"FORCED against the protocol, by {config.who}: {config.why}"
    return f"{folder.uri}: best is now {config.version}, {how}\narchived: {place}"


# ---- back again ------------------------------------------------------------------------------------------------------


def _roll_back(config: PromoteConfig, uri: str) -> None:
    folder = ModelFolder(uri, writing_stores(config, uri, single_writer=config.single_writer))
    with folder.moving() as check_lock:
        pointer = folder.pointer()
        if pointer is None or not pointer.earlier:
            named = f"{pointer.version}, and nothing is known of one before" if pointer else "nothing"
            raise InputError(f"{uri}: best.json names {named}; choose a --version from --list")
        bundle = _checked(folder, pointer.earlier[-1])
        check_lock()
        promotion = record("rolled back", bundle, pointer.version, config.who, why=config.why)
        _, place = move(folder, bundle, promotion, pointer.earlier[:-1])
    print(f"{uri}: best is {bundle.info.version} again, no longer {pointer.version}\narchived: {place}")
    _warn(bundle)


# ---- what is there ---------------------------------------------------------------------------------------------------


def _print_versions(uri: str, stores: Stores) -> None:
    """Of one model, or of all models of a registry; a damaged best.json is told, with none of its versions as best."""
    damaged: list[InputError] = []
    found = list(version_uris(uri, stores, damaged))
    if not found:
        raise InputError(f"{uri}: no versions here; name the model's folder, REGISTRY/NAME")
    for folder, is_best in found:
        shown = f"{'*' if is_best else ' '} {folder.removeprefix(uri + '/')}"
        try:
            bundle = read_bundle(folder, stores)
            info = bundle.info
        except LeukorayError as error:
            print(f"{shown}  unusable: {error}")
            continue
        metric, value = info.monitored
        doubt = f"  {NOT_SHOWN}" if info.against_chance is not None and not info.against_chance.is_shown else ""
        signed = "  signed" if is_signed(bundle) else ""
        print(
            f"{shown}  {info.architecture} {info.input_size} px  {metric} {_number(value)}  {info.created_at}{signed}"
            f"{doubt}"
        )
    for unread in damaged:
        print(f"\nunusable: {unread}")
    records = list(archived(ModelFolder(uri, stores)))
    if records:
        print(f"\nthe last of {len(records)} promotions:" if len(records) > _LISTED else "\npromotions:")
        print("\n".join(_promotion_line(one) for one in records[-_LISTED:]))


def _promotion_line(one: Promotion | InputError) -> str:
    if isinstance(one, InputError):
        return f"  unusable: {one}"
    before = f" (before: {one.before})" if one.before else ""
    why = f": {one.why}" if one.why else ""
    return f"  {one.at[:19]}  {one.action:<11}  {one.version}{before} by {one.by or 'nobody named'}{why}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


command = job("promote", PromoteConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
