"""A drafted manifest under pseudonyms: subjects, and what sentences say of images and subjects.

Where images lie is hidden from the listing on; see `pipeline.sources.pseudonyms`.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pyarrow as pa

from pipeline.ingest.draft import ManifestDraft
from pipeline.sources.pseudonyms import Names

_NOT_A_PLACE = ("paths", "sidecars")


def hidden(draft: ManifestDraft, names: Names) -> ManifestDraft:
    """The same draft as outputs may show it."""
    if names.key_id is None:
        return draft
    at = draft.table.schema.get_field_index("subject_id")
    subjects = draft.table["subject_id"].to_pylist()
    column = pa.array([names.subject(subject) for subject in subjects], pa.string())
    labels_from = draft.labels_from if draft.labels_from in _NOT_A_PLACE else names.path(draft.labels_from)
    return replace(
        draft,
        table=draft.table.set_column(at, draft.table.schema.field(at), column),
        labels_from=labels_from,
        split=replace(draft.split, reason=_without(draft.split.reason, draft.listing.paths, subjects, names)),
        warnings=[_without(text, draft.listing.paths, subjects, names) for text in draft.warnings],
    )


def _without(text: str, paths: Sequence[str], subjects: Iterable[str | None], names: Names) -> str:
    """A sentence without its examples, which may be files and subjects that no image has, and without names."""
    text = text.partition(", e.g. ")[0]
    for subject in sorted({subject for subject in subjects if subject is not None and subject in text}, key=len)[::-1]:
        text = re.sub(rf"(?<!\w){re.escape(subject)}(?!\w)", str(names.subject(subject)), text)
    return names.scrubbed(text, [path for path in paths if posixpath.basename(path) in text])
