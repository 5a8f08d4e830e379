"""A table of subjects (age, sex, hospital; one row each) joined to the images by the subject's id.

Ids are compared without regard to case, blanks, `_` and `-`; then, where that is unambiguous, by the number in them
('7' and 'Patient_07').
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.class_names import folded
from pipeline.ingest.further_columns import Column, further_columns
from pipeline.ingest.label_table import ALIASES, as_text, distinct, roles_of

_EXAMPLES = 3
# A number, alone or behind a word for 'patient': what is left of other ids means something.
_NUMBERED = re.compile(r"(?:patient|pat|pt|p|subject|subj|sub|s|case|donor|person|id)? ?0*(\d+)")


@dataclass(frozen=True)
class JoinedSubjects:
    """`sites` and the values of `further`: one an image, in order."""

    sites: list[str | None]
    further: list[Column]
    said: list[str]


def join_subjects(table: pa.Table, images: Sequence[Annotation], taken: Iterable[str]) -> JoinedSubjects:
    """What the table says of each image's subject, under names that are not `taken`.

    Raises InputError where it names no subject, contradicts itself, or fits none of the images, UsageError where the
    images have no subjects.
    """
    table = distinct(table)
    roles = roles_of(table, ("subject_id", "site"))
    if "subject_id" not in roles:
        have, known = ", ".join(table.column_names), ", ".join(ALIASES["subject_id"])
        raise InputError(f"the table of subjects has the columns {have}, none of which is a subject; call one {known}")
    subjects = sorted({row.subject_id for row in images if row.subject_id is not None and not row.is_block})
    if not subjects:
        raise UsageError(
            "--subjects: no subject of the images is known to join it by (blocks of file numbers are none); "
            "name them with --subject-pattern, or in a table of labels"
        )
    ids = [as_text(value) or "" for value in table[roles["subject_id"]].to_pylist()]
    row_of = _match(ids, subjects, table, roles["subject_id"])
    said = _about(ids, subjects, row_of)
    names = [name for name in table.column_names if name.strip() and name not in roles.values()]
    rows = [None if image.is_block else row_of.get(image.subject_id or "") for image in images]
    further = [column.at(rows) for column in further_columns(table, names, "subject", taken)]
    sites = table[roles["site"]].to_pylist() if "site" in roles else [None] * table.num_rows
    return JoinedSubjects([as_text(sites[row]) if row is not None else None for row in rows], further, said)


def _match(ids: Sequence[str], subjects: Sequence[str], table: pa.Table, column: str) -> dict[str, int]:
    """Subject -> row of the table, whose `column` holds `ids`. Raises InputError where two rows of one differ."""
    rows: dict[str, int] = {}
    for row, name in enumerate(map(folded, ids)):
        if name and (first := rows.setdefault(name, row)) != row:
            _refuse_contradiction(table.drop_columns(column), first, row, ids[row])
    found = {subject: rows[folded(subject)] for subject in subjects if folded(subject) in rows}
    numbers, taken = _by_number(rows), set(found.values())
    for number, subject in _by_number({s: s for s in subjects if s not in found}).items():
        if number in numbers and rows[numbers[number]] not in taken:
            found[subject] = rows[numbers[number]]
    return found


def _by_number(names: Iterable[str]) -> dict[str, str]:
    """The number of each name that is nothing but a numbered patient -> the name, of numbers that one name has."""
    of: dict[str, list[str]] = {}
    for name in names:
        if number := _NUMBERED.fullmatch(folded(name)):
            of.setdefault(number[1], []).append(name)
    return {number: found[0] for number, found in of.items() if len(found) == 1}


def _refuse_contradiction(table: pa.Table, first: int, row: int, subject: str) -> None:
    for name in table.column_names:
        if (one := table[name][first].as_py()) != (other := table[name][row].as_py()):
            raise InputError(
                f"the table of subjects has two rows for {subject!r} (rows {first} and {row}), which differ in "
                f"{name!r} ({one} and {other}); keep one row a subject"
            )


def _about(ids: Sequence[str], subjects: Sequence[str], row_of: Mapping[str, int]) -> list[str]:
    """Who found no partner, on either side. Raises InputError where half of the subjects did not."""
    bare = [subject for subject in subjects if subject not in row_of]
    used = set(row_of.values())
    lost = [name for row, name in enumerate(ids) if name and row not in used]
    said = []
    if bare:
        said.append(
            f"{len(bare):,} of {len(subjects):,} subjects have no row in the table of subjects, e.g. {_some(bare)}"
        )
    if lost:
        said.append(f"{len(lost):,} of {len(ids):,} rows of the table of subjects are of no image, e.g. {_some(lost)}")
    if 2 * len(bare) >= len(subjects):
        raise InputError(
            f"{'; '.join(said)}: the ids do not fit; name the subjects as the table does with --subject-pattern, or "
            "correct the table"
        )
    by_number = [(subject, ids[row]) for subject, row in row_of.items() if folded(subject) != folded(ids[row])]
    if by_number:
        subject, name = by_number[0]
        said.append(f"{len(by_number):,} subjects are found in the table by number, e.g. {subject!r} as {name!r}")
    return said


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_EXAMPLES]))
