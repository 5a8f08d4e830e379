"""leukoray ingest: folders, buckets and archives of images into a manifest with labels, subjects and splits."""

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from jobs import lineage
from jobs.common import Clock, job, job_stores, show_config, start
from jobs.config import LineageConfig, effective, positional
from jobs.lineage_datasets import listed, of_manifest, of_sources
from jobs.record import recorded
from pipeline import __version__
from pipeline.base.cluster import seen_on_cluster
from pipeline.base.errors import Code, InputError, UsageError
from pipeline.evaluation.sample_size import few_of, what_is_enough
from pipeline.images.unit import DESCRIBED, Unit
from pipeline.ingest import measured
from pipeline.ingest.annotate import IngestOptions
from pipeline.ingest.class_rules import ClassRules, draft_of_rules
from pipeline.ingest.croissant import write_croissant
from pipeline.ingest.draft import ManifestDraft, counts, ingest, list_classes
from pipeline.ingest.findings import near_copy_counts, refuse_lost_answers, write_findings
from pipeline.ingest.hide import hidden
from pipeline.ingest.layouts import describe_layouts
from pipeline.ingest.own_files import PROBLEMS, refuse_foreign_findings
from pipeline.ingest.splits import FRACTIONS, SplitRule, Use
from pipeline.sources.filters import Filters, parse_since
from pipeline.sources.manifest import MANIFEST_SCHEMA, SPLITS, Manifest, ManifestInfo, refuse_foreign, write_manifest
from pipeline.sources.masks import MASKS, masks_note
from pipeline.sources.pseudonyms import Names, names_of
from pipeline.sources.tables import text_of
from pipeline.storage.abilities import with_conditions
from pipeline.storage.lock import locked
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

EXAMPLES = f"""examples:
  leukoray ingest /data/smears --out out/manifest
  leukoray ingest /data/healthy /data/leukemia --out out/manifest
  leukoray ingest s3://lab/2026/ 'night_*.tar' --out s3://lab/manifests/2026
  leukoray ingest /data/cells --labels labels.csv --positive blast --subject-pattern '(P\\d+)_'

layouts, recognized by themselves or named with --layout:
{describe_layouts()}

Research software, not a medical device.
"""

_EXAMPLES_SHOWN = 5
_WRITING_S = 60.0  # for which another ingest into the same folder is waited for
_IF_LOCKED = "wait for it, or choose another --out"
_UNIT_UNKNOWN = (
    "nobody has said what an image shows: --unit cell (one white cell) or --unit field (many). A model of one says "
    "nothing of the other, which is only noticed where it is known"
)


class IngestConfig(LineageConfig):
    """List images into a manifest: one row an image, with class, subject and split where they are known."""

    source: list[str] = positional(
        min_length=1, description="folders, s3:// prefixes, tar/zip archives, globs, or tables of URIs"
    )
    out: str = Field("out/manifest", description="folder or s3:// prefix of the manifest")
    layout: str | None = Field(None, description="read paths as this layout (default: recognized)")
    positive: list[str] = Field([], description="classes that mean leukemia")
    negative: list[str] = Field([], description="classes that do not (default: all others, where --positive is given)")
    ignore: list[str] = Field([], description="classes that stay in the manifest, but in no split and no figure")
    classes: str | None = Field(
        None, description="YAML file: each class is positive, negative, ignore, or the name of the class it belongs to"
    )
    write_classes: str | None = Field(
        None, description="write such a file with all classes, to be edited, instead of a manifest"
    )
    subject_pattern: str | None = Field(None, description="regular expression whose first group is the subject")
    site_pattern: str | None = Field(None, description="regular expression whose first group is the site: a hospital")
    subject_blocks: int | None = Field(
        None, ge=1, description="this many consecutive file numbers of a class stand in for one subject"
    )
    labels: str | None = Field(
        None, description="CSV or Parquet, one row an image: path, label or class_name, subject_id, split, site, others"
    )
    subjects: str | None = Field(None, description="CSV or Parquet, one row a subject: subject_id, site, others")
    unit: Unit | None = Field(None, description="what an image shows: one white cell, or a field with many")
    subjects_shared: bool | None = Field(
        None, description="a subject's name that is in several folders is one person (--no-...: another one in each)"
    )
    contradictions: str | None = Field(
        None, description="contradictions.csv of an earlier manifest, with yes beside the labels that count"
    )
    near_copies: bool = Field(
        True, description="look for images that show the same, so that no split divides them; reads all labelled images"
    )
    split_rule: SplitRule = Field(
        "auto", description="what stays on one side of the split; auto is the layout's honest rule"
    )
    use: Use = Field("split", description="what the images are for; test puts all of them into the test split")
    fractions: list[float] = Field(
        list(FRACTIONS), min_length=3, max_length=3, description="shares of train, validation and test"
    )
    seed: int = Field(0, description="of the split")
    license: str = Field("", description="licence of the images, name or URL, for croissant.json (default: unknown)")
    include: list[str] = Field([], description="globs on path or file name: only these")
    exclude: list[str] = Field([], description="globs on path or file name: not these")
    since: str | None = Field(None, description="only files modified since: 2026-11-01, or an age such as 36h, 7d")
    limit: int | None = Field(None, ge=1, description="stop after this many images")


def main(config: IngestConfig) -> None:
    clock = Clock()
    stores = job_stores(config)
    names = names_of(stores)
    show_config(config, names)
    lineage.reads(lambda: of_sources(config.source, names))
    out = absolute(config.out)
    _refuse_source_as_out(out, config.source)
    refuse_foreign(out, stores)
    refuse_foreign_findings(out, stores)
    refuse_lost_answers(out, absolute(config.contradictions) if config.contradictions is not None else None, stores)
    filters = Filters(tuple(config.include), tuple(config.exclude), parse_since(config.since) if config.since else None)
    if config.write_classes is not None:
        _write_classes(config, filters, stores)
        return
    with recorded("ingest", config, stores) as kept, seen_on_cluster(config.address), measured.telling(out):
        draft = hidden(ingest(config.source, _options(config, stores), filters, stores, config.limit), names)
        print("\n".join(["", *_class_table(draft), ""]), flush=True)
        with locked(out, "ingest", with_conditions(stores, out), _WRITING_S, _IF_LOCKED) as check_lock:
            kept.begin(out)
            written = _write(out, draft, _info(draft, config, names), stores, check_lock)
            images, tally = draft.table.num_rows, draft.listing.tally
            counted = {"images": images, "left_out": sum(tally.left_out.values()), "problems": tally.problems}
            kept.keep(out, counted, manifest=written.info.digest)
            measured.written(written.info.counts.splits)
        lineage.reads(lambda: listed(draft, of_sources(config.source, names)))
        lineage.writes(lambda: [of_manifest(written)])
        print("\n".join(account(draft, written, clock.seconds)), flush=True)


def _write(
    out: str, draft: ManifestDraft, info: ManifestInfo, stores: Stores, check_lock: Callable[[], None]
) -> Manifest:  # fmt: skip
    """The manifest and what lies beside it."""
    written = write_manifest(out, [draft.table], info, stores)
    check_lock()
    write_croissant(written, stores)
    problems = [{**asdict(problem), "code": str(problem.code)} for problem in draft.listing.problems]
    stores.of(out).write(join(out, PROBLEMS), json.dumps(problems, indent=2).encode())
    write_findings(out, draft.alike, draft.split, draft.table, stores)
    check_lock()
    return written


def _write_classes(config: IngestConfig, filters: Filters, stores: Stores) -> None:
    """The classes of the sources with what is known of them, into a file that `--classes` reads."""
    path = Path(str(config.write_classes)).expanduser()
    if path.exists():
        raise UsageError(f"--write-classes {path}: is there already; name another file, or delete it")
    options = replace(_options(config, stores), classes=ClassRules(ignored=tuple(config.ignore)))
    rows = list_classes(config.source, options, filters, stores, config.limit)
    path.write_text(draft_of_rules(rows), encoding="utf-8")
    print(f"classes written to {path}; edit it, then give it back with --classes {path}", flush=True)


def _rules(config: IngestConfig, stores: Stores) -> ClassRules:
    rules = ClassRules(tuple(config.positive), tuple(config.negative), tuple(config.ignore))
    if config.classes is None:
        return rules
    where = absolute(config.classes)
    return ClassRules.from_yaml(text_of(stores.of(where).read(where).data), where).joined(rules)


def _options(config: IngestConfig, stores: Stores) -> IngestOptions:
    return IngestOptions(
        layout=config.layout,
        classes=_rules(config, stores),
        subject_pattern=config.subject_pattern,
        subject_blocks=config.subject_blocks,
        site_pattern=config.site_pattern,
        labels=config.labels,
        subjects=config.subjects,
        subjects_shared=config.subjects_shared,
        unit=config.unit,
        contradictions=config.contradictions,
        near_copies=config.near_copies,
        split_rule=config.split_rule,
        fractions=tuple(config.fractions),
        use=config.use,
        seed=config.seed,
        lists_part=bool(config.include or config.exclude or config.since or config.limit),
    )


def _refuse_source_as_out(out: str, sources: Sequence[str]) -> None:
    """A manifest replaces the parts of an older one in its folder: it must not share it with images."""
    for source in sources:
        if out == absolute(source):
            raise InputError(f"--out {out}: is the source itself; give the manifest a folder of its own")


def _info(draft: ManifestDraft, config: IngestConfig, names: Names) -> ManifestInfo:
    """What `manifest.json` says beside version, digest and number of images."""
    listing = draft.listing
    return ManifestInfo(
        source=[names.path(absolute(source)) for source in config.source],
        layout=draft.layout.name,
        labels_from=draft.labels_from,
        split_rule=draft.split.rule,
        split_reason=draft.split.reason,
        units=draft.units,
        unit=draft.unit,
        warnings=draft.warnings,
        synthetic=draft.is_synthetic,
        license=config.license,
        pseudonym_key_id=names.key_id,
        positive=draft.positive,
        ignored=draft.ignored,
        counts=counts(draft.table),
        contradictions=sum(map(len, draft.alike.contradictions)),
        near_copies=near_copy_counts(draft.alike, draft.split),
        bytes=listing.tally.bytes,
        left_out=listing.tally.left_out,
        problems=Counter(str(problem.code) for problem in listing.problems),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        leukoray=__version__,
        configuration=effective(config, names),
    )


# ---- what a person reads -----------------------------------------------------------------------------------


def account(draft: ManifestDraft, written: Manifest, seconds: float) -> list[str]:
    """The lines printed at the end."""
    listing, layout, split = draft.listing, draft.layout, draft.split
    rate = f"listed in {seconds:.1f} s"
    lines = [f"{draft.table.num_rows:,} images, {_size(listing.tally.bytes)}, {rate}", ""]
    if draft.is_synthetic:
        lines.insert(0, "SYNTHETIC images: figures made from them say nothing about real blood")
    lines += _field("layout", f"{layout.name}: {layout.title}")
    lines += _field("unit", DESCRIBED[draft.unit] if draft.unit else _UNIT_UNKNOWN)
    if draft.labels_from != "paths":
        lines += _field("labels", f"from {draft.labels_from}")
    lines += _columns(draft)
    lines += _field("split", split.reason)
    if draft.why:
        lines += _field("why", draft.why)
    lines += _left_out(draft)
    lines += _compared(draft)
    for warning in [*draft.warnings, *_scarcity(draft), *_fitness(draft)]:
        lines += _field("note", warning)
    lines += _field("manifest", written.uri)
    return lines


def _columns(draft: ManifestDraft) -> list[str]:
    """Sites, and what tables say beyond class, subject and split."""
    sites = Counter(draft.table["site"].drop_null().to_pylist())
    shown = ", ".join(f"{site} {count:,}" for site, count in sites.most_common(_EXAMPLES_SHOWN))
    more = f" and {len(sites) - _EXAMPLES_SHOWN} more" if len(sites) > _EXAMPLES_SHOWN else ""
    further = [field for field in draft.table.schema if field.name not in MANIFEST_SCHEMA.names]
    named = ", ".join(f"{field.name} ({field.type})" for field in further)
    lines = _field("sites", f"{len(sites)}: {shown}{more}") if sites else []
    return lines + (_field("columns", f"from tables: {named}") if further else [])


def _class_table(draft: ManifestDraft) -> list[str]:
    """Images of every class in every split, then subjects."""
    found = counts(draft.table)
    parts = [part for part in (*SPLITS, "none") if part in found.splits]
    words = {1: "positive", 0: "negative"}
    rows = [["class", "label", *("no split" if part == "none" else part for part in parts), "images"]]
    for name, of_class in found.classes.items():
        cells = [f"{of_class.get(part, 0):,}" for part in parts]
        said = "ignored" if name in draft.ignored else words.get(draft.positive.get(name, -1), "-")
        rows.append([name, said, *cells, f"{sum(of_class.values()):,}"])
    totals = [found.splits.get(part, 0) for part in parts]
    rows.append(["all", "", *(f"{total:,}" for total in totals), f"{sum(totals):,}"])
    if found.subjects:
        n_subjects = [found.subjects.get(part, 0) for part in parts]
        distinct = len(set(draft.table["subject_id"].drop_null().to_pylist()))
        rows.append([draft.units, "", *(f"{count:,}" for count in n_subjects), f"{distinct:,}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  " + "  ".join(_aligned(row, widths)) for row in rows]
    rule = "  " + "  ".join("-" * width for width in widths)
    body = len(found.classes) + 1
    return [lines[0], rule, *lines[1:body], rule, *lines[body:]]


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    return [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _left_out(draft: ManifestDraft) -> list[str]:
    tally, problems = draft.listing.tally, draft.listing.problems
    lines: list[str] = []
    if tally.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally.left_out.most_common())
        lines += _field("left out", f"{sum(tally.left_out.values()):,}: {reasons}")
    if tally.left_out[MASKS]:
        lines += _field("masks", masks_note(tally.left_out[MASKS], draft.listing.masks))
    if problems:
        codes = ", ".join(f"{count:,} {code}" for code, count in Counter(str(p.code) for p in problems).most_common())
        lines += _field("problems", f"{tally.problems:,} not in the manifest, see problems.json: {codes}")
        for problem in problems[:_EXAMPLES_SHOWN]:
            lines.append(f"            {problem.code}  {problem.place}: {problem.message}")
        if len(problems) > _EXAMPLES_SHOWN:
            lines.append(f"            and {len(problems) - _EXAMPLES_SHOWN:,} more")
    unread = Counter(p.message.partition(";")[0] for p in problems if p.code is Code.UNSUPPORTED_FORMAT)
    if unread:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in unread.most_common())
        lines += _field("NOT READ", f"{sum(unread.values()):,} files that hold images: {kinds}")
    return lines


def _compared(draft: ManifestDraft) -> list[str]:
    near = draft.alike.near
    if near is None or not near.compared:
        return []
    rate = f"{near.images_per_s:,.0f} images/s; --no-near-copies leaves it out"
    return _field("compared", f"{near.compared:,} labelled images with each other: {len(near.pairs):,} pairs ({rate})")


def _scarcity(draft: ManifestDraft) -> list[str]:
    """Classes with so few subjects or images in validation or test that no figure can be had of them."""
    names = ("split", "label", "class_name", "subject_id")
    rows = zip(*(draft.table[name].to_pylist() for name in names), strict=True)
    has_sides = set(draft.positive.values()) == {0, 1}
    images, units = dict[str, Counter[str]](), dict[str, dict[str, set[str]]]()
    for split, label, class_name, subject in rows:
        kind = {1: "positive", 0: "negative"}.get(label) if has_sides else class_name
        if split in ("validation", "test") and kind is not None:
            images.setdefault(split, Counter())[kind] += 1
            if subject is not None:
                units.setdefault(split, {}).setdefault(kind, set()).add(subject)
    few = []
    for split in sorted(images, key=SPLITS.index):
        counts = {kind: len(found) for kind, found in units.get(split, {}).items()}
        if found := few_of(dict(sorted(counts.items())), dict(sorted(images[split].items())), draft.units):
            few.append(f"{split} has {found}")
    return [f"few for a figure: {'; '.join(few)}; {what_is_enough(draft.units)}"] if few else []


def _fitness(draft: ManifestDraft) -> list[str]:
    """What this manifest is not good for."""
    if not draft.classes:
        return [
            "no labels: fine for scoring, training will refuse it; give --labels or one folder a class (names that are "
            "numbers or dates are taken for classes with --layout class-folders)"
        ]
    if len(draft.classes) == 1:
        return [f"one class only ({draft.classes[0]}): fine for scoring, training will refuse it"]
    if not draft.positive:
        return [
            "no class means leukemia or its absence: training will tell the classes apart; "
            "name the ones that do with --positive CLASS"
        ]
    if len(set(draft.positive.values())) == 1:
        missing = "negative" if 1 in draft.positive.values() else "positive"
        return [f"no class is {missing}: name it with --{missing} CLASS"]
    if unnamed := [name for name in draft.classes if name not in draft.positive and name not in draft.ignored]:
        return [f"{', '.join(unnamed)}: neither positive nor negative, left out where the two are told apart"]
    return []


def _field(name: str, text: str) -> list[str]:
    """`name` in a column of its own, `text` wrapped beside it; paths and URIs are never broken."""
    indent = " " * 12
    return textwrap.wrap(
        text,
        100,
        initial_indent=f"{name:<10}  ",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _size(n_bytes: int) -> str:
    value = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


command = job("ingest", IngestConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
