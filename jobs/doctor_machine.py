"""What doctor asks of the machine on which it runs."""

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence

from jobs.doctor_config import DoctorConfig
from pipeline.base.cluster import cluster_target
from pipeline.base.errors import PlatformError
from pipeline.base.finding import Finding
from pipeline.base.machine import usable_cores
from pipeline.base.node_facts import judge, look
from pipeline.base.resources import ClusterPlan, Node, check, training_plan
from pipeline.storage.uris import absolute, is_s3

_PACKAGES = ("ray", "onnxruntime", "pyarrow", "pillow", "simplejpeg", "boto3")
# jsonschema imports it where it is there, Ray imports jsonschema, and it parses a grammar on import
_SLOW_BESIDE_RAY = "rfc3987-syntax"
_OF_TRAINING = ("torch", "torchvision", "scikit-learn", "onnxscript", "tensorboard")


def packages(config: DoctorConfig) -> Iterator[Finding]:
    yield Finding("ok", "python", platform.python_version())
    found, missing = _installed(_PACKAGES)
    yield Finding("ok", "packages", ", ".join(found))
    if missing:
        text = f"missing: {', '.join(missing)}; install leukoray again with `pip install .`"
        yield Finding("fail", "packages", text, "pip install .")
    for slow in _installed([_SLOW_BESIDE_RAY])[0]:
        text = f"{slow} makes each process of Ray start about a second later, a dozen in a job; nothing here needs it"
        yield Finding("warn", "packages", text, f"pip uninstall {_SLOW_BESIDE_RAY}")
    found, missing = _installed(_OF_TRAINING)
    if not found:
        yield Finding("ok", "training", "not installed: train, tune, evaluate and calibrate need the extra `train`")
    elif missing:
        mend = "pip install 'leukoray[train]'"
        yield Finding("fail", "training", f"missing: {', '.join(missing)}; {mend}", mend)
    else:
        yield Finding("ok", "training", ", ".join(found))


def _installed(packages: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that are installed, with their versions, and those that are not."""
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return found, missing


def cores(config: DoctorConfig) -> Iterator[Finding]:
    """The cores against the smallest plan of each job at its defaults; a cluster is checked by `cluster`."""
    if not cluster_target(config.address):
        count = config.num_cpus or usable_cores()
        yield from fits([{"CPU": float(count)}], f"{count} cores")


def fits(nodes: Sequence[Node], what: str) -> Iterator[Finding]:
    """What of the jobs finds room on these nodes, a worker on one node."""
    smallest = {"evaluate": 1.0, "score": 1.0, "serve": 0.5}
    plans = [training_plan(nodes), *(ClusterPlan(job, 1, cpus) for job, cpus in smallest.items())]
    fitting = []
    for plan in plans:
        try:
            check(plan, nodes)
            fitting.append(f"{plan.job} {plan.cpus:g}")
        except PlatformError as error:
            yield Finding("fail", "cores", str(error))
    if fitting:
        yield Finding("ok", "cores", f"{what}; needed at least: {', '.join(fitting)}")


def machine(config: DoctorConfig) -> Iterator[Finding]:
    yield from judge(look(result_folders(config)))


def result_folders(config: DoctorConfig) -> list[tuple[str, str]]:
    return [] if is_s3(config.out) else [(absolute(config.out), "--out")]
