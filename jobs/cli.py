"""`leukoray <job> ...`: one command in front of the job files."""

import functools
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from jobs.common import EXIT_CODES, finish, give_up, told_as_asked
from jobs.ending import ends_when_told
from pipeline import __version__

JOBS = {
    "demo": "the whole way, one job after the other, on samples or on your images",
    "samples": "make synthetic smear images to try everything with",
    "ingest": "list a folder, bucket or archives into a manifest with labels and splits",
    "train": "train a CNN data-parallel on Ray and publish it as a bundle",
    "tune": "search the settings of training, poor ones ended early",
    "evaluate": "measure a model on a split and write the report",
    "transfer-check": "say whether images of another laboratory look like a model's own",
    "calibrate": "a version of a model for another laboratory, by some of its labelled images",
    "explain": "show which places of a few images speak for what a model says",
    "score": "score whole archives into Parquet, every image accounted for",
    "summary": "print and draw what a scoring run found",
    "catalog": "add a scoring run to an Apache Iceberg table, by metadata alone",
    "serve": "answer HTTP requests with the best model",
    "key": "make a key for a client of the service, and its line for `serve --keys`",
    "predict": "send images to a running service, one row a file",
    "promote": "point a registry to another version",
    "reveal": "the paths behind pseudonyms, for whoever holds the key",
    "migrate": "after an upgrade: what older files hold, and a model under today's pixel rules",
    "doctor": "say whether this machine and cluster can do the work",
}


def usage() -> str:
    lines = [f"  {name:<14} {text}" for name, text in JOBS.items()]
    return "\n".join(
        [
            "usage: leukoray JOB [options]",
            "",
            "Leukemia detection in microscope images of blood cells, on Ray. Research software, not a medical device.",
            "",
            *lines,
            "",
            "leukoray JOB --help tells the options of a job, with examples. leukoray --version tells the version.",
            "Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
        ]
    )


def module_of(job: str) -> str:
    """The job's file in `jobs`."""
    return job.replace("-", "_")


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        finish(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"leukoray {__version__}")
        finish(0)
    if arguments[0] not in JOBS:
        print(f"leukoray: no job {arguments[0]!r}; one of {', '.join(JOBS)}", file=sys.stderr)
        finish(2)
    run(arguments[0], arguments[1:])


def run(job: str, arguments: Sequence[str]) -> NoReturn:
    """Do this job and end the process, also where a package that the job's file imports is missing."""
    prog = f"leukoray {job}"
    try:
        with ends_when_told(functools.partial(give_up, prog)):
            module = importlib.import_module(f"jobs.{module_of(job)}")  # with torch, which takes seconds
    except (KeyboardInterrupt, ModuleNotFoundError) as error:  # the latter: no extra `train`, or a bug
        finish(told_as_asked(prog, arguments, error))
    finish(module.command(arguments))


def as_program(job: str) -> NoReturn:
    """`python -m jobs.NAME` of a job whose file imports what an extra brings."""
    run(job, sys.argv[1:])


if __name__ == "__main__":
    main()
