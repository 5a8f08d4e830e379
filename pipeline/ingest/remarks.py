"""What a person should know of the layout, the labels and the copies of an ingested source, in sentences."""

from collections import Counter
from collections.abc import Sequence

from pipeline.base.errors import InputError
from pipeline.ingest.annotation import Annotation, normalize
from pipeline.ingest.class_names import common_label
from pipeline.ingest.layouts import GENERIC, Layout
from pipeline.ingest.split_names import unread_parts
from pipeline.ingest.splits import SplitResult


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
    named = ", ".join(parts)
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


def about_copies(copies: Sequence[Sequence[int]], annotations: Sequence[Annotation], result: SplitResult) -> list[str]:
    """How many images are there twice, and what the split and their labels make of that."""
    if not copies:
        return []
    n_images = sum(map(len, copies))
    torn = [rows for rows in copies if len({result.splits[row] for row in rows}) > 1]
    kept = "but the given splits tear them apart: figures are inflated" if torn else "kept on one side of the split"
    said = [f"{n_images} images are byte-identical to others ({len(copies)} groups of copies), {kept}"]
    if torn:
        said[0] += f" ({len(torn)} groups)"
    if mixed := [rows for rows in copies if len({annotations[row].class_name for row in rows}) > 1]:
        said.append(f"{len(mixed)} groups of copies are in several classes: their labels cannot all be right")
    return said
