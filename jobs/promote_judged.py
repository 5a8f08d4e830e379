"""A version judged by a written protocol: measured beside the best one, told, archived, promoted where it is met.

Needs the extra `train`, as all that measures; moving best.json by hand or back again needs it not (jobs/promote.py).
"""

from jobs.common import refuse_unwritable
from jobs.config import effective
from jobs.promote_common import PromoteConfig, checked, tell_chance
from jobs.record import Account, recorded
from jobs.signing import Signer
from pipeline.base.cluster import connected
from pipeline.base.errors import NotPromotedError, PlatformError, UsageError
from pipeline.evaluation.comparison.page import render_comparison
from pipeline.evaluation.own_files import refuse_foreign_comparison
from pipeline.evaluation.promotion.criteria import MET, all_met
from pipeline.evaluation.promotion.protocol import read_protocol
from pipeline.evaluation.promotion.run import Judgement, candidate, judge, manifest_of
from pipeline.evaluation.study.pccp import Decision
from pipeline.evaluation.study.write import write_study
from pipeline.model.bundle import Bundle
from pipeline.model.promotions import Action, archive, move, record
from pipeline.model.registry import ModelFolder
from pipeline.storage.uris import absolute, join


def by_protocol(config: PromoteConfig, folder: ModelFolder, signer: Signer | None) -> None:
    """Measure the version beside the best one, and move best.json where all criteria are met, or --force says so.

    Raises NotPromotedError.
    """
    if not config.who:
        raise UsageError("--by: the environment names no user; say who promotes")
    with recorded("promote", config, folder.stores) as kept:
        _judge(config, folder, signer, kept)


def _judge(config: PromoteConfig, folder: ModelFolder, signer: Signer | None, kept: Account) -> None:
    refuse_foreign_comparison(config.out, "promote", folder.stores)
    protocol, written = read_protocol(str(config.protocol), folder.stores)
    manifest, bundle = manifest_of(protocol, folder.stores), checked(folder, str(config.version))
    asked = candidate(protocol, manifest, bundle, folder)
    out, digests = absolute(config.out), {"manifest": manifest.info.digest, "model": bundle.info.identity()}
    refuse_unwritable(out)
    kept.begin(out, **digests)
    before, images = asked.best.version or "no best model", len(manifest.split(protocol.split))
    print(f"{config.version} against {before}, on {images:,} images of {manifest.uri}", flush=True)
    with connected(config.address, config.num_cpus) as ray:
        found = judge(
            ray, protocol, written, manifest, asked, folder.stores, workers=config.workers,
            cpus_per_worker=config.cpus_per_worker, gpus_per_worker=config.gpus_per_worker,
        )  # fmt: skip
    kept.keep(out, {"images": found.comparison.images, "left_out": found.comparison.left_out}, **digests)
    figures = found.comparison.record(effective(config))
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
    tell_chance(bundle)
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
