"""infra/kubernetes: the jobs and the endpoint take what the manifests tell them, and the pods have room for it."""

import copy
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

from jobs.config import JobConfig, parse
from jobs.train import TrainConfig
from pipeline.base.errors import PlatformError, UsageError
from pipeline.base.resources import ClusterPlan, check, places, scoring_plan
from serving.settings import proxy_timeout_s, read_settings
from tests.manifests import (
    FOLDER,
    OVERLAYS,
    Object,
    command_line,
    groups,
    job_of,
    needs_kubectl,
    nodes,
    of_ray,
    one,
    rendered,
    seconds,
)
from tests.reference import config_of

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
SCORING = [("RayJob", "leukoray-score"), ("RayJob", "leukoray-night"), ("RayCronJob", "leukoray-night")]
JOBS = [("RayJob", "leukoray-train"), *SCORING]


def configuration(objects: list[Object], document: Object, folder: Path) -> JobConfig:
    """Of the job, by its own parser. Raises UsageError."""
    job, options = command_line(objects, document, folder)
    return parse(config_of(job), options, prog=job)


def plans(config: Any, document: Object) -> list[ClusterPlan]:
    """What a job would hold of the pods at the same time, as it finds out itself."""
    there = nodes(document)
    if isinstance(config, TrainConfig):
        return [config.plan(there), ClusterPlan("features", 1, 1.0)]
    return [scoring_plan(there, config.workers, config.cpus_per_worker, use_gpu=config.use_gpu)]


def refuse_waiting(config: Any, document: Object) -> None:
    """Raises PlatformError where the pods could never hold what the job wants at once."""
    for plan in plans(config, document):
        check(plan, nodes(document))
        if places(plan, nodes(document)) < plan.workers:
            raise PlatformError(f"{plan.job}: room for fewer than {plan.workers} workers")


def unknown(given: Any, read: Any, place: str = "") -> list[str]:
    """What a pydantic model of Ray's passed over in silence."""
    if isinstance(read, list):
        return [name for one, other in zip(given, read, strict=True) for name in unknown(one, other, f"{place}[]")]
    if not isinstance(read, BaseModel):
        return []
    names = type(read).model_fields
    found = [f"{place}.{name}" for name in given if name not in names]
    return found + [
        name for key in given if key in names for name in unknown(given[key], getattr(read, key), f"{place}.{key}")
    ]


def served(text: str) -> ServeDeploySchema:
    """A Serve configuration that Ray and our settings take. Raises ValueError, UsageError."""
    given = yaml.safe_load(text)
    schema = ServeDeploySchema.model_validate(given)
    if names := unknown(given, schema):
        raise ValueError(f"serveConfigV2: Ray knows no {', '.join(names)}")
    for application in schema.applications:
        read_settings(application.args)
    return schema


def runtime_env(text: str) -> None:
    """Raises ValueError, TypeError for what Ray does not take, and for what would install something."""
    given = yaml.safe_load(text) or {}
    if names := set(given) - RuntimeEnv.known_fields:
        raise ValueError(f"runtimeEnvYAML: Ray knows no {', '.join(names)}")
    if names := set(given) - {"env_vars"}:
        raise ValueError(f"runtimeEnvYAML: {', '.join(names)}: all that a job needs is in its image")
    RuntimeEnv(**given)


def renamed(text: str, old: str, new: str) -> str:
    assert f"{old}:" in text
    return text.replace(f"{old}:", f"{new}:")


# ---- the jobs --------------------------------------------------------------------------------------------------------


@needs_kubectl
@every_overlay
@pytest.mark.parametrize(("kind", "name"), JOBS)
def test_a_job_takes_its_options_and_its_pods_hold_what_it_wants_at_once(
    overlay: str, kind: str, name: str, tmp_path: Path
) -> None:
    objects = rendered(overlay)
    document = one(objects, kind, name)
    refuse_waiting(configuration(objects, document, tmp_path), document)
    spec = job_of(document)
    assert spec["preRunningDeadlineSeconds"] > 0 and spec["shutdownAfterJobFinishes"] is True
    runtime_env(spec.get("runtimeEnvYAML", ""))


@needs_kubectl
def test_an_option_that_the_job_does_not_know_is_refused(tmp_path: Path) -> None:
    objects = rendered("base")
    files = one(objects, "ConfigMap", "leukoray-jobs")["data"]
    files["score.yaml"] = renamed(files["score.yaml"], "max_error_share", "max_error_shares")
    with pytest.raises(UsageError, match="max_error_shares"):
        configuration(objects, one(objects, "RayJob", "leukoray-score"), tmp_path)
    train = one(objects, "RayJob", "leukoray-train")
    train["spec"]["entrypoint"] += " --epoch 3"
    with pytest.raises(UsageError, match="--epoch"):
        configuration(objects, train, tmp_path)


def one_small_worker(document: Object) -> None:
    groups(document)[1]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "1"
    groups(document)[1]["replicas"] = 1


def no_gpu(document: Object) -> None:
    groups(document)[1]["template"]["spec"]["containers"][0]["resources"]["limits"].pop("nvidia.com/gpu")


def no_cores(document: Object) -> None:
    groups(document)[1]["rayStartParams"]["num-cpus"] = "0"


@needs_kubectl
@pytest.mark.parametrize(
    ("name", "change"),
    [("train", no_gpu), ("train", one_small_worker), ("train", no_cores), ("score", no_cores)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_pods_in_which_a_job_would_wait_for_ever_are_refused(
    name: str, change: Callable[[Object], None], tmp_path: Path
) -> None:
    objects = rendered("base")
    document = one(objects, "RayJob", f"leukoray-{name}")
    config = configuration(objects, document, tmp_path)
    change(document)
    with pytest.raises(PlatformError):
        refuse_waiting(config, document)


@needs_kubectl
@every_overlay
def test_the_three_ways_of_scoring_are_the_same_job(overlay: str) -> None:
    objects = rendered(overlay)
    texts = []
    for kind, name in SCORING:
        spec = copy.deepcopy(job_of(one(objects, kind, name)))
        is_night = "night" in name
        assert spec.pop("suspend", False) == (kind == "RayJob" and is_night)
        assert (spec.pop("activeDeadlineSeconds", None) is not None) == is_night
        part = spec["submitterPodTemplate"]["metadata"]["labels"]["leukoray/part"]
        texts.append(json.dumps(spec, sort_keys=True).replace(f'"{part}"', '"PART"'))
    assert len(set(texts)) == 1


@needs_kubectl
@every_overlay
def test_a_night_ends_before_the_next_one_begins(overlay: str) -> None:
    objects = rendered(overlay)
    cron, plain = (one(objects, kind, "leukoray-night")["spec"] for kind in ("RayCronJob", "CronJob"))
    assert (cron["schedule"], cron["timeZone"]) == (plain["schedule"], plain["timeZone"])
    for kind, name in SCORING[1:]:
        spec = job_of(one(objects, kind, name))
        assert spec["preRunningDeadlineSeconds"] + spec["activeDeadlineSeconds"] < 24 * 3600
        assert spec["backoffLimit"] == 0, "a second try would end with 0 and hide what the first one found"


@needs_kubectl
@every_overlay
def test_a_pod_that_is_told_to_end_has_the_time_to_leave(overlay: str) -> None:
    for document in of_ray(rendered(overlay)):
        for group in groups(document)[1:]:
            deadline, sleep = seconds(r"--deadline-remaining-seconds (\d+)", group), seconds(r"sleep (\d+)", group)
            grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
            assert deadline == sleep and seconds(r"timeout (\d+)", group) + sleep < grace
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(
    "text", ["env_varz: {A: b}", "working_dir: s3://lab/code.zip", "pip: [torch]", "env_vars: {A: 1}"]
)
def test_a_runtime_env_that_ray_would_pass_over_or_that_installs_is_refused(text: str) -> None:
    runtime_env('env_vars: {A: "b"}')
    with pytest.raises((ValueError, TypeError)):
        runtime_env(text)


# ---- the endpoint ----------------------------------------------------------------------------------------------------


@needs_kubectl
@every_overlay
def test_the_endpoint_is_configured_as_ray_and_the_service_want_it(overlay: str) -> None:
    document = one(rendered(overlay), "RayService", "leukoray")
    schema = served(document["spec"]["serveConfigV2"])
    settings = read_settings(schema.applications[0].args)
    assert schema.http_options.request_timeout_s == proxy_timeout_s(settings.request_timeout_s)
    worker = groups(document)[1]
    container = worker["template"]["spec"]["containers"][0]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": schema.http_options.port}
    assert schema.http_options.port in {port["containerPort"] for port in container["ports"]}
    assert seconds(r"sleep (\d+)", worker) > schema.http_options.request_timeout_s, "the longest request is cut"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert settings.keys_file and str(Path(settings.keys_file).parent) in mounts


@needs_kubectl
@every_overlay
def test_replicas_find_room_in_the_pods_that_the_autoscaler_may_add(overlay: str) -> None:
    document = one(rendered(overlay), "RayService", "leukoray")
    settings = read_settings(served(document["spec"]["serveConfigV2"]).applications[0].args)
    most = ClusterPlan("serve", settings.max_replicas, settings.cpus_per_replica, settings.gpus_per_replica)
    check(most, nodes(document, "maxReplicas"))
    least = ClusterPlan("serve", settings.min_replicas, settings.cpus_per_replica, settings.gpus_per_replica)
    check(least, nodes(document, "replicas"))
    groups(document)[1]["maxReplicas"] -= 1
    with pytest.raises(PlatformError):
        check(most, nodes(document, "maxReplicas"))


@needs_kubectl
@pytest.mark.parametrize("name", ["proxy_location", "request_timeout_s", "import_path", "model", "max_replicas"])
def test_a_misspelt_field_of_the_serve_configuration_is_refused(name: str) -> None:
    text = one(rendered("base"), "RayService", "leukoray")["spec"]["serveConfigV2"]
    served(text)
    with pytest.raises((ValueError, UsageError)):
        served(renamed(text, name, f"{name}x"))


@needs_kubectl
@every_overlay
def test_an_upgrade_by_steps_has_what_kuberay_asks_for(overlay: str) -> None:
    """KubeRay's own check of NewClusterWithIncrementalUpgrade, which its CRD does not make."""
    document = one(rendered(overlay), "RayService", "leukoray")
    options = document["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    assert document["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True
    assert options["gatewayClassName"] and options["intervalSeconds"] > 0
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert {group["template"]["spec"]["restartPolicy"] for group in groups(document)} == {"Never"}


@pytest.mark.parametrize("is_there", [True, False], ids=["the proxy is there", "it is not"])
def test_ray_starts_with_the_proxy_of_the_image_or_not_at_all(is_there: bool, tmp_path: Path) -> None:
    """KubeRay writes `ARGS && ulimit ...; ray start ...` for bash, Kubernetes `$` for `$$`."""
    document = next(yaml.safe_load_all((FOLDER / "base" / "endpoint.yaml").read_text()))
    for group in groups(document):
        (args,) = group["template"]["spec"]["containers"][0]["args"]
        prepared = args.replace("$$", "$").replace("/tmp/leukoray-serve", str(tmp_path / "serve"))
        line = f"{prepared} && ulimit -n $(ulimit -n); echo started with $RAY_SERVE_HAPROXY_BINARY_PATH"
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "mkdir").write_text('#!/bin/sh\nexec /bin/mkdir "$@"\n')
        program = tmp_path / "bin" / "leukoray-haproxy"
        if is_there:
            program.write_text("#!/bin/sh\n")
        for file in (tmp_path / "bin").iterdir():
            file.chmod(0o755)
        done = subprocess.run(
            ["/bin/bash", "-c", line], env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True, check=False
        )
        wanted = (0, f"started with {program}\n") if is_there else (5, "")
        assert (done.returncode, done.stdout) == wanted, done.stderr


# ---- the night without RayCronJob ------------------------------------------------------------------------------------


class Api(http.server.BaseHTTPRequestHandler):
    """As much of Kubernetes' API as keeps RayJobs of one namespace."""

    jobs: dict[str, Object]
    made: list[Object]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self) -> None:
        assert self.headers["Authorization"] == "Bearer secret"
        name = self.path.removeprefix("/apis/ray.io/v1/namespaces/lab/rayjobs/")
        found = self.jobs.get(name)
        self.answer(200 if found else 404, found or {"message": f'rayjobs "{name}" not found'})

    def do_POST(self) -> None:
        assert self.path == "/apis/ray.io/v1/namespaces/lab/rayjobs"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.made.append(body)
        self.answer(201, {"metadata": {"name": body["metadata"]["generateName"] + "x7k2p"}})


@pytest.fixture
def api() -> Iterator[tuple[type[Api], str]]:
    handler = type("OneApi", (Api,), {"jobs": {}, "made": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def night(tmp_path: Path, address: str) -> subprocess.CompletedProcess[str]:
    for name, text in (("namespace", "lab"), ("token", "secret\n")):
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "SERVICE_ACCOUNT": str(tmp_path), "KUBERNETES_API": address}
    command = [sys.executable, str(FOLDER / "base" / "night.py"), "leukoray-night"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_cronjob_makes_a_job_that_runs_of_the_one_that_is_kept(api: tuple[type[Api], str], tmp_path: Path) -> None:
    handler, address = api
    pattern = yaml.safe_load((FOLDER / "base" / "night-cronjob-rayjob.yaml").read_text())
    handler.jobs["leukoray-night"] = {**pattern, "status": {"jobDeploymentStatus": "Suspended"}}
    done = night(tmp_path, address)
    assert (done.returncode, done.stdout) == (0, "night: leukoray-night-x7k2p from leukoray-night\n")
    (made,) = handler.made
    assert made["spec"] == {**pattern["spec"], "suspend": False} and "status" not in made
    assert made["metadata"]["generateName"] == "leukoray-night-" and "name" not in made["metadata"]


def test_where_no_job_can_be_made_the_cronjob_fails_and_says_why(api: tuple[type[Api], str], tmp_path: Path) -> None:
    handler, address = api
    done = night(tmp_path, address)
    assert done.returncode == 1 and "HTTP 404" in done.stderr and "not found" in done.stderr
    assert "does not answer" in night(tmp_path, "http://127.0.0.1:9").stderr
    assert handler.made == []
