"""A table of subjects (age, sex, hospital; one row each) joined to the images by the subject's id.

Ids are compared without regard to case, blanks, `_` and `-`; then, where that is unambiguous, by the number in them
('7' and 'Patient_07'). Where several sites count anew, the site tells whose row it is.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from pipeline.base.errors import InputError, UsageError
from pipeline.base.text import folded
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.further_columns import Column, further_columns
from pipeline.ingest.label_table import ALIASES, as_text, distinct, roles_of

Key = TypeVar("Key")
Value = TypeVar("Value")
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
    named = {row.subject_id: row.site for row in images if row.subject_id is not None and not row.is_block}
    subjects = dict(sorted(named.items()))
    if not subjects:
        raise UsageError(
            "--subjects: no subject of the images is known to join it by (blocks of file numbers are none); "
            "name them with --subject-pattern, or in a table of labels"
        )
    ids = [as_text(value) or "" for value in table[roles["subject_id"]].to_pylist()]
    sites = table[roles["site"]].to_pylist() if "site" in roles else [None] * table.num_rows
    of_row = [as_text(site) for site in sites]
    names = [name for name in table.column_names if name.strip() and name not in roles.values()]
    _check_rows(ids, of_row, table.select(names))
    row_of = _match(ids, of_row, subjects)
    said = _about(ids, list(subjects), row_of)
    rows = [None if image.is_block else row_of.get(image.subject_id or "") for image in images]
    further = [column.at(rows) for column in further_columns(table, names, "subject", taken)]
    return JoinedSubjects([of_row[row] if row is not None else None for row in rows], further, said)


def _match(ids: Sequence[str], sites: Sequence[str | None], subjects: Mapping[str, str | None]) -> dict[str, int]:
    """Subject -> row of the table, whose rows have `ids` and `sites`. `subjects` -> their sites.

    By site and id where the table has both, else by the id, else by its number: each where that is one row and one
    subject.
    """
    rows = {_full(site, name): row for row, (name, site) in enumerate(zip(ids, sites, strict=True)) if name}
    found: dict[str, int] = {}
    for subject, site in subjects.items():
        row = rows.get(folded(subject), rows.get(_full(site, _bare(subject))))
        if row is not None:
            found[subject] = row
    left = _alone((folded(_bare(subject)), subject) for subject in subjects if subject not in found)
    free = _alone((folded(ids[row]), row) for row in rows.values() if row not in found.values())
    found |= {subject: free[name] for name, subject in left.items() if name in free}
    numbers = _alone((_number(name), subject) for name, subject in left.items() if subject not in found)
    by_number = _alone((_number(name), row) for name, row in free.items())
    taken = set(found.values())
    return found | {
        subject: by_number[number]
        for number, subject in numbers.items()
        if number and number in by_number and by_number[number] not in taken
    }


def _full(site: str | None, name: str) -> str:
    return folded(f"{site}/{name}" if site else name)


def _bare(subject: str) -> str:
    """Without the place that was put before it, because others have the same number ('siteA/patient_01')."""
    place, _, name = subject.rpartition("/")
    return name if any(letter.isalpha() for letter in place) else subject


def _number(name: str) -> str | None:
    """Of a name that is nothing but a numbered patient."""
    found = _NUMBERED.fullmatch(name)
    return found[1] if found else None


def _alone(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, Value]:
    """Keys that stand before one value only."""
    found: dict[Key, list[Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return {key: values[0] for key, values in found.items() if len(values) == 1}


def _check_rows(ids: Sequence[str], sites: Sequence[str | None], table: pa.Table) -> None:
    """Raise InputError where two rows of one subject differ."""
    rows: dict[str, int] = {}
    for row, (name, site) in enumerate(zip(ids, sites, strict=True)):
        if name and (first := rows.setdefault(_full(site, name), row)) != row:
            _refuse_contradiction(table, first, row, name)


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
    spelled = ((subject, ids[row], {folded(subject), folded(_bare(subject))}) for subject, row in row_of.items())
    by_number = [(subject, name) for subject, name, spellings in spelled if folded(name) not in spellings]
    if by_number:
        subject, name = by_number[0]
        said.append(f"{len(by_number):,} subjects are found in the table by number, e.g. {subject!r} as {name!r}")
    return said


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_EXAMPLES]))
