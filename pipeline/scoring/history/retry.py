"""What an earlier run quarantined, to be tried again: images by id, and objects whose listing failed as a whole."""

from dataclasses import dataclass

from pipeline.base.errors import InputError, Stage
from pipeline.scoring.run_folder import RunFolder
from pipeline.sources.archives import holds_many
from pipeline.sources.pseudonyms import Names, RealNames


@dataclass(frozen=True)
class Retry:
    """`subjects`: the images, with the subject of each where it is known. `uris`: where they lie."""

    subjects: dict[int, str | None]
    uris: tuple[str, ...]
    unlisted: frozenset[str]  # objects that could not be listed to their end: what they hold is wanted as well

    def wants(self, image_id: int) -> bool:
        return image_id in self.subjects

    def may_want(self, uri: str) -> bool:
        """Whether an image there was perhaps never seen: its archive, folder or prefix failed."""
        return any(uri == place or uri.startswith(place.rstrip("/") + "/") for place in self.unlisted)


def read_retry(folder: RunFolder, names: Names = RealNames()) -> Retry:
    """Raises InputError where there is nothing to retry."""
    subjects: dict[int, str | None] = {}
    uris: dict[str, None] = {}
    unlisted: set[str] = set()
    for table in folder.rows("quarantine", ["image_id", "uri", "member", "stage", "subject_id"]):
        for row in table.to_pylist():
            subjects[row["image_id"]] = row["subject_id"]
            uri = names.real_path(row["uri"])
            uris[uri] = None
            if row["stage"] == Stage.LIST or holds_many(row["uri"], row["member"]):
                unlisted.add(uri)
    if not uris:
        raise InputError(f"{folder.uri}: no finished run with quarantined images here; nothing to retry")
    return Retry(subjects, tuple(sorted(uris)), frozenset(unlisted))
