"""Synthetic fields as files: a labelled class-folder data set, and an unlabelled archive to score.

Every image has its own random stream (seed, purpose, subject, number), so the same seed gives the same bytes whatever
the number of worker processes, as long as numpy, scipy and Pillow are the same versions.
"""

from __future__ import annotations

import io
import multiprocessing
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.base.errors import UsageError
from pipeline.samples.field import render_field
from pipeline.samples.style import draw_style

CLASS_FOLDERS = {True: "leukemia", False: "healthy"}
NOTICE = "synthetic: computer-generated blood smear, not a real patient, not a medical device"
NOTICE_FILE = "SYNTHETIC.txt"

_STYLE, _FIELD, _LABEL = 0, 1, 2  # separate random streams of one seed
_PILLOW_FORMATS = {"jpg": "JPEG", "png": "PNG", "tif": "TIFF", "webp": "WEBP"}
_IMAGE_DESCRIPTION = 0x010E  # EXIF/TIFF tag
_TAR_SHARE, _ZIP_SHARE = 0.5, 0.4  # of an archive set; the rest lies loose


@dataclass(frozen=True)
class SampleSet:
    """What `generate` wrote: `root` holds leukemia/, healthy/ and SYNTHETIC.txt."""

    root: Path
    images: int
    positive_images: int
    subjects: int
    seed: int


@dataclass(frozen=True)
class ArchiveSet:
    """What `generate_archive` wrote. `labels` is the truth of the good images by file name: 1 leukemia, 0 healthy."""

    root: Path
    images: int
    damaged: tuple[str, ...]  # file names that no decoder can read
    labels: dict[str, int]
    seed: int


@dataclass(frozen=True)
class _Job:
    """One image to render: its subject, its number within all images, and its encoding."""

    subject: int
    number: int
    positive: bool
    format: str

    @property
    def name(self) -> str:
        return f"S{self.subject:03d}_{self.number:04d}.{self.format}"


def generate(
    out: Path,
    *,
    images: int,
    subjects: int,
    seed: int = 0,
    width: int = 320,
    height: int = 240,
    formats: Sequence[str] = ("jpg",),
    workers: int = 1,
) -> SampleSet:
    """Write `images` fields of `subjects` subjects to `<out>/{leukemia,healthy}/S<subject>_<number>.<format>`.

    Half of the subjects (rounded down) have leukemia; images are dealt to the subjects in turn. `formats` ('jpg',
    'png', 'tif', 'webp') alternate from image to image. More than one worker starts processes.
    """
    _check(images, subjects, width, height, formats)
    jobs = _plan(images, subjects, seed, formats, first_subject=0)
    for folder in CLASS_FOLDERS.values():
        (out / folder).mkdir(parents=True, exist_ok=True)
    positive = sum(job.positive for job in jobs)
    _write_notice(out, f"images: {images} ({positive} leukemia)\nsubjects: {subjects}", seed, width, height, formats)
    with _encoded(jobs, seed, width, height, workers) as encoded:
        for job, content in encoded:
            (out / CLASS_FOLDERS[job.positive] / job.name).write_bytes(content)
    return SampleSet(out, images, positive, subjects, seed)


def generate_archive(
    out: Path,
    *,
    images: int,
    subjects: int,
    seed: int = 0,
    width: int = 320,
    height: int = 240,
    formats: Sequence[str] = ("jpg",),
    workers: int = 1,
    first_subject: int = 500,
) -> ArchiveSet:
    """Write an unlabelled archive to score: `night_1.tar`, `night_2.zip` and loose files, with three damaged files.

    The subjects are numbered from `first_subject` on, so that with the same seed they are none of `generate`'s.
    Damaged, on top of `images`: a truncated JPEG (loose), a file of zero bytes (tar), a text called .jpg (zip).
    """
    _check(images, subjects, width, height, formats)
    jobs = _plan(images, subjects, seed, formats, first_subject)
    in_tar, in_zip = int(images * _TAR_SHARE), int(images * _ZIP_SHARE)
    (out / "loose").mkdir(parents=True, exist_ok=True)
    what = f"images: {images}, unlabelled\nsubjects: {subjects}\ndamaged files: 3"
    _write_notice(out, what, seed, width, height, formats)
    whole = b""
    with (
        tarfile.open(out / "night_1.tar", "w") as tar,
        zipfile.ZipFile(out / "night_2.zip", "w", zipfile.ZIP_STORED) as archive,
        _encoded(jobs, seed, width, height, workers) as encoded,
    ):
        for i, (job, content) in enumerate(encoded):
            if i < in_tar:
                _add_to_tar(tar, job.name, content)
            elif i < in_tar + in_zip:
                archive.writestr(zipfile.ZipInfo(job.name), content)
            else:
                (out / "loose" / job.name).write_bytes(content)
            if job.format == "jpg" or not whole:
                whole = content
        _add_to_tar(tar, "damaged_empty.jpg", b"")
        archive.writestr(zipfile.ZipInfo("damaged_text.jpg"), b"synthetic: this is a text file, not an image\n")
        (out / "loose" / "damaged_truncated.jpg").write_bytes(whole[: len(whole) // 3])
    damaged = ("damaged_empty.jpg", "damaged_text.jpg", "damaged_truncated.jpg")
    return ArchiveSet(out, images, damaged, {job.name: int(job.positive) for job in jobs}, seed)


def _check(images: int, subjects: int, width: int, height: int, formats: Sequence[str]) -> None:
    unknown = sorted(set(formats) - set(_PILLOW_FORMATS))
    if unknown or not formats:
        raise UsageError(f"samples: formats {unknown or 'is empty'}; choose from {', '.join(_PILLOW_FORMATS)}")
    if subjects < 2 or images < subjects:
        raise UsageError(
            f"samples: {images} images of {subjects} subjects; needs at least 2 subjects and one image for each"
        )
    if min(width, height) < 64:
        raise UsageError(f"samples: {width}x{height} pixels is too small to show a cell; use at least 64x64")


def _plan(images: int, subjects: int, seed: int, formats: Sequence[str], first_subject: int) -> list[_Job]:
    """Deal classes to subjects by the seed, so that their number does not tell, and images to subjects in turn."""
    positive = np.arange(subjects) < subjects // 2
    np.random.default_rng([seed, _LABEL, first_subject]).shuffle(positive)
    return [
        _Job(first_subject + i % subjects, i, bool(positive[i % subjects]), formats[i % len(formats)])
        for i in range(images)
    ]


@contextmanager
def _encoded(
    jobs: list[_Job], seed: int, width: int, height: int, workers: int
) -> Iterator[Iterator[tuple[_Job, bytes]]]:
    """Yield an iterator of (job, encoded file) in the order of the jobs."""
    render = partial(_render, seed=seed, width=width, height=height)
    if workers <= 1:
        yield zip(jobs, map(render, jobs), strict=True)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield zip(jobs, pool.map(render, jobs, chunksize=8), strict=True)


def _render(job: _Job, seed: int, width: int, height: int) -> bytes:
    style = draw_style(np.random.default_rng([seed, _STYLE, job.subject]))
    rng = np.random.default_rng([seed, _FIELD, job.subject, job.number])
    image = Image.fromarray(render_field(rng, style, job.positive, width, height))
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = NOTICE
    options: dict[str, object] = {"exif": exif}
    if job.format == "jpg":
        options |= {"quality": style.jpeg_quality, "comment": NOTICE}
    elif job.format == "webp":
        options |= {"quality": style.jpeg_quality}
    buffer = io.BytesIO()
    image.save(buffer, _PILLOW_FORMATS[job.format], **options)
    return buffer.getvalue()


def _add_to_tar(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime 0, no owner: the bytes depend on nothing but the content
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _write_notice(out: Path, what: str, seed: int, width: int, height: int, formats: Sequence[str]) -> None:
    (out / NOTICE_FILE).write_text(
        "These images are SYNTHETIC: drawn by a computer program (leukoray, pipeline/samples) from a seed.\n"
        "They show no real patient, cell or slide. They serve to try and to test the software; a result obtained\n"
        "on them says nothing about how well anything works on real blood. Research software, not a medical device.\n\n"
        f"{what}\nseed: {seed}\nsize: {width}x{height} pixels\nformats: {', '.join(formats)}\n",
        encoding="utf-8",
    )
