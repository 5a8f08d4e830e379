"""What jobs read and write, as data sets of lineage: sources, manifests, models, runs of scoring, reports.

A data set keeps its name from night to night, and its version tells one writing from the next: a manifest's digest, a
model's version in the registry, a run's id.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from pipeline.base.lineage import Check, Dataset
from pipeline.base.record import INCOMPLETE
from pipeline.scoring.record import TOO_MANY_ERRORS
from pipeline.sources.pseudonyms import Names
from pipeline.storage.uris import absolute

if TYPE_CHECKING:
    from pipeline.ingest.draft import ManifestDraft
    from pipeline.model.bundle import Bundle
    from pipeline.scoring.run import Result
    from pipeline.sources.manifest import Manifest

_MEANING = b"meaning"


def of_sources(sources: Sequence[str], names: Names) -> list[Dataset]:
    return [Dataset(names.path(absolute(uri))) for uri in sources]


def of_manifest(manifest: "Manifest") -> Dataset:
    info = manifest.info
    return Dataset(manifest.uri, version=info.digest, rows=manifest.table.num_rows, synthetic=info.synthetic)


def of_model(bundle: "Bundle") -> Dataset:
    """By its name in the registry, where it lies in one."""
    info = bundle.info
    uri = bundle.uri.removesuffix("/" + info.version)
    return Dataset(uri, "MODEL", info.version, synthetic=info.synthetic)


def listed(draft: "ManifestDraft", sources: Sequence[Dataset]) -> list[Dataset]:
    """The sources of a manifest, with what was found in them where there is one: figures of several add up to more."""
    if len(sources) != 1:
        return list(sources)
    codes = Counter(str(problem.code) for problem in draft.listing.problems)
    rows = draft.table.num_rows + len(draft.listing.problems)
    return [Dataset(sources[0].uri, rows=rows, bytes=draft.listing.tally.bytes, codes=codes)]


def read_by(result: "Result", sources: Sequence[str]) -> list[Dataset]:
    """The sources of a run, with the reconciled counts where there is one of them."""
    run, counts = result.record, result.record.counts
    if len(sources) != 1:
        return [Dataset(uri) for uri in sources]
    listed, accounted = str(counts.listed), str(counts.scored + counts.quarantined + counts.skipped)
    most, share = f"at most {run.max_error_share:g}", f"{run.error_share:g}"
    checks = [
        Check("listed = scored + quarantined + skipped", listed == accounted, listed, accounted),
        Check("share newly quarantined", run.status != TOO_MANY_ERRORS, most, share),
        Check(
            "archives and folders that cannot be counted", not counts.uncounted, "0", str(counts.uncounted),
            run.status == INCOMPLETE,
        ),
    ]  # fmt: skip
    return [Dataset(sources[0], rows=counts.listed, bytes=run.bytes, codes=dict(counts.codes), checks=checks)]


def written_by(result: "Result") -> Dataset:
    """The predictions of a run: rows, bytes and columns of its files."""
    folder, run = result.folder, result.record
    files = folder.listed("predictions")
    columns: list[tuple[str, str, str]] = []
    if files:
        with folder.open(files[0]["name"]) as file:
            schema = pq.ParquetFile(file).schema_arrow
        columns = [(one.name, str(one.type), (one.metadata or {}).get(_MEANING, b"").decode()) for one in schema]
    return Dataset(
        folder.uri.rpartition("/")[0], version=run.run_id, rows=run.counts.scored,
        bytes=sum(item["bytes"] for item in files), files=len(files), columns=columns, synthetic=run.model.synthetic,
    )  # fmt: skip


def account_of(result: "Result") -> Mapping[str, object]:
    """The counts of a run as it reconciled them, for whoever knows them; all sources together."""
    counts = result.record.counts
    names = ("listed", "scored", "quarantined", "quarantined_again", "skipped", "deleted_at_source", "uncounted")
    told = {name: getattr(counts, name) for name in (*names, "out_of_distribution", "in_training")}
    return told | {
        "codes": dict(counts.codes), "skipped_reasons": dict(counts.skipped_reasons), "status": result.record.status,
        "run_id": result.record.run_id,
    }  # fmt: skip
