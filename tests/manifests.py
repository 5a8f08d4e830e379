"""infra/kubernetes as tests see it: rendered by kubectl, and what Ray would have and be told in the pods.

Rendering needs `kubectl` (infra/packages.sh kubernetes); any from 1.14 on does it.
"""

import copy
import functools
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.base.resources import Node

FOLDER = Path(__file__).resolve().parents[1] / "infra" / "kubernetes"
OVERLAYS = ("base", "overlays/aws", "overlays/on-premise")
KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(
    KUBECTL is None, reason="Kubernetes: kubectl is missing (infra/packages.sh kubernetes, as root with apt-get)"
)
CLUSTERS = {  # where a kind keeps its RayCluster's specification
    "RayJob": ("spec", "rayClusterSpec"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}
# Maps whose names an API leaves to whoever writes them
_FREE = {"labels", "annotations", "matchLabels", "rayStartParams", "requests", "limits", "nodeSelector", "data"}
_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}

Object = dict[str, Any]


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    done = subprocess.run([str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def _rendered(overlay: str) -> tuple[Object, ...]:
    return tuple(render(FOLDER / overlay))


def rendered(overlay: str) -> list[Object]:
    """The objects of one of OVERLAYS, the caller's own."""
    return copy.deepcopy(list(_rendered(overlay)))


def of_ray(objects: list[Object]) -> list[Object]:
    return [each for each in objects if each["apiVersion"].startswith("ray.io/")]


def one(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def job_of(document: Object) -> Object:
    """The specification of the RayJob that it is, or makes."""
    return dict(document["spec"]["jobTemplate"] if document["kind"] == "RayCronJob" else document["spec"])


def cluster_of(document: Object) -> Object:
    inner = document
    for key in CLUSTERS[document["kind"]]:
        inner = inner[key]
    return inner


def groups(document: Object) -> list[Object]:
    """The head's group and those of workers."""
    cluster = cluster_of(document)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pod_templates(document: Object) -> Iterator[Object]:
    """Every pod that comes of an object."""
    if document["kind"] in CLUSTERS:
        yield from (group["template"] for group in groups(document))
    if document["kind"] in ("RayJob", "RayCronJob"):
        yield job_of(document)["submitterPodTemplate"]
    if document["kind"] == "CronJob":
        yield document["spec"]["jobTemplate"]["spec"]["template"]


def quantity(text: str | float) -> float:
    """A quantity of Kubernetes: 500m, 8Gi.

    https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    found = re.fullmatch(r"([0-9.]+)(\D*)", str(text))
    assert found and found[2] in _UNITS, text
    return float(found[1]) * _UNITS[found[2]]


def nodes(document: Object, count: str = "replicas") -> list[Node]:
    """What Ray would have on each of its nodes, as KubeRay tells it; `count` replicas of each group of workers."""
    found: list[Node] = []
    for group in groups(document):
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus = group["rayStartParams"].get("num-cpus", math.ceil(quantity(limits["cpu"])))
        node = {"CPU": float(cpus), "GPU": quantity(limits.get("nvidia.com/gpu", 0))}
        found += [node] * group.get(count, 1)
    return found


def command_line(objects: list[Object], document: Object, folder: Path) -> tuple[str, list[str]]:
    """The job of an entrypoint and its options; files that come of a ConfigMap are written to `folder`.

    A shell of the submitter reads the entrypoint, and one of the head: neither has anything to expand.
    """
    entrypoint = job_of(document)["entrypoint"]
    assert not set("$`;&|<>*?") & set(entrypoint), entrypoint
    python, dash_m, module, *options = shlex.split(entrypoint)
    assert (python, dash_m) == ("python", "-m")
    return module.removeprefix("jobs."), [_as_file(objects, document, option, folder) for option in options]


def _as_file(objects: list[Object], document: Object, option: str, folder: Path) -> str:
    spec = groups(document)[0]["template"]["spec"]
    for mount in spec["containers"][0]["volumeMounts"]:
        if option.startswith(mount["mountPath"] + "/"):
            (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
            config_map = one(objects, "ConfigMap", volume["configMap"]["name"])
            file = folder / Path(option).name
            file.write_text(config_map["data"][file.name])
            return str(file)
    return option


def seconds(pattern: str, group: Mapping[str, Any]) -> int:
    """A number of seconds in the command that a worker's pod runs before it ends."""
    command = group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    found = re.search(pattern, " ".join(command))
    assert found, f"{pattern} is not in {command}"
    return int(found[1])


def misspelt(document: Object) -> Iterator[tuple[str, Object]]:
    """Copies of a document, in each another field with a letter too many."""
    for path in _fields(document):
        changed = copy.deepcopy(document)
        inner: Any = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[f"{path[-1]}x"] = inner.pop(path[-1])
        yield ".".join(map(str, path)), changed


def _fields(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all fields that an API names; not what it leaves free."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _fields(item, (*path, number))
    elif isinstance(value, dict) and not _is_free(value, path):
        for name, item in value.items():
            yield (*path, name)
            yield from _fields(item, (*path, name))


def _is_free(value: Object, path: tuple[str | int, ...]) -> bool:
    of_service = path[-1:] == ("selector",) and all(isinstance(item, str) for item in value.values())
    return of_service or (bool(path) and path[-1] in _FREE)
