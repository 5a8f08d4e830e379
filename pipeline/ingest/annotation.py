"""What is known of one image (`Annotation`), what its path alone can tell, and the user's own words on top.

Takes and gives plain strings and Annotations, one a path; no I/O. The naming habits of known data sets are in
`layouts`, labels from a table in `label_table`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.base.errors import UsageError
from pipeline.ingest.split_names import Split
from pipeline.sources.rows import NESTED


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is known of one image. `label`: 1 positive, 0 negative, None unknown."""

    class_name: str | None = None
    label: int | None = None
    subject_id: str | None = None
    split: Split | None = None
    is_ignored: bool = False  # of a class that the user wants in no split and no figure
    site: str | None = None  # hospital or laboratory
    is_contradicted: bool = False  # the same bytes are under another label, and nobody has said which counts
    is_block: bool = False  # `subject_id` is a block of consecutive file numbers, which only stands in for a subject

    @property
    def is_used(self) -> bool:
        """In splits and figures."""
        return self.class_name is not None and not self.is_ignored and not self.is_contradicted


UNKNOWN = Annotation()
_HERE = re.compile(r"(?:(?<=/)|^)(?:\.?/+)+")  # the tar of a folder writes ./a/b


def normalize(path: str) -> str:
    """The path with archive members written as if the archive were a folder, its own way of writing them undone."""
    if NESTED in path:
        path = path.replace(NESTED, "/").replace("\\", "/")  # zips of old Windows programs
    return _HERE.sub("", path) if "./" in path else path.lstrip("/")


def block_id(path: str, annotation: Annotation, size: int) -> str | None:
    """'Early-block-003' for the file number 73 to 108 of a class at size 36; None without a number.

    Folders are left out on purpose: an original and its segmented copy share class and number, and must stay
    together.
    """
    *folders, name = path.split("/")
    stem = re.sub(r" ?\(\d+\)$", "", name.rpartition(".")[0] or name)  # 'cell_7 (1).bmp' is a copy of number 7
    stem = re.sub(r"^(Im\d{3,})_[01]$", r"\1", stem, flags=re.IGNORECASE)  # ALL-IDB ends names with the label
    numbers = re.findall(r"\d+", stem)
    if not numbers:
        return None
    group = annotation.class_name or (folders[-1] if folders else "unlabelled")
    return f"{group}-block-{(int(numbers[-1]) - 1) // size + 1:03d}"


def units_of(annotations: Iterable[Annotation]) -> str:
    """What their subjects are: 'subjects', or 'blocks' as soon as some only stand in for one."""
    return "blocks" if any(row.is_block for row in annotations) else "subjects"


def with_subjects(
    annotations: Sequence[Annotation],
    paths: Sequence[str],
    *,
    subject_pattern: str | None = None,
    subject_blocks: int | None = None,
) -> list[Annotation]:
    """The annotations with what the user says of subjects, in the order of `paths`.

    `subject_pattern`: a regular expression searched in the path, whose group 'subject' or first group is the subject.
    `subject_blocks`: N consecutive file numbers of a class are a subject.
    """
    result = list(annotations)
    if subject_pattern is not None and subject_blocks is not None:
        raise UsageError("--subject-pattern and --subject-blocks both say what a subject is; give one of them")
    if subject_pattern is not None:
        return _with_pattern(result, paths, subject_pattern)
    if subject_blocks is not None:
        if known := next((a.subject_id for a in annotations if a.subject_id and not a.is_block), None):
            raise UsageError(
                f"--subject-blocks would replace the subjects that names or a table tell ({known}, ...), and let one "
                "subject fall on two sides; leave it out"
            )
        return _with_blocks(result, paths, subject_blocks)
    return result


def subject_reader(pattern: str) -> Callable[[str], str | None]:
    """What reads the subject from a path: the group 'subject' or first group of a regular expression.

    Raises UsageError for a pattern that is no such expression.
    """
    return _reader(pattern, "subject", r"'(?P<subject>P\d+)_'")


def _reader(pattern: str, what: str, example: str) -> Callable[[str], str | None]:
    flag = f"--{what}-pattern '{pattern}'"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{flag} is not a regular expression: {error}") from error
    if not compiled.groups:
        raise UsageError(f"{flag} has no group; put parentheses around the {what}, e.g. {example}")
    group: str | int = what if what in compiled.groupindex else 1

    def read(path: str) -> str | None:
        found = compiled.search(normalize(path))
        return (found[group] or None) if found else None

    return read


def with_sites(annotations: Sequence[Annotation], paths: Sequence[str], pattern: str) -> list[Annotation]:
    """The annotations with the site that each path names: group 'site' or first group of a regular expression.

    What a path does not name stays as it was. Raises UsageError for no such expression, or one that finds nothing.
    """
    read = _reader(pattern, "site", r"'(?P<site>site[A-Z])/'")
    sites = [read(path) for path in paths]
    if annotations and not any(sites):
        raise UsageError(f"--site-pattern '{pattern}' finds a site in no path, e.g. not in '{paths[0]}'")
    return [replace(a, site=site or a.site) for a, site in zip(annotations, sites, strict=True)]


def _with_pattern(annotations: list[Annotation], paths: Sequence[str], pattern: str) -> list[Annotation]:
    read = subject_reader(pattern)
    subjects = [read(path) for path in paths]
    if annotations and not any(subjects):
        raise UsageError(f"--subject-pattern '{pattern}' finds a subject in no path, e.g. not in '{paths[0]}'")
    return [replace(a, subject_id=subject, is_block=False) for a, subject in zip(annotations, subjects, strict=True)]


def _with_blocks(annotations: list[Annotation], paths: Sequence[str], size: int) -> list[Annotation]:
    if size < 1:
        raise UsageError(f"--subject-blocks must be at least 1, got {size}")
    blocks = [block_id(normalize(path), a, size) for path, a in zip(paths, annotations, strict=True)]
    if annotations and not any(blocks):
        raise UsageError(f"--subject-blocks needs numbers in the file names; there is none in e.g. '{paths[0]}'")
    return [
        replace(a, subject_id=block, is_block=block is not None) for a, block in zip(annotations, blocks, strict=True)
    ]
