"""Settings of the service, the Serve config in the repository, and what a replica must not import."""

import hashlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.serve import ServeConfig, check_port, warn_of_open_door
from jobs.serve import command as serve_command
from pipeline.base.errors import UsageError
from serving.settings import ADMIN_KEYS_VARIABLE, API_KEYS_VARIABLE, ServingSettings, proxy_timeout_s, read_settings
from tests.bundles import make_bundle

ROOT = Path(__file__).parents[2]


def test_serve_config_in_the_repository_is_accepted_by_serve_and_by_us() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema(**yaml.safe_load((ROOT / "infra" / "serve_config.yaml").read_text()))
    (application,) = config.applications
    assert application.import_path == "serving.app:build"
    settings = read_settings(dict(application.args))
    assert config.http_options.request_timeout_s == proxy_timeout_s(settings.request_timeout_s)
    deployments = {deployment.name for deployment in application.deployments}
    assert deployments <= {"LeukorayReplica"}


def test_keys_of_the_environment_are_only_kept_as_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEYS_VARIABLE, "secret-one, secret-two,,")
    settings = read_settings({"model": "m"})
    expected = {hashlib.sha256(key).hexdigest() for key in (b"secret-one", b"secret-two")}
    assert set(settings.api_key_sha256) == expected
    assert "secret" not in settings.model_dump_json()


@pytest.mark.parametrize("variable", [API_KEYS_VARIABLE, ADMIN_KEYS_VARIABLE])
@pytest.mark.parametrize("said", [",", " ", "\n", "good,schl\u00fcssel", "two\nlines"])
def test_keys_that_nobody_could_send_are_refused_and_not_quoted(
    variable: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, said)
    with pytest.raises(UsageError) as refused:
        read_settings({"model": "m"})
    assert variable in str(refused.value) and "schl" not in str(refused.value) and "two" not in str(refused.value)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({}, "model"),
        ({"model": "m", "max_byte": 1}, "max_byte"),
        ({"model": "m", "max_replicas": 0}, "max_replicas"),
        ({"model": "m", "min_replicas": 3, "max_replicas": 2}, "below min_replicas"),
        ({"model": "m", "api_key_sha256": ["my-key"]}, "not the keys themselves"),
        ({"model": "m", "max_bytes": 10**10}, "max_in_flight_bytes"),
        ({"model": "m", "request_timeout_s": float("inf")}, "request_timeout_s"),
        ({"model": "m", "request_timeout_s": 1e12}, "request_timeout_s"),
        ({"model": "m", "decode_timeout_s": 1e12}, "decode_timeout_s"),
        ({"model": "m", "cpus_per_replica": float("inf")}, "cpus_per_replica"),
        ({"model": "m", "batch_wait_s": 30}, "batch_wait_s 30 leaves nothing of request_timeout_s 30"),
        ({"model": "m", "cors_origins": ["lab.example"]}, "'lab.example' is no origin"),
        ({"model": "m", "cors_origins": ["https://lab.example/"]}, "is no origin"),
        ({"model": "https://example.org/m"}, "only local paths and s3://"),
    ],
)
def test_wrong_argument_is_named(args: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        read_settings(args)


def test_replica_without_a_gpu_uses_onnx() -> None:
    assert ServingSettings(model="m").engine == "onnx"
    assert ServingSettings(model="m", gpus_per_replica=0.5).engine == "torch"


def test_replica_imports_neither_torch_nor_training(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", size=16)
    code = f"""
import sys
import serving.app
from serving.model import load_model
from serving.settings import ServingSettings
settings = ServingSettings(model={bundle.uri!r})
load_model(settings.model, settings)
heavy = [name for name in ("torch", "torchvision", "ray.data", "ray.train", "sklearn") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_port_in_use_ends_with_exit_5_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    bundle = make_bundle(tmp_path / "bundle", size=16)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve_command([bundle.uri, "--port", str(port)]) == 5
    assert f"port {port}" in capsys.readouterr().err
    check_port("127.0.0.1", port)


def test_model_that_is_none_ends_with_exit_3_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve_command([str(tmp_path / "nothing")]) == 3
    assert "neither a bundle" in capsys.readouterr().err
    broken = make_bundle(tmp_path / "broken", size=16)
    (tmp_path / "broken" / "model.onnx").write_bytes(b"not a graph")
    assert serve_command([broken.uri]) == 3
    assert "model.onnx" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_a_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "bundle", size=16)
    for flags, word in (
        (["--replicas", "2", "--max-replicas", "1"], "--max-replicas 1 is below --replicas 2"),
        (["--cors-origins", "lab.example"], "'lab.example' is no origin"),
        (["--traces-to", "collector:4318"], "expected the address of a collector"),
        (["--traces-to", "http://collector:4318", "--address", "10.0.0.1:6379"], "for a Ray that starts here"),
    ):
        assert serve_command([bundle.uri, *flags]) == 2
        assert word in capsys.readouterr().err


def test_traces_without_their_packages_are_refused_before_a_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "serving.traces_out", None)  # as where the extra is missing
    bundle = make_bundle(tmp_path / "bundle", size=16)
    assert serve_command([bundle.uri, "--traces-to", "http://127.0.0.1:4318"]) == 5
    assert "leukoray[tracing]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "keys", "is_warned"),
    [("127.0.0.1", "", False), ("::1", "", False), ("0.0.0.0", "", True), ("::", " ,", True), ("0.0.0.0", "k", False)],
)
def test_listening_to_all_without_a_key_is_warned_of(
    host: str, keys: str, is_warned: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEYS_VARIABLE, keys)
    warn_of_open_door(ServeConfig(model=["m"], host=host))
    assert ("warning: " in capsys.readouterr().err) is is_warned
