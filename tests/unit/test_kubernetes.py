"""infra/kubernetes: each object is one that its API takes, a misspelt field is refused, and what is named is there."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ray.scripts.scripts import start as ray_start

from pipeline.base.errors import InputError, UsageError
from serving.keys.records import read_lines
from tests.kuberay_schema import problems
from tests.manifests import (
    FOLDER,
    OVERLAYS,
    Object,
    cluster_of,
    groups,
    misspelt,
    needs_kubectl,
    of_ray,
    one,
    pod_templates,
    quantity,
    render,
    rendered,
)

PARTS = {"setup", "train", "score", "night", "night-cronjob", "endpoint", "monitoring"}
RESOURCES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
# Fields that manifests may have: https://prometheus-operator.dev/docs/api-reference/api/
MONITORS = {
    "ServiceMonitor": {"selector", "endpoints"},
    "PodMonitor": {"selector", "podMetricsEndpoints"},
}
ENDPOINT = {"port", "path", "interval", "relabelings"}
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
FILES = sorted(FOLDER.glob("base/*.yaml"))


# ---- without rendering -----------------------------------------------------------------------------------------------


def test_files_of_ray_kinds_are_whole() -> None:
    documents = [each for file in FILES for each in yaml.safe_load_all(file.read_text())]
    ours = of_ray([each for each in documents if each and "apiVersion" in each])
    assert {each["kind"] for each in ours} == {"RayJob", "RayCronJob", "RayService"}
    assert {(each["kind"], each["metadata"]["name"]): problems(each) for each in ours if problems(each)} == {}


@pytest.mark.parametrize("file", ["train.yaml", "night.yaml", "endpoint.yaml"])
def test_a_misspelt_field_of_a_ray_kind_is_refused_wherever_it_stands(file: str) -> None:
    document = next(yaml.safe_load_all((FOLDER / "base" / file).read_text()))
    changed = list(misspelt(document))
    assert len(changed) > 100
    assert [place for place, broken in changed if not problems(broken)] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.update(backoffLimit="0"), "'0' is not of type 'integer'"),
        (lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="tokn"), "'tokn' is not one of"),
        (lambda spec: spec["rayClusterSpec"].pop("headGroupSpec"), "'headGroupSpec' is a required property"),
    ],
    ids=["type", "word", "missing"],
)
def test_a_wrong_value_is_refused_with_its_place(change: Callable[[Object], None], said: str) -> None:
    document = yaml.safe_load((FOLDER / "base" / "train.yaml").read_text())
    change(document["spec"])
    assert [text for text in problems(document) if said in text]


def test_the_example_of_secrets_holds_none_and_is_refused_as_it_is() -> None:
    keys, s3 = yaml.safe_load_all((FOLDER / "base" / "secrets.example.yaml").read_text())
    with pytest.raises((InputError, UsageError)):
        read_lines(keys["stringData"]["keys"])
    assert set(s3["stringData"].values()) == {"REPLACE"}
    assert "secrets.example.yaml" not in (FOLDER / "base" / "kustomization.yaml").read_text()


def test_the_proxy_s_environment_is_that_of_other_clusters() -> None:
    _, config_map = yaml.safe_load_all((FOLDER / "base" / "endpoint.yaml").read_text())
    lines = re.findall(r"^([A-Z_]+)=(.*)$", (FOLDER.parent / "serve.env").read_text(), re.MULTILINE)
    wanted = dict(lines)
    program = wanted.pop("RAY_SERVE_HAPROXY_BINARY_PATH")
    assert config_map["data"] == wanted
    assert f"$${program.removeprefix('$')}" in (FOLDER / "base" / "endpoint.yaml").read_text()


# ---- rendered --------------------------------------------------------------------------------------------------------


@needs_kubectl
@every_overlay
def test_what_is_rendered_is_taken_by_kuberay(overlay: str) -> None:
    found = {(each["kind"], each["metadata"]["name"]): problems(each) for each in of_ray(rendered(overlay))}
    assert len(found) == 5 and not any(found.values()), found


@needs_kubectl
@every_overlay
def test_every_object_belongs_to_one_part_by_which_it_is_applied(overlay: str) -> None:
    objects = rendered(overlay)
    assert {each["metadata"]["labels"]["leukoray/part"] for each in objects} == PARTS
    for document in objects:
        for template in pod_templates(document):
            assert template["metadata"]["labels"]["leukoray/part"] == document["metadata"]["labels"]["leukoray/part"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_images_are_set_in_one_place(overlay: str) -> None:
    wanted = yaml.safe_load((FOLDER / overlay / "kustomization.yaml").read_text())["images"]
    images = {
        container["image"]
        for document in rendered(overlay)
        for template in pod_templates(document)
        for container in template["spec"]["containers"]
    }
    assert images == {f"{each['newName']}:{each['newTag']}" for each in wanted}


@needs_kubectl
def test_a_namespace_of_one_s_own_is_set_in_one_place(tmp_path: Path) -> None:
    place = os.path.relpath(FOLDER / "base", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(f"bases: [{place}]\nnamespace: hospital\n")
    objects = render(tmp_path)
    named = {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"}
    assert named == {"hospital"}


@needs_kubectl
@every_overlay
def test_pods_are_what_kubernetes_calls_restricted_and_write_to_mounted_places_alone(overlay: str) -> None:
    for document in rendered(overlay):
        for template in pod_templates(document):
            spec = template["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 1000
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in spec["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                }
                mounted = {mount["name"] for mount in container["volumeMounts"]}
                assert mounted <= {volume["name"] for volume in spec["volumes"]}


@needs_kubectl
@every_overlay
def test_the_object_store_lies_in_shared_memory_that_is_there(overlay: str) -> None:
    for document in of_ray(rendered(overlay)):
        for group in groups(document):
            spec = group["template"]["spec"]
            (container,) = spec["containers"]
            (name,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
            (shm,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == name]
            assert shm["medium"] == "Memory"
            store = float(group["rayStartParams"]["object-store-memory"])
            assert store <= quantity(shm["sizeLimit"]) < quantity(container["resources"]["limits"]["memory"])


@needs_kubectl
@every_overlay
def test_free_names_are_those_that_ray_and_kubernetes_know(overlay: str) -> None:
    options = {option.removeprefix("--") for parameter in ray_start.params for option in parameter.opts}
    for document in of_ray(rendered(overlay)):
        assert cluster_of(document)["authOptions"] == {"mode": "token"}
        for group in groups(document):
            assert set(group["rayStartParams"]) <= options
            resources = group["template"]["spec"]["containers"][0]["resources"]
            assert {name for each in resources.values() for name in each} <= RESOURCES
            assert resources["requests"]["memory"] == resources["limits"]["memory"]


@needs_kubectl
@every_overlay
def test_what_is_referred_to_is_there(overlay: str) -> None:
    objects = rendered(overlay)
    example = yaml.safe_load_all((FOLDER / "base" / "secrets.example.yaml").read_text())
    there = {(each["kind"], each["metadata"]["name"]) for each in [*objects, *example]}
    asked = set()
    for template in (each for document in objects for each in pod_templates(document)):
        asked.add(("ServiceAccount", template["spec"]["serviceAccountName"]))
        for volume in template["spec"]["volumes"]:
            if "configMap" in volume:
                asked.add(("ConfigMap", volume["configMap"]["name"]))
            if "secret" in volume:
                asked.add(("Secret", volume["secret"]["secretName"]))
        for source in (each for item in template["spec"]["containers"] for each in item.get("envFrom", [])):
            ((kind, reference),) = source.items()
            asked.add(({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"]))
    assert asked <= there
    assert (("Secret", "leukoray-s3") in asked) == (overlay == "overlays/on-premise")


@needs_kubectl
def test_selectors_choose_the_pods_they_mean() -> None:
    objects = rendered("base")
    head, worker = (group["template"] for group in groups(one(objects, "RayService", "leukoray")))
    budget = one(objects, "PodDisruptionBudget", "leukoray-endpoint")["spec"]
    assert budget["selector"]["matchLabels"].items() <= worker["metadata"]["labels"].items()
    assert not budget["selector"]["matchLabels"].items() <= head["metadata"]["labels"].items()
    assert isinstance(budget["minAvailable"], int)
    service = one(objects, "Service", "leukoray-metrics")
    assert service["spec"]["selector"].items() <= head["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in {each["name"] for each in head["spec"]["containers"][0]["ports"]}
    monitor = one(objects, "ServiceMonitor", "leukoray")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [each["port"] for each in monitor["endpoints"]] == [port["name"]]


@needs_kubectl
def test_monitors_have_the_fields_of_their_operator() -> None:
    objects = rendered("base")
    for document in objects:
        if document["apiVersion"] == "monitoring.coreos.com/v1":
            spec = document["spec"]
            assert set(spec) == MONITORS[document["kind"]]
            assert all(set(each) <= ENDPOINT for each in spec.get("endpoints", spec.get("podMetricsEndpoints")))
    (scraped,) = one(objects, "PodMonitor", "leukoray-ray")["spec"]["podMetricsEndpoints"]
    for document in of_ray(objects):
        for group in groups(document):
            names = {port["name"] for port in group["template"]["spec"]["containers"][0]["ports"]}
            assert scraped["port"] in names and group["template"]["metadata"]["labels"]["leukoray/role"]
