"""`leukoray transfer-check`: whether images of another laboratory look like those of a model; no labels needed."""

import json
from collections.abc import Sequence

from pydantic import Field

from jobs.common import Clock, job, job_stores, refuse_unwritable, show_config, start
from jobs.config import NamingConfig, effective, positional
from jobs.record import Account, recorded
from pipeline.base.cluster import connected
from pipeline.base.errors import InputError, TooDifferentError, UsageError
from pipeline.evaluation.drawing import Drawn, draw_listed, draw_recorded
from pipeline.evaluation.own_files import refuse_foreign_transfer
from pipeline.evaluation.report.words import NOT_A_DEVICE
from pipeline.evaluation.transfer import Transfer, inspect, sentences, statistics_of
from pipeline.images.unit import refuse_mismatch
from pipeline.model.drift import Verdict
from pipeline.model.registry import resolve
from pipeline.sources.manifest import SPLITS, is_manifest, read_info
from pipeline.sources.pseudonyms import names_of
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

EXAMPLES = """examples:
  leukoray transfer-check /data/new-microscope --model models/leukoray
  leukoray transfer-check s3://lab/slides.tar --model models/leukoray --strict || echo 'do not use it here yet'
  leukoray transfer-check out/manifest --split test --model models/leukoray    its own images: must look alike

The page shows images of the source to whoever opens it. Research software, not a medical device."""


class TransferCheckConfig(NamingConfig):
    """Say whether images look like those that a model learnt from, what differs and by how much; without labels."""

    source: str = positional(description="folder, bucket, archive, table of paths or manifest")
    model: str = Field(description="bundle or registry folder, local or s3://")
    out: str = Field("transfer", description="folder for transfer.json and transfer.html")
    sample: int = Field(500, ge=1, description="at most so many images are read, drawn evenly from all")
    split: str | None = Field(None, description="of a manifest: only this split")
    subjects: int | None = Field(
        None,
        ge=1,
        description="of so many subjects, where neither manifest nor paths tell: more have narrower limits",
    )
    strict: bool = Field(False, description="exit 4 where the images are too different, or cannot be told")
    seed: int = Field(0, ge=0, description="seed of the drawing")


def main(config: TransferCheckConfig) -> None:
    clock, stores = Clock(), job_stores(config)
    if config.split is not None and config.split not in SPLITS:
        raise UsageError(f"--split {config.split!r}: expected one of {', '.join(SPLITS)}")
    show_config(config, names_of(stores))
    with recorded("transfer-check", config, stores) as kept:
        _check(config, stores, clock, kept)


def _check(config: TransferCheckConfig, stores: Stores, clock: Clock, kept: Account) -> None:
    refuse_foreign_transfer(config.out, stores)
    bundle = resolve(config.model, stores).verify()
    reference = statistics_of(bundle)
    drawn = _drawn(config, stores)
    refuse_mismatch(bundle.info.unit, drawn.unit, config.source)
    refuse_unwritable(absolute(config.out))
    kept.begin(absolute(config.out), model=bundle.info.identity())
    with connected(config.address, config.num_cpus) as ray:
        inspected = inspect(ray, bundle, drawn.rows, stores)
    found = Transfer(bundle.info, reference, drawn, inspected, *_subjects(config, drawn, stores))
    if not found.usable:
        codes = ", ".join(f"{count} {code}" for code, count in found.unreadable.items())
        raise InputError(f"{config.source}: none of {len(inspected):,} images can be read ({codes})")
    counts = {"images": len(inspected), "measured": len(found.usable)}
    kept.keep(absolute(config.out), counts, model=bundle.info.identity())
    page = _save(config, found, stores)
    print()
    for line in sentences(found):
        print(line)
    print(f"\n{len(found.usable):,} images in {clock.seconds:.0f} s. Page: {page}")
    print(NOT_A_DEVICE)
    if config.strict and found.verdict in (Verdict.TOO_DIFFERENT, Verdict.UNKNOWN):
        raise TooDifferentError(f"{config.source}: {sentences(found)[0]}")


def _drawn(config: TransferCheckConfig, stores: Stores) -> Drawn:
    if is_manifest(config.source, stores):
        return draw_recorded(config.source, config.split, config.sample, config.seed, stores)
    if config.split is not None:
        raise UsageError(f"--split: {config.source} is no manifest; leave it out, or make one with `leukoray ingest`")
    return draw_listed(absolute(config.source), config.sample, config.seed, stores, _subjects_of)


def _subjects(config: TransferCheckConfig, drawn: Drawn, stores: Stores) -> tuple[int | None, str]:
    """How many the images are of, None where that is not known, and what they are called."""
    if not drawn.subject_count or not is_manifest(config.source, stores):
        return drawn.subject_count or config.subjects, "subjects"
    return drawn.subject_count, read_info(config.source, stores).units


def _subjects_of(paths: Sequence[str]) -> list[str | None]:
    from pipeline.scoring.plan.subject_paths import SubjectPaths

    known = SubjectPaths.of(paths, None)
    return [known.subject(path) for path in paths]


def _save(config: TransferCheckConfig, found: Transfer, stores: Stores) -> str:
    """Writes record and page; where the page lies."""
    from pipeline.evaluation.report.transfer import render_transfer

    names = names_of(stores)
    asked = effective(config, names)
    out, source = absolute(config.out), str(asked["source"])
    page = join(out, "transfer.html")
    record = {"source": source, **found.record(), "configuration": asked}
    stores.of(out).write(join(out, "transfer.json"), json.dumps(record, indent=2, allow_nan=False).encode())
    stores.of(out).write(page, render_transfer(found, source, asked, stores).encode())
    return page


command = job("transfer-check", TransferCheckConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
