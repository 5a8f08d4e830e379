"""leukoray samples: synthetic smear images to try every other job with."""

import re
from pathlib import Path

from pydantic import Field, field_validator

from jobs.common import Clock, job, start
from jobs.config import JobConfig
from pipeline.base.errors import UsageError
from pipeline.base.machine import usable_cores
from pipeline.samples import generate, generate_archive
from pipeline.samples.files import NOTICE_FILE
from pipeline.storage.uris import absolute, is_s3

EXAMPLES = """examples:
  leukoray samples --out out/samples
  leukoray samples --out out/samples --images 2000 --subjects 100 --seed 7 --formats jpg png
  leukoray samples --out out/samples --archive-images 3000   # a larger out/samples-archive, unlabelled, to be scored

The images are synthetic: figures made from them say nothing about real blood. Research software, not a medical device.
"""

_OWN = re.compile(r"S\d{3,}_\d{4,}\.\w+|SYNTHETIC\.txt|night_\d\.(tar|zip)|damaged_\w+\.jpg")


class SamplesConfig(JobConfig):
    """Draw synthetic stained smears: leukemia/ and healthy/, by subject, the same for the same seed."""

    out: str = Field("out/samples", description="local folder for leukemia/, healthy/ and SYNTHETIC.txt")
    images: int = Field(800, ge=2, description="labelled images")
    subjects: int = Field(40, ge=2, description="subjects, half of them with leukemia")
    archive_images: int = Field(
        120, ge=0, description="unlabelled images of other subjects in <out>-archive: tar, zip, files; 0: none"
    )
    seed: int = Field(0, ge=0, description="the same seed gives the same bytes")
    width: int = Field(320, ge=64, description="pixels")
    height: int = Field(240, ge=64, description="pixels")
    formats: list[str] = Field(["jpg"], min_length=1, description="of jpg, png, tif, webp, taken in turn")
    workers: int | None = Field(None, ge=1, description="processes that draw (default: all cores)")

    @field_validator("out")
    @classmethod
    def _local(cls, value: str) -> str:
        if is_s3(value):
            raise ValueError("samples are drawn into a local folder; copy them to S3 from there")
        return absolute(value)


def main(config: SamplesConfig) -> None:
    clock = Clock()
    out, archive = Path(config.out), Path(config.out + "-archive")
    if config.archive_images == 1:
        raise UsageError("--archive-images 1: at least 2, one of a subject with leukemia and one without")
    for folder in (out, archive) if config.archive_images else (out,):
        clear(folder)
    workers = config.workers or usable_cores()
    made = generate(
        out, images=config.images, subjects=config.subjects, seed=config.seed, width=config.width, height=config.height,
        formats=config.formats, workers=workers,
    )  # fmt: skip
    print(
        f"{made.images:,} synthetic images of {made.subjects} subjects "
        f"({made.positive_images:,} leukemia, {made.images - made.positive_images:,} healthy) in {made.root}"
    )
    if config.archive_images:
        subjects = min(max(2, config.subjects // 2), config.archive_images)
        packed = generate_archive(
            archive, images=config.archive_images, subjects=subjects, seed=config.seed, width=config.width,
            height=config.height, formats=config.formats, workers=workers,
        )  # fmt: skip
        print(
            f"{packed.images:,} synthetic images without labels, and {len(packed.damaged)} damaged files on purpose, "
            f"in {packed.root}"
        )
    print(f"drawn in {clock.seconds:.1f} s; next: leukoray ingest {made.root}", flush=True)


def clear(folder: Path) -> None:
    """Remove the samples of an earlier run, so that two seeds never mix.

    Raises UsageError, and removes nothing, where the folder holds any other file, or no notice that these are samples.
    """
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    for path in files:
        if not _OWN.fullmatch(path.name):
            raise UsageError(
                f"--out {folder}: holds {path.relative_to(folder)}, which is no sample; give another folder"
            )
    if files and not (folder / NOTICE_FILE).is_file():
        raise UsageError(
            f"--out {folder}: holds files, and no {NOTICE_FILE} that says they are samples; give another folder"
        )
    for path in sorted(files, key=lambda path: path.name == NOTICE_FILE):  # which says whose they are: last
        path.unlink()


command = job("samples", SamplesConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
