"""Subjects of one bare name in several places: siteA/patient_01 and siteB/patient_01 are hardly one person.

A bare name is a number that starts anew in each place ('patient_01'); a long number or a name of letters is a person's
own. Takes paths relative to the source root, gives names that carry the site. Pure functions over strings.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.base.errors import InputError
from pipeline.base.text import folded
from pipeline.ingest.annotation import Annotation, normalize
from pipeline.ingest.class_folders import telling_folders

_BARE_DIGITS = 4
# Folders that are hospitals or laboratories by their names.
_SITE = re.compile(
    r"(?:site|hospital|hosp|clinic|centre|center|lab|laboratory|institute|institution|university|ward)"
    r"(?:[-_ ].+|\d+|[a-z])?",
    re.IGNORECASE,
)
_NAMED = 3


@dataclass(frozen=True)
class Place:
    """Where a subject's folder, or its files, lie: `name` below the source, '' for the source itself."""

    name: str
    is_site: bool  # by its name, or by what a pattern or a table says


def place_of(path: str, row: Annotation) -> Place:
    """By the site that is known, else by the folders above the subject, but for those of class and split."""
    if row.site is not None:
        return Place(row.site, True)
    folders = telling_folders(normalize(path).rpartition("/")[0])
    if row.subject_id in folders:
        folders = folders[: folders.index(row.subject_id)]
    above = [name for name in folders if name != row.class_name]
    site = next((name for name in above if _SITE.fullmatch(name)), None)
    return Place(site, True) if site is not None else Place("/".join(above), False)


def is_bare(subject: str) -> bool:
    """Whether a name is a number that another place may have given as well."""
    return 0 < sum(letter.isdigit() for letter in subject) <= _BARE_DIGITS


def with_place(subject: str, place: Place) -> str:
    return f"{place.name}/{subject}" if place.name and is_bare(subject) else subject


def told_apart(
    rows: Sequence[Annotation], paths: Sequence[str], shared: bool | None
) -> tuple[list[Annotation], list[str]]:
    """The rows with subjects that carry their place where bare names are in several; and what was done, in sentences.

    `shared`: whether a name is one person everywhere; None where nobody has said. Then sites keep their subjects apart,
    and for other folders InputError asks.
    """
    places = _places(rows, paths)
    clashes = _clashes(rows, places)
    if not clashes:
        return list(rows), []
    example = next(iter(clashes))
    named = " and ".join(place.name or "the source itself" for place in clashes[example][:_NAMED])
    found = f"{len(clashes)} subject names are in several places, e.g. {example} in {named}"
    if shared:
        return list(rows), [f"one person each (--subjects-shared): {found}"]
    if shared is None and not all(place.is_site for several in clashes.values() for place in several):
        raise InputError(
            f"{found}: the same person, or another one in each? --subjects-shared takes them for one person, "
            "--no-subjects-shared keeps them apart, --site-pattern REGEX says which folder is the site"
        )
    result = [
        row if place is None or row.subject_id is None else replace(row, subject_id=with_place(row.subject_id, place))
        for row, place in zip(rows, places, strict=True)
    ]
    return result, [f"taken for different people, whose names now carry the place: {found}; else say --subjects-shared"]


def about_both_labels(rows: Sequence[Annotation], paths: Sequence[str]) -> list[str]:
    """Names whose folders lie below classes of disease and of health: one person with both, or two people?"""
    labels: dict[str, set[int]] = {}
    folders: dict[str, set[str]] = {}
    for path, row in zip(paths, rows, strict=True):
        subject = row.subject_id
        if subject is not None and not row.is_block and row.label is not None and is_bare(subject):
            above, found, _ = normalize(path).partition(f"/{subject.rpartition('/')[2]}/")
            labels.setdefault(subject, set()).add(row.label)
            folders.setdefault(subject, set()).add(above if found else "")
    both = sorted(subject for subject, found in labels.items() if len(found) > 1 and len(folders[subject]) > 1)
    if not both:
        return []
    return [
        f"{len(both)} subjects are in folders of positive and of negative classes, and are kept together as one person "
        f"each: if they are different people, name them apart with --subject-pattern, e.g. {both[0]}"
    ]


def clash(rows: Sequence[Annotation], paths: Sequence[str]) -> bool:
    """Whether a bare name is in several places."""
    return bool(_clashes(rows, _places(rows, paths)))


def _places(rows: Sequence[Annotation], paths: Sequence[str]) -> list[Place | None]:
    """None where a name cannot clash."""
    may = (row.subject_id is not None and not row.is_block and is_bare(row.subject_id) for row in rows)
    return [place_of(path, row) if bare else None for path, row, bare in zip(paths, rows, may, strict=True)]


def _clashes(rows: Sequence[Annotation], places: Sequence[Place | None]) -> Mapping[str, list[Place]]:
    """Subject -> its places, of those that have several; spelling twins are one."""
    found: dict[str, dict[str, Place]] = {}
    spelling: dict[str, str] = {}
    for row, place in zip(rows, places, strict=True):
        if row.subject_id is not None and place is not None:
            key = folded(row.subject_id)
            spelling.setdefault(key, row.subject_id)
            found.setdefault(key, {}).setdefault(folded(place.name), place)
    return {spelling[key]: list(several.values()) for key, several in sorted(found.items()) if len(several) > 1}
