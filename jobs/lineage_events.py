"""Events as openlineage-python has them: data sets by their place, counts as data-quality facets.

Takes `pipeline.base.lineage.Step`; the facets are those of https://openlineage.io/docs/spec/facets, and the custom
`leukoray_account` of the run: the job's own counts. Imported only where lineage was asked for.
"""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    BaseFacet,
    data_quality_assertions_dataset,
    data_quality_metrics_dataset,
    data_quality_metrics_input_dataset,
    dataset_type_dataset,
    dataset_version_dataset,
    documentation_job,
    error_message_run,
    input_statistics_input_dataset,
    job_type_job,
    output_statistics_output_dataset,
    parent_run,
    processing_engine_run,
    schema_dataset,
    tags_dataset,
)
from openlineage.client.naming.dataset import S3, LocalFileSystem
from openlineage.client.serde import Serde
from openlineage.client.transport import HttpConfig, HttpTransport, Transport
from openlineage.client.transport.http import create_token_provider
from openlineage.client.uuid import generate_new_uuid

from pipeline import __version__
from pipeline.base.lineage import Dataset, Step
from pipeline.storage.uris import is_hidden, is_s3, local_path

PRODUCER = f"urn:leukoray:{__version__}"
NAMESPACE = "leukoray"  # of the jobs, where $OPENLINEAGE_NAMESPACE names none
_ANSWER_S = 5.0
_RETRIES = {"total": 2, "read": 2, "connect": 2}
_Facets = dict[str, Any]


def teller(job: str, description: str, place: str | None) -> Callable[[Step], None]:
    """What sends a step of one run. `place`: a file, an address, or None for the library's own configuration."""
    client = OpenLineageClient() if place is None else OpenLineageClient(transport=_transport(place))
    namespace, run_id = os.environ.get("OPENLINEAGE_NAMESPACE") or NAMESPACE, str(generate_new_uuid())
    return lambda step: client.emit(event(step, Job(namespace, job, _job_facets(description)), run_id))


def _transport(place: str) -> Transport:
    parts = urlsplit(place)
    if parts.scheme not in ("http", "https"):
        return _Lines(Path(local_path(place)).expanduser())
    key = os.environ.get("OPENLINEAGE_API_KEY")
    auth = create_token_provider({"type": "api_key", "apiKey": key} if key else {})
    config = HttpConfig(url=place, timeout=_ANSWER_S, auth=auth, retry=HttpConfig("").retry | _RETRIES)
    if not place.endswith("/") and parts.path:  # the whole address, not where the interface begins
        config.endpoint = parts.path
    return HttpTransport(config)


class _Lines(Transport):
    """JSON lines of one file. A line is one write, so that jobs may share it; the library's own writes it in pieces."""

    kind = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def emit(self, event: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = (Serde.to_json(event) + "\n").encode()
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)


def event(step: Step, job: Job, run_id: str) -> RunEvent:
    """One event of one run."""
    return RunEvent(
        eventType=RunState[step.state],
        eventTime=step.time.isoformat(),
        producer=PRODUCER,
        run=Run(run_id, _run_facets(step)),
        job=job,
        inputs=[_input(one) for one in step.inputs],
        outputs=[_output(one) for one in step.outputs],
    )


def _job_facets(description: str) -> _Facets:
    return {
        "jobType": job_type_job.JobTypeJobFacet("BATCH", "LEUKORAY", "JOB", producer=PRODUCER),
        "documentation": documentation_job.DocumentationJobFacet(description, producer=PRODUCER),
    }


def _run_facets(step: Step) -> _Facets:
    facets: _Facets = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            __version__, "leukoray", __version__, producer=PRODUCER
        )
    }
    if step.error:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(step.error, "PYTHON", producer=PRODUCER)
    if step.account:
        facets["leukoray_account"] = BaseFacet(producer=PRODUCER).with_additional_properties(**step.account)
    if parent := _parent(os.environ.get("OPENLINEAGE_PARENT_ID", "")):
        facets["parent"] = parent
    return facets


def _parent(given: str) -> parent_run.ParentRunFacet | None:
    """Of a scheduler's `NAMESPACE/NAME/RUN`, as its integrations hand it over; None for anything else."""
    namespace, _, rest = given.partition("/")
    name, _, run_id = rest.rpartition("/")
    try:
        uuid.UUID(run_id)
    except ValueError:
        return None
    return parent_run.ParentRunFacet(parent_run.Run(run_id), parent_run.Job(namespace, name), producer=PRODUCER)


def _place(uri: str) -> tuple[str, str]:
    """(namespace, name) by https://openlineage.io/docs/spec/naming; pseudonyms have a namespace of their own."""
    if is_hidden(uri):
        return "hidden", uri
    if is_s3(uri):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        named: S3 | LocalFileSystem = S3(bucket, key or "/")
    else:
        named = LocalFileSystem(uri)
    return named.get_namespace(), named.get_name()


def _facets(one: Dataset) -> _Facets:
    facets: _Facets = {"datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(one.kind, producer=PRODUCER)}
    if one.version:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(one.version, producer=PRODUCER)
    if one.columns:
        fields = [schema_dataset.SchemaDatasetFacetFields(*column) for column in one.columns]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields, producer=PRODUCER)
    if one.synthetic:
        tag = tags_dataset.TagsDatasetFacetFields("synthetic", "true", "LEUKORAY")
        facets["tags"] = tags_dataset.TagsDatasetFacet([tag], producer=PRODUCER)
    return facets


def _input(one: Dataset) -> InputDataset:
    facets: _Facets = {}
    if one.rows is not None:
        facets["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            one.rows, one.bytes, one.files, producer=PRODUCER
        )
        kind = data_quality_metrics_input_dataset
        facets["dataQualityMetrics"] = kind.DataQualityMetricsInputDatasetFacet(
            _columns(one, kind.ColumnMetrics), one.rows, one.bytes, one.files, producer=PRODUCER
        )
    if one.checks or one.codes:
        facets["dataQualityAssertions"] = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
            _assertions(one), producer=PRODUCER
        )
    return InputDataset(*_place(one.uri), facets, facets=_facets(one))


def _output(one: Dataset) -> OutputDataset:
    facets: _Facets = {}
    of_all = _facets(one)
    if one.rows is not None:
        facets["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            one.rows, one.bytes, one.files, producer=PRODUCER
        )
        kind = data_quality_metrics_dataset
        of_all["dataQualityMetrics"] = kind.DataQualityMetricsDatasetFacet(
            _columns(one, kind.ColumnMetrics), one.rows, one.bytes, one.files, producer=PRODUCER
        )
    return OutputDataset(*_place(one.uri), facets, facets=of_all)


def _columns(one: Dataset, metrics: Callable[..., Any]) -> dict[str, Any]:
    """The column `code` says why a row was refused, and is null for all others."""
    if not one.codes:
        return {}
    refused = sum(one.codes.values())
    return {"code": metrics(count=refused, nullCount=(one.rows or 0) - refused, distinctCount=len(one.codes))}


def _assertions(one: Dataset) -> list[data_quality_assertions_dataset.Assertion]:
    kind = data_quality_assertions_dataset.Assertion
    held = [
        kind("row_count", check.holds, name=check.name, expected=check.expected, actual=check.actual,
             severity="error" if check.is_fatal else "warn")
        for check in one.checks
    ]  # fmt: skip
    return held + [
        kind("accepted_values", False, column="code", name=code, expected="0", actual=str(count), severity="warn")
        for code, count in sorted(one.codes.items())
    ]
