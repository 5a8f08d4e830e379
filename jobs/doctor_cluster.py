"""What doctor asks of a cluster: its token, its nodes one by one, what they share, its dashboard and metrics ports."""

import itertools
import os
import socket
import urllib.error
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.common import DIRECT, job_stores
from jobs.doctor_config import DoctorConfig
from jobs.doctor_machine import fits, result_folders
from pipeline.base.cluster import alive_nodes, cluster_target, connected, has_cluster_token, token_file
from pipeline.base.errors import LeukorayError, PlatformError
from pipeline.base.finding import Finding
from pipeline.base.likeness import deciding
from pipeline.base.node_facts import NodeFacts, gib, judge, judge_beside, look
from pipeline.base.nodes import facts_of, name_of, others, skew_of
from pipeline.base.resources import in_all, sizes
from pipeline.storage.shared import unshared
from pipeline.storage.uris import absolute, is_s3

_CONNECT_S = 3.0
_OF_TRAINING = ("torch", "torchvision")  # looked at as well, though this process uses neither


def authentication(config: DoctorConfig) -> Iterator[Finding]:
    """A `ray start` on a machine with a token file asks for the token; a plain `ray job submit` does not send it."""
    sends, has_token = os.environ.get("RAY_AUTH_MODE", "") == "token", has_cluster_token()
    submit = "RAY_AUTH_MODE=token ray job submit --working-dir . -- python -m jobs.train ..."
    if sends and not has_token:
        text = f"RAY_AUTH_MODE=token, but no token in {token_file()} or RAY_AUTH_TOKEN; copy the cluster's there"
        yield Finding("fail", "ray token", text, f"ssh HEAD ray get-auth-token > {token_file()}")
    elif sends:
        yield Finding("ok", "ray token", "RAY_AUTH_MODE=token and a token is there: submit jobs as usual")
    elif has_token:
        text = f"a token exists, RAY_AUTH_MODE is not set; submit with: {submit}"
        yield Finding("warn", "ray token", text, "export RAY_AUTH_MODE=token")
    else:
        yield Finding("ok", "ray token", f"none yet; where a cluster asks for one (HTTP 401): {submit}")


def cluster(config: DoctorConfig) -> Iterator[Finding]:
    target = cluster_target(config.address)
    if not target:
        yield Finding("ok", "ray", "no --address or RAY_ADDRESS: jobs start a local Ray and end it")
        return
    try:
        with connected(config.address, config.num_cpus) as ray:
            nodes = alive_nodes(ray)
            yield Finding("ok", "ray", f"{target}: {sizes(nodes)}, Ray {ray.__version__}")
            yield from fits(nodes, f"{in_all(nodes, 'CPU'):g} CPUs in all, {in_all(nodes, 'GPU'):g} GPUs")
            yield from _nodes(ray, config)
            yield from _shared(ray, config)
            yield _dashboard()
            yield _metrics(ray)
    except LeukorayError as error:
        yield Finding("fail", "ray", str(error))


def _nodes(ray: Any, config: DoctorConfig) -> Iterator[Finding]:
    """One line a node that is well, else one for each thing that is not."""
    names = sorted({*deciding(), *_OF_TRAINING})
    own, beside = look(names=names), {node["NodeID"] for node in others(ray)}
    nodes = {name_of(node): node for node in ray.nodes() if node["Alive"]}
    for name, facts in facts_of(ray, list(nodes.values()), result_folders(config), names):
        if isinstance(facts, PlatformError):
            yield Finding("fail", "node", str(facts), node=name)
            continue
        found = [*judge(facts), *_placement(nodes[name]["Resources"], facts)]
        if nodes[name]["NodeID"] in beside:
            found += judge_beside(facts, own, *skew_of(ray, nodes[name]))
        wrong = [finding for finding in found if finding.level != "ok"]
        for one in wrong:
            yield Finding(one.level, one.name, one.text, one.mend, name)
        if not wrong:
            text = f"{facts.cores} cores, {gib(facts.memory_bytes)}, {facts.gpus} GPUs; versions and clock as here"
            yield Finding("ok", "node", text, node=name)


def _placement(promised: Mapping[str, float], facts: NodeFacts) -> Iterator[Finding]:
    """What Ray hands out of a node against what the machine has."""
    cpus, gpus = promised.get("CPU", 0.0), int(promised.get("GPU", 0.0))
    if cpus > facts.cores:
        text = f"Ray hands out {cpus:g} CPUs, the machine has {facts.cores}: jobs share them and are slow"
        yield Finding("warn", "placement", text, f"ray start --num-cpus={facts.cores} ...")
    if facts.gpus > gpus and facts.visible_gpus is None and facts.driver:
        text = f"Ray hands out {gpus} GPUs, the machine has {facts.gpus}"
        yield Finding("warn", "placement", text, f"ray start --num-gpus={facts.gpus} ...")


def _shared(ray: Any, config: DoctorConfig) -> Iterator[Finding]:
    """Whether all nodes see the local folders that were named."""
    stores = job_stores(config)
    named = [absolute(uri) for uri in (config.source, config.model) if uri is not None]
    inside = (file.uri for uri in named if not is_s3(uri) for file in itertools.islice(stores.of(uri).walk(uri), 1))
    out = absolute(config.out)
    unseen = [*unshared(ray, stores, itertools.chain(named, inside), out if Path(out).is_dir() else None)]
    for sentence in unseen:
        yield Finding("fail", "shared", sentence)
    if not unseen and others(ray):
        yield Finding("ok", "shared", "all nodes see what was named alike")


def _dashboard() -> Finding:
    """Where jobs are submitted to."""
    from ray._private.worker import get_dashboard_url

    url, mend = get_dashboard_url(), "ray start --head --include-dashboard=true"
    if not url:
        text = "the head has none: `ray job submit` has nowhere to send a job"
        return Finding("warn", "dashboard", text, mend)
    address = f"http://{url.removeprefix('http://')}"
    try:
        DIRECT.open(f"{address}/api/version", timeout=_CONNECT_S).close()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return Finding("warn", "dashboard", f"{address} answers with HTTP {error.code}; see its log on the head")
        text = f"{address} asks for a token: `RAY_AUTH_MODE=token ray job submit --address {address}`"
        return Finding("ok", "dashboard", text)
    except OSError as error:
        text = f"{address} does not answer from here ({error}): `ray job submit` has nowhere to send a job"
        return Finding("warn", "dashboard", text, f"{mend} --dashboard-host=0.0.0.0")
    return Finding("ok", "dashboard", f"ray job submit --address {address}")


def _metrics(ray: Any) -> Finding:
    """Whether Prometheus would reach Ray's metrics and ours on every node."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    ports = [(node["NodeManagerAddress"], int(node.get("MetricsExportPort", 0))) for node in nodes]
    silent = [f"{host}:{port}" for host, port in ports if not _listens(host, port)]
    if silent:
        text = f"nothing listens on {', '.join(silent)}; name a port that the network lets through"
        return Finding("warn", "metrics", text, "ray start --metrics-export-port=8090 ...")
    return Finding("ok", "metrics", f"for Prometheus: {', '.join(f'{host}:{port}' for host, port in ports)}")


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True
