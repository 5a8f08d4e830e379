"""Point a model's best.json to another version, by a written protocol or by hand, back again, or list its versions."""

from jobs.common import job, job_stores, start
from jobs.promote_common import PromoteConfig, checked, proved, tell_chance, writable_folder
from jobs.signing import Signer
from pipeline.base.errors import InputError, LeukorayError, NotPromotedError, UsageError
from pipeline.model.bundle import read_bundle
from pipeline.model.chance import NOT_SHOWN
from pipeline.model.promotions import (
    Promotion,
    archived,
    is_version_name,
    move,
    move_by_hand,
    record,
)
from pipeline.model.registry import ModelFolder, version_uris
from pipeline.model.signature import is_signed
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute

EXAMPLES = """examples:
  leukoray promote models/leukoray --list
  leukoray promote models/leukoray --version 20261123-191500-1a2b3c4d
  leukoray promote models/leukoray --version 20261123-191500-1a2b3c4d --protocol promotion.yaml --why 'new stain'
  leukoray promote models/leukoray --rollback --why 'false alarms on Tuesday'
  leukoray promote s3://bucket/models/leukoray --version 20261123-191500-1a2b3c4d --sign release.key
  leukoray promote models/leukoray/20261123-191500-1a2b3c4d --sign release.key      signs it and moves nothing

Research software, not a medical device."""
_LISTED = 10  # of the archive


def main(config: PromoteConfig) -> None:
    uri = absolute(config.model)
    if config.version is not None and not is_version_name(config.version):
        raise UsageError(f"--version {config.version!r}: the name of a folder in {uri}, without slashes; see --list")
    if not (config.version or config.list or config.rollback or config.sign):
        raise UsageError("name a --version, or see them with --list")
    signer = None if config.sign is None else Signer(config.sign)
    try:
        if config.protocol:
            from jobs.promote_judged import by_protocol  # what measures, which is an extra: `train`

            by_protocol(config, writable_folder(config, uri), signer)
        elif config.rollback:
            _roll_back(config, uri)
        elif config.version:
            _by_hand(config, uri, signer)
        elif signer is not None:
            signer.sign(proved(read_bundle(uri, job_stores(config))))
    except NotPromotedError:
        if config.list:
            _print_versions(uri, job_stores(config))
        raise
    if config.list:
        _print_versions(uri, job_stores(config))


def _by_hand(config: PromoteConfig, uri: str, signer: Signer | None) -> None:
    folder = writable_folder(config, uri)
    bundle = checked(folder, str(config.version))
    if signer is not None:  # before anybody follows best.json to it
        signer.sign(bundle)
    pointer, _ = move_by_hand(folder, bundle, config.who, config.why)
    print(f"{folder.uri}: best is now {config.version} ({pointer.metric} {_number(pointer.value)})")
    tell_chance(bundle)


# ---- back again ------------------------------------------------------------------------------------------------------


def _roll_back(config: PromoteConfig, uri: str) -> None:
    folder = writable_folder(config, uri)
    with folder.moving() as check_lock:
        pointer = folder.pointer()
        if pointer is None or not pointer.earlier:
            named = f"{pointer.version}, and nothing is known of one before" if pointer else "nothing"
            raise InputError(f"{uri}: best.json names {named}; choose a --version from --list")
        bundle = checked(folder, pointer.earlier[-1])
        check_lock()
        promotion = record("rolled back", bundle, pointer.version, config.who, why=config.why)
        _, place = move(folder, bundle, promotion, pointer.earlier[:-1])
    print(f"{uri}: best is {bundle.info.version} again, no longer {pointer.version}\narchived: {place}")
    tell_chance(bundle)


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
