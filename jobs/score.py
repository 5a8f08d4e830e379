"""`leukoray score`: a bucket or disk of images and archives in, trustworthy Parquet out."""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from jobs import lineage
from jobs.common import job, job_stores, show_config, start, writing_stores
from jobs.config import LineageConfig, effective, positional
from jobs.lineage_datasets import account_of, of_model, read_by, written_by
from pipeline.base.cluster import alive_nodes, cluster_target, connected
from pipeline.base.errors import IncompleteError, InputError, UsageError
from pipeline.base.lineage import Dataset
from pipeline.base.machine import usable_cores, visible_cards
from pipeline.base.record import INCOMPLETE
from pipeline.base.resources import Node, scoring_plan
from pipeline.base.text import human_time
from pipeline.images.load import Limits
from pipeline.ingest.annotation import subject_reader
from pipeline.model.bundle import Bundle
from pipeline.model.registry import resolve
from pipeline.model.signature import public_key
from pipeline.scoring import run as scoring
from pipeline.scoring.commit.partition import Partition
from pipeline.scoring.estimate import dry_run, estimate_seconds
from pipeline.scoring.history.uncounted import described
from pipeline.scoring.record import Counts
from pipeline.scoring.request import Request, RunOptions, Workforce
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.summary.advice import SYNTHETIC
from pipeline.sources.filters import parse_since
from pipeline.sources.masks import MASKS, masks_note
from pipeline.sources.pseudonyms import names_of
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute

EXAMPLES = """examples:
  leukoray score s3://archive/2026-11-22/ --model s3://models/all-cnn --out s3://results/scores
  leukoray score /data/slides night.tar night.zip --model models/demo --out scores
  leukoray score scans --model models/demo --out scores --include '*.tif' --since 1d --dry-run
  leukoray score --retry-quarantined scores/run-20261122-210000-123    with its model, into the same output

The same command again after an interruption continues; after a finished run it reads only what is new or changed.
Exit codes: 0 all accounted for, 4 more than --max-error-share quarantined or an archive that cannot be read to its end
(the output stays), 5 machine or store.
Research software, not a medical device."""

_PLACES_SHOWN = 5


class ScoreConfig(LineageConfig):
    """Score every image of folders, S3 prefixes, archives, manifests or tables of URIs into Parquet."""

    sources: list[str] = positional(
        [], description="folders, s3:// prefixes, archives, manifests, tables of URIs, globs"
    )
    model: str | None = Field(
        None, description="bundle, model or registry folder, local or s3:// (a retry: default the run's own)"
    )
    verify: str | None = Field(
        None, description="PEM file of a public key: only a model signed with its private half is used"
    )
    out: str = Field("scores", description="output folder or s3:// prefix; each run has its own folder inside")
    run_id: str | None = Field(None, pattern=r"^\w[\w.-]*$", description="name of the run's folder (default: by time)")
    threshold: float | None = Field(None, ge=0, le=1, description="operating point instead of the bundle's")
    bit_depth: int | None = Field(
        None, ge=8, le=16, description="bits that count in 16-bit samples (default: as the model was trained)"
    )
    include: list[str] = Field([], description="only paths matching these globs")
    exclude: list[str] = Field([], description="no paths matching these globs")
    since: str | None = Field(None, description="only objects modified since a date or age: 2026-11-01, 36h, 7d")
    limit: int | None = Field(None, ge=1, description="at most so many images that no earlier run has tried")
    subject_pattern: str | None = Field(None, description="regex whose first group is the subject in the path")
    partition_by: str | None = Field(None, description="KEY=REGEX: hive partitions from the path, e.g. 'site=/(\\w+)/'")
    rescore: bool = Field(False, description="score again what earlier runs have done")
    retry_quarantined: str | None = Field(None, description="folder of a run: read only what it quarantined")
    dry_run: bool = Field(False, description="list and estimate, write nothing")
    workers: int | None = Field(None, ge=1, description="scoring workers (default: one a core; of a GPU some)")
    cpus_per_worker: float | None = Field(
        None, ge=1e-4, description="cores of a worker; more than 1 decodes in threads (default: 1; beside GPUs all)"
    )
    use_gpu: bool = Field(False, description="predict on GPUs, which workers share")
    max_error_share: float = Field(0.05, ge=0, le=1, description="exit 4 above this share of quarantined images")
    accept_damaged_archives: bool = Field(
        False, description="exit 0 though archives or folders hold images that cannot be counted"
    )
    max_bytes: int = Field(Limits.max_bytes, ge=1, description="refuse larger files")
    max_pixels: int = Field(Limits.max_pixels, ge=1, description="refuse larger images, from the header")
    max_frames: int = Field(Limits.max_frames, ge=1, description="refuse films and stacks of more frames")
    wait_for_lock: float = Field(0.0, ge=0, description="seconds to wait for another run on the same output")
    single_writer: bool = Field(
        False, description="only this run ever writes to --out: for S3 stores that heed no conditional writes"
    )
    stall: float = Field(60.0, gt=0, description="say what is stuck after so many seconds without progress")


def main(config: ScoreConfig) -> None:
    stores = job_stores(config)
    out = _out(config)
    if stores.of(out).head(out) is not None:
        raise InputError(f"--out {out}: is a file; name a folder or prefix for the runs")
    if not config.dry_run:
        stores = writing_stores(config, out, single_writer=config.single_writer)
    bundle = _bundle(config, stores)
    request = _request(config, bundle, stores)
    if config.dry_run:
        _show_dry_run(config, request, bundle, out, stores)
        return
    show_config(config, names_of(stores))
    lineage.reads(lambda: [*map(Dataset, request.sources), of_model(bundle)])
    options = replace(_options(config), configuration=effective(config, names_of(stores)))
    result = scoring.score(out, request, bundle, options, stores, _say)
    lineage.reads(lambda: read_by(result, request.sources))
    lineage.writes(lambda: [written_by(result)], lambda: account_of(result))
    _show_account(result, config)


def _out(config: ScoreConfig) -> str:
    """The folder of runs: as given, else beside the run that is retried."""
    if config.retry_quarantined and "out" not in config.model_fields_set:
        return absolute(config.retry_quarantined).rpartition("/")[0]
    return absolute(config.out)


def _bundle(config: ScoreConfig, stores: Stores) -> Bundle:
    key = None if config.verify is None else public_key(config.verify)
    if config.model is not None:
        return _of_depth(resolve(config.model, stores, key).verify().with_threshold(config.threshold), config.bit_depth)
    if config.retry_quarantined is None:
        raise UsageError("--model is missing: name a bundle or registry folder, e.g. --model models/demo")
    retried = RunFolder.at(absolute(config.retry_quarantined), stores)
    used = retried.record().model
    bundle = _of_depth(resolve(used.uri, stores, key).verify(), config.bit_depth or used.bit_depth)
    if config.threshold is not None:
        return bundle.with_threshold(config.threshold)
    if config.bit_depth is not None:
        return bundle.with_threshold(used.threshold)
    if bundle.info.identity() != used.sha256:
        bundle = bundle.with_threshold(used.threshold)  # the run had an operating point of its own
    if bundle.info.identity() != used.sha256:
        raise InputError(f"{used.uri}: is no longer the model of {retried.uri}; name the one to use with --model")
    return bundle


def _of_depth(bundle: Bundle, bit_depth: int | None) -> Bundle:
    found = bundle.with_bit_depth(bit_depth)
    if note := found.depth_note(bundle.info.bit_depth):
        _say(note)
    return found


# What a retry does as the run did, unless it is told otherwise.
_KEPT_BY_RETRY = ("include", "exclude", "subject_pattern", "partition_by", "max_bytes", "max_pixels", "max_frames")


def _request(config: ScoreConfig, bundle: Bundle, stores: Stores) -> Request:
    retry_of = absolute(config.retry_quarantined) if config.retry_quarantined else None
    if retry_of is None and not config.sources:
        raise UsageError("SOURCES is missing: name a folder, s3:// prefix, archive, manifest or table of URIs")
    if retry_of is not None and config.sources:
        raise UsageError("--retry-quarantined takes its sources from the run; leave SOURCES out")
    names = names_of(stores)
    if config.partition_by:
        Partition.parse(config.partition_by)
        if names.key_id is not None:
            raise UsageError("--partition-by writes parts of paths into folder names; leave it out with --pseudonymize")
    if config.subject_pattern:
        subject_reader(config.subject_pattern)
    sources = tuple(names.path(absolute(source)) for source in config.sources)
    if retry_of is not None:
        earlier = RunFolder.at(retry_of, stores).record().request
        sources = earlier.sources
        kept = {name: getattr(earlier, name) for name in _KEPT_BY_RETRY if name not in config.model_fields_set}
        config = config.model_copy(update=kept)
    # An age moves with the clock; the request keeps the user's word so that the same command finds its run.
    since = config.since and (config.since if _is_age(config.since) else parse_since(config.since).isoformat())
    return Request(
        sources=sources,
        model_uri=bundle.uri,
        model_sha256=bundle.info.identity(),
        include=tuple(config.include),
        exclude=tuple(config.exclude),
        since=since,
        limit=config.limit,
        subject_pattern=config.subject_pattern,
        rescore=config.rescore,
        retry_of=retry_of,
        max_bytes=config.max_bytes,
        max_pixels=config.max_pixels,
        max_frames=config.max_frames,
        partition_by=config.partition_by,
        pseudonym_key_id=names.key_id,
    )


def _is_age(since: str) -> bool:
    parse_since(since)
    return since[-1:] in "mhdw"


def _options(config: ScoreConfig) -> RunOptions:
    is_told = config.workers is not None and not config.use_gpu  # then the nodes decide nothing
    plan = scoring_plan(
        [] if is_told else _nodes(config), config.workers, config.cpus_per_worker, use_gpu=config.use_gpu
    )
    workforce = Workforce(plan.workers, plan.cpus_per_worker, plan.gpus_per_worker, config.stall)
    return RunOptions(
        workforce, config.address, config.num_cpus, config.run_id, config.wait_for_lock, config.max_error_share,
        config.accept_damaged_archives,
    )  # fmt: skip


def _nodes(config: ScoreConfig) -> Sequence[Node]:
    """The machine's or the cluster's, which a run fills at most; the driver starts no more workers than shards."""
    if config.num_cpus is None and cluster_target(config.address) is not None:
        with connected(config.address) as ray:
            return alive_nodes(ray)
    return [{"CPU": float(config.num_cpus or usable_cores()), "GPU": float(visible_cards())}]


def _say(text: str) -> None:
    print(text, flush=True)


def _show_dry_run(config: ScoreConfig, request: Request, bundle: Bundle, out: str, stores: Stores) -> None:
    plan, sample = dry_run(out, request, stores)
    workers = _options(config).workforce.workers
    seconds = None if config.use_gpu else estimate_seconds(bundle, sample, stores, workers, plan.rows)
    about = f"about {human_time(seconds)} on {workers} workers" if seconds is not None else "time unknown"
    skipped = "".join(f", {count} {reason}" for reason, count in plan.skipped.items())
    _say(f"dry run: {plan.known_images} images listed{skipped}, {plan.problems} could not be listed")
    if plan.masks:
        _say(masks_note(plan.left_out[MASKS], plan.masks))
    _say(f"would score {plan.rows} images, {plan.bytes / 1e6:.1f} MB, {about}; nothing was written")


def _show_account(result: scoring.Result, config: ScoreConfig) -> None:
    run, counts, pace = result.record, result.record.counts, result.record.progress
    _say(
        f"listed {counts.at_least}{counts.listed} = scored {counts.scored} + quarantined {counts.quarantined} "
        f"+ skipped {counts.skipped}  (counted in the files written)"
    )
    uncounted = described(result.folder, _PLACES_SHOWN) if counts.uncounted else []
    for line in _counted(counts, uncounted):
        _say(f"  {line}")
    if run.model.synthetic:
        _say(SYNTHETIC)
    for note in run.notes:
        _say(note)
    _say(f"{pace.images_per_s:.0f} img/s over {human_time(pace.elapsed_s)}; results in {result.folder.uri}")
    _say(f"next: leukoray summary {result.folder.uri}")
    if run.status == INCOMPLETE:
        raise IncompleteError(
            f"{counts.uncounted} archives or folders could not be read to their end ({uncounted[0]}); what could be is "
            "scored: mend them and run again, or accept it with --accept-damaged-archives"
        )
    if not run.is_accepted:
        codes = ", ".join(f"{code} {count}" for code, count in counts.codes.items())
        raise IncompleteError(
            f"{100 * run.error_share:.1f} % of the images were quarantined ({codes}), more than "
            f"--max-error-share {config.max_error_share:g}; the output stays, see {result.folder.file('quarantine')}"
        )


def _counted(counts: Counts, uncounted: list[str]) -> list[str]:
    """What became of the images that were not scored, what was noticed about others, and what is no image."""
    lines = [
        f"quarantined {count:6d}  {code}" for code, count in sorted(counts.codes.items(), key=lambda item: -item[1])
    ]
    if counts.quarantined_again:
        lines.append(f"of these    {counts.quarantined_again:6d}  failed in an earlier run already")
    remarks = sorted(counts.remarks.items(), key=lambda item: -item[1])
    lines += [f"remarked    {count:6d}  {kind}" for kind, count in remarks]
    lines += [f"skipped     {count:6d}  {reason}" for reason, count in counts.skipped_reasons.items()]
    if uncounted:
        lines.append(f"not counted {counts.uncounted:6d}  archives or folders: how many images they hold is not known")
        lines += [f"  {place}" for place in uncounted]
    if counts.left_out:
        reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(counts.left_out.items(), key=lambda item: -item[1]))
        lines.append(f"left out    {sum(counts.left_out.values()):6d}  {reasons}")
    if counts.masks:
        lines.append(masks_note(counts.left_out[MASKS], counts.masks))
    if counts.deleted_at_source:
        lines.append(f"{counts.deleted_at_source} images of earlier runs are gone from the source (deleted/)")
    return lines


command = job("score", ScoreConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
