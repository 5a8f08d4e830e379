"""Which subject a path names: by the user's pattern, else by the layout that the paths have.

A bare name ('patient_01') carries the site that the path names; one that the layout tells also its folder, where
several folders have that name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.base.errors import InputError
from pipeline.ingest import layouts
from pipeline.ingest.annotation import subject_reader
from pipeline.ingest.layouts import GENERIC, Layout
from pipeline.ingest.subject_places import clash, is_bare, place_of, with_place

SAMPLE = 2000  # paths that decide the layout


@dataclass(frozen=True)
class SubjectPaths:
    """`layout` is what the paths were recognized as, 'flat' where they are nothing known."""

    layout: Layout
    pattern: Callable[[str], str | None] | None
    carries_place: bool = False  # also where the folder is no site by its name

    @classmethod
    def of(cls, paths: Sequence[str], pattern: str | None) -> "SubjectPaths":
        try:
            layout = layouts.recognize(paths) if paths else layouts.LAYOUTS["flat"]
        except InputError:  # several data sets side by side: fine for scoring, but their subjects stay unknown
            layout = layouts.LAYOUTS["flat"]
        if pattern:
            return cls(layout, subject_reader(pattern))
        return cls(layout, None, clash([layout.annotate(path) for path in paths], paths))

    def subject(self, path: str) -> str | None:
        if self.pattern is not None:
            return self._by_pattern(path, self.pattern(path))
        row = self.layout.annotate(path)
        if row.subject_id is None or self.layout.block_size is not None:  # blocks are made of labelled sets only
            return None
        place = place_of(path, row)
        is_carried = self.layout.name in GENERIC and (place.is_site or self.carries_place)
        return with_place(row.subject_id, place) if is_carried else row.subject_id

    def _by_pattern(self, path: str, subject: str | None) -> str | None:
        if subject is None or not is_bare(subject):
            return subject
        place = place_of(path, replace(self.layout.annotate(path), subject_id=subject))
        is_told = place.name in subject  # the pattern may take the site in
        return subject if is_told or not place.is_site else with_place(subject, place)
