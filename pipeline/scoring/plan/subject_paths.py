"""Which subject a path names: by the user's pattern, else by the layout that the paths have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.base.errors import InputError
from pipeline.ingest import layouts
from pipeline.ingest.annotation import subject_reader
from pipeline.ingest.layouts import Layout

SAMPLE = 2000  # paths that decide the layout


@dataclass(frozen=True)
class SubjectPaths:
    """`layout` is what the paths were recognized as, 'flat' where they are nothing known."""

    layout: Layout
    pattern: Callable[[str], str | None] | None

    @classmethod
    def of(cls, paths: Sequence[str], pattern: str | None) -> "SubjectPaths":
        try:
            layout = layouts.recognize(paths) if paths else layouts.LAYOUTS["flat"]
        except InputError:  # several data sets side by side: fine for scoring, but their subjects stay unknown
            layout = layouts.LAYOUTS["flat"]
        return cls(layout, subject_reader(pattern) if pattern else None)

    def subject(self, path: str) -> str | None:
        if self.pattern is not None:
            return self.pattern(path)
        names_subjects = self.layout.block_size is None  # blocks are made of labelled sets only
        return self.layout.annotate(path).subject_id if names_subjects else None
