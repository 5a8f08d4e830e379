"""Who says how the images are split: the user's flags, else given splits of folders or a table, else the layout.

Takes annotations and paths, gives a `SplitResult` and the annotations with blocks kept apart by given splits.
"""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest import splits
from pipeline.ingest.annotate import IngestOptions
from pipeline.ingest.annotation import Annotation, normalize, units_of
from pipeline.ingest.class_folders import given_split
from pipeline.ingest.layouts import Layout
from pipeline.ingest.near_copies import joined
from pipeline.ingest.split_names import Split
from pipeline.ingest.splits import FRACTIONS, SplitResult, SplitRule
from pipeline.sources.manifest import SPLITS

_TEST_ONLY = (0.0, 0.0, 1.0)


def split_images(
    rows: Sequence[Annotation],
    paths: Sequence[str],
    alike: Sequence[Sequence[int]],
    layout: Layout,
    options: IngestOptions,
) -> tuple[SplitResult, list[Annotation]]:
    """The split, and the annotations as it takes them: blocks in several given splits are one block a split.

    Raises InputError for a subject on two sides and for parts that leave the split open, UsageError for flags that
    contradict each other or what is given.
    """
    given = [row.split for row in rows if row.is_used]
    if _is_test_only(given, options):
        names, subjects = _names(rows), [row.subject_id for row in rows]
        result = splits.all_test(names, subjects, units_of(rows))
        moved = sum(part not in (None, "test") for part in given)
        said = [f"{moved:,} images that the source gives for training are test here: --use test"] if moved else []
        return replace(result, warnings=said), list(rows)
    rule = _choose(given, any(row.subject_id for row in rows if row.is_used), layout, options)
    said = _about_given(given, rule, options)
    taken = list(rows)
    if rule == "given":
        said += _about_torn_blocks(rows, paths)
        taken = [_block_of_split(row) for row in rows]
    result = _assign(taken, paths, alike, rule, options)
    return replace(result, warnings=[*said, *result.warnings]), taken


def _names(rows: Sequence[Annotation]) -> list[str | None]:
    return [row.class_name if row.is_used else None for row in rows]


def _is_test_only(given: Sequence[Split | None], options: IngestOptions) -> bool:
    by_fractions = tuple(options.fractions) == _TEST_ONLY
    if options.use == "test" and (
        options.split_rule not in ("auto", "given") or not (by_fractions or options.fractions == FRACTIONS)
    ):
        raise UsageError("--use test puts all images into test; leave out --split-rule and --fractions")
    return options.use == "test" or by_fractions or (options.split_rule == "given" and set(given) == {"test"})


def _choose(given: Sequence[Split | None], has_subjects: bool, layout: Layout, options: IngestOptions) -> SplitRule:
    """The user's rule, else 'given' where folders or a table tell parts apart, else the layout's."""
    parts = set(given)
    if options.split_rule in ("auto", "given") and parts and parts <= {"validation", "test"}:
        named = " or ".join(sorted(map(repr, parts), reverse=True))
        raise InputError(
            f"every labelled image is in {named} by its folder or table: --use test makes a manifest for testing "
            "alone, --split-rule subjects (or images) splits them anew"
        )
    if options.split_rule != "auto":
        return options.split_rule
    if layout.split_rule in ("auto", "given"):
        return "given" if parts - {None} else layout.split_rule
    if len(parts) > 1:  # train beside nothing else says what is to be trained on, not what is kept apart
        return "given" if parts != {"train", None} else layout.split_rule
    return "subjects" if layout.split_rule == "images" and has_subjects else layout.split_rule


def _about_given(given: Sequence[Split | None], rule: SplitRule, options: IngestOptions) -> list[str]:
    """What becomes of given splits, and of fractions beside them. Raises UsageError for fractions without effect."""
    parts = [part for part in SPLITS if part in given]
    named = " and ".join(parts)
    if rule != "given":
        is_by_user = options.split_rule != "auto" and len(parts) > 1
        return [f"--split-rule {rule}: that folders or a table give {named} counts for nothing"] if is_by_user else []
    if options.fractions == FRACTIONS:
        return []
    wanted = {part for part, share in zip(SPLITS, options.fractions, strict=False) if share > 0}
    if wanted <= set(parts) or "train" not in parts:
        raise UsageError(
            f"--fractions has nothing to divide: {named} are given by folders or a table; leave it out, or split anew "
            "with --split-rule subjects (or images)"
        )
    kept = " and ".join(part for part in parts if part != "train")
    return [f"--fractions: {kept} stays as given; train is divided"] if kept else []


def _about_torn_blocks(rows: Sequence[Annotation], paths: Sequence[str]) -> list[str]:
    """Blocks whose images a table has put into several splits. Folders number their files anew, and tear nothing."""
    parts: dict[str, set[str]] = {}
    for row, path in zip(rows, paths, strict=True):
        is_by_table = row.split and given_split(normalize(path).rpartition("/")[0]) is None
        if is_by_table and row.is_block and row.is_used:
            parts.setdefault(str(row.subject_id), set()).add(str(row.split))
    torn = [block for block, found in parts.items() if len(found) > 1]
    if not torn:
        return []
    return [
        f"the given splits divide {len(torn):,} of {len(parts):,} blocks of consecutive file numbers: where a block is "
        f"one patient, figures are inflated, e.g. {torn[0]}"
    ]


def _block_of_split(row: Annotation) -> Annotation:
    return replace(row, subject_id=f"{row.split}-{row.subject_id}") if row.is_block and row.split else row


def _assign(
    rows: Sequence[Annotation],
    paths: Sequence[str],
    alike: Sequence[Sequence[int]],
    rule: SplitRule,
    options: IngestOptions,
) -> SplitResult:
    subjects = [row.subject_id for row in rows]
    group = joined(alike)
    is_by_site = rule == "sites"
    if is_by_site and not any(row.site for row in rows if row.is_used):
        raise UsageError("--split-rule sites: no site is known; give --site-pattern, or a table with a column 'site'")
    result = splits.assign_splits(
        _names(rows),
        [f"site {row.site}" if row.site else row.subject_id for row in rows] if is_by_site else subjects,
        [row.split for row in rows],
        keys=paths,
        groups=[group.get(row) for row in range(len(paths))],
        labels=[row.label for row in rows],
        fractions=options.fractions,
        seed=options.seed,
        rule="subjects" if is_by_site else rule,
        units="sites" if is_by_site else units_of(rows),
    )
    if is_by_site and result.rule == "subjects":
        result = replace(result, rule="sites")
    if result.rule != "images":
        splits.check_leaks(subjects, result.splits, keys=paths)
    return result
