"""What a person should know of the layout, the labels and the copies of an ingested source, in sentences."""

from collections import Counter
from collections.abc import Sequence

from pipeline.base.errors import InputError
from pipeline.ingest.annotation import Annotation, normalize
from pipeline.ingest.class_names import common_label
from pipeline.ingest.contradictions import CONTRADICTIONS
from pipeline.ingest.layouts import GENERIC, Layout
from pipeline.ingest.near_copies import NearCopies, Pair
from pipeline.ingest.near_copies_files import NEAR_COPIES_SHEET, NEAR_COPIES_TABLE
from pipeline.ingest.split_names import unread_parts
from pipeline.ingest.splits import SplitResult

_EXAMPLES = 3
_PARTS_NAMED = 12
_NAMED = 5  # sites in a sentence


def about_layout(
    layout: Layout, paths: Sequence[str], *, forced: bool, subject_pattern: str | None, subject_blocks: int | None
) -> list[str]:
    """What to know of the layout, as far as the user's own words have not replaced it."""
    if forced and layout.name not in GENERIC and not layout.matches(paths):
        return [f"--layout {layout.name} fits none of the {len(paths)} names (it expects e.g. {layout.example})"]
    caveats = list(layout.caveats)
    if subject_blocks:
        caveats.append(f"blocks of {subject_blocks} file numbers only stand in for subjects")
    return caveats + ([] if subject_pattern or subject_blocks else list(layout.subject_caveats))


def about_parts(paths: Sequence[str]) -> list[str]:
    """Folders that may be parts kept apart. Raises InputError where others beside them are known to be."""
    parts, others_are_named = unread_parts([normalize(path).rpartition("/")[0] for path in paths])
    if not parts:
        return []
    more = len(parts) - _PARTS_NAMED
    named = ", ".join(parts[:_PARTS_NAMED]) + (f" and {more} more" if more > 0 else "")
    if others_are_named:
        raise InputError(
            f"{named}: beside folders of train, validation or test, but which of them is not said; rename it, give a "
            "table with a column 'split' (--labels), or say --split-rule subjects or images to split all anew"
        )
    return [
        f"{named.upper()}: IF ONE OF THESE FOLDERS IS A TEST SET KEPT APART, IT IS MIXED INTO TRAINING HERE; rename it "
        "to 'test', give a table with a column 'split' (--labels), or leave it out (--exclude)"
    ]


def about_labels(annotations: Sequence[Annotation]) -> list[str]:
    """Labels that contradict each other or the name of their class."""
    sides = Counter((row.class_name, row.label) for row in annotations if row.class_name and row.label is not None)
    warnings = []
    for name in sorted({str(name) for name, _ in sides}):
        ones, zeros, usual = sides[name, 1], sides[name, 0], common_label(name)
        if ones and zeros:
            warnings.append(f"images of class {name} are labelled positive ({ones}) and negative ({zeros})")
        elif usual is not None and sides[name, 1 - usual]:
            warnings.append(
                f"images of class {name} are labelled {'positive' if ones else 'negative'} ({ones or zeros})"
            )
    return [f"{warning}: check the labels, or is the class a kind of cell?" for warning in warnings]


def about_sites(annotations: Sequence[Annotation]) -> list[str]:
    """That the site tells the label, where it does: the commonest way to learn something else than the disease."""
    sites = {label: {row.site for row in annotations if row.is_used and row.label == label} for label in (0, 1)}
    if None in sites[0] | sites[1] or not (sites[0] and sites[1]) or sites[0] & sites[1]:
        return []
    ones, zeros = (", ".join(sorted(map(str, sites[label]))[:_NAMED]) for label in (1, 0))
    return [
        f"the site tells the label: all positive images are of {ones}, all negative ones of {zeros}; a model may learn "
        "the site (its stain, its camera) and not the disease"
    ]


def about_copies(
    copies: Sequence[Sequence[int]], contradictions: Sequence[Sequence[int]], result: SplitResult
) -> list[str]:
    """How many images are there twice, and what the split and their labels make of that."""
    if not copies:
        return []
    n_images = sum(map(len, copies))
    torn = [rows for rows in copies if len({result.splits[row] for row in rows}) > 1]
    kept = "but the given splits tear them apart: figures are inflated" if torn else "kept on one side of the split"
    if result.rule == "test":
        kept = "each of which counts as an image of its own"
    said = [f"{n_images} images are byte-identical to others ({len(copies)} groups of copies), {kept}"]
    if torn:
        said[0] += f" ({len(torn)} groups)"
    if contradictions:
        said.append(
            f"{sum(map(len, contradictions))} of them ({len(contradictions)} groups) are under more than one label "
            f"and in no split; say in {CONTRADICTIONS} which label counts, and give it back with --contradictions"
        )
    return said


def about_near_copies(
    found: NearCopies | None, annotations: Sequence[Annotation], result: SplitResult, paths: Sequence[str]
) -> list[str]:
    """What comparing the images has shown, and what the split makes of it."""
    if found is None and result.rule == "test":  # there are no sides, and who measures has set no flag
        return ["near copies were not looked for: each copy of an image counts as an image of its own"]
    if found is None:
        return ["near copies were not looked for (--no-near-copies): the same image may be on both sides of the split"]
    said = []
    if found.unread:
        said.append(f"{found.unread} labelled images cannot be read: they were not compared, and training skips them")
    if found.dropped:
        said.append(
            f"{found.dropped} images look alike in one chain: a set so uniform cannot be compared by looks, so these "
            "were not taken for copies; copies among them may be on both sides"
        )
    if not found.pairs:
        return said
    torn = torn_pairs(found.pairs, result)
    kept = "kept on one side of the split" if any(result.splits) else "to be kept together"
    if torn:
        examples = "; ".join(
            f"{paths[pair.first]} ({result.splits[pair.first]}) and {paths[pair.second]} ({result.splits[pair.second]})"
            for pair in torn[:_EXAMPLES]
        )
        kept = (
            f"BUT THE GIVEN SPLITS TEAR {len(torn)} PAIRS APART: figures are inflated; see {NEAR_COPIES_SHEET}, "
            f"e.g. {examples}"
        )
    n_images = sum(map(len, found.groups))
    said.append(f"{n_images} images show what another one shows ({len(found.pairs)} pairs of near copies), {kept}")
    for what, values in (
        ("classes", [row.class_name for row in annotations]),
        ("subjects", [row.subject_id for row in annotations]),
    ):
        apart = [pair for pair in found.pairs if values[pair.first] != values[pair.second]]
        if apart:
            said.append(f"{len(apart)} pairs of near copies are of different {what}: see {NEAR_COPIES_TABLE}")
    return said


def torn_pairs(pairs: Sequence[Pair], result: SplitResult) -> list[Pair]:
    """The pairs that a split divides."""
    splits = result.splits
    return [
        pair
        for pair in pairs
        if None not in (splits[pair.first], splits[pair.second]) and splits[pair.first] != splits[pair.second]
    ]
