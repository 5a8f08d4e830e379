"""The options of `leukoray doctor`, which all of its checks take."""

from pydantic import Field

from jobs.config import JobConfig


class DoctorConfig(JobConfig):
    """Check versions, cores, memory, disk, clocks, GPUs, Ray and S3, on every node, and say what to do about each."""

    source: str | None = Field(None, description="folder or s3:// prefix that must be readable")
    model: str | None = Field(None, description="bundle or registry that must be complete")
    out: str = Field("out", description="folder or s3:// prefix that results will be written to")
    json_: bool = Field(False, description="print one JSON object: findings with level, name, text, mend and node")
