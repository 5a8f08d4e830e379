"""Signed bundles: what is not as it was signed, by whom it should be, is refused by name before any work."""

import getpass
import json
import shutil
import sys
from pathlib import Path

import model_signing
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from jobs import promote, score
from pipeline.base.errors import InputError
from pipeline.model.bundle import BOM, CARD, GRAPH, INFO, SIGNATURE, WEIGHTS, Bundle, read_bundle
from pipeline.model.predictor import Predictor
from pipeline.model.registry import ModelFolder, resolve
from pipeline.model.signature import is_signed, public_key, sign, verified
from tests.bundles import make_bundle
from tests.keys import Keys, make_keys
from tests.servers import S3Server

COVERED = (BOM, INFO, WEIGHTS, GRAPH)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Bundle:
    bundle = make_bundle(tmp_path_factory.mktemp("published") / "v1", size=8, version="v1")
    sign(bundle, keys.private)
    return bundle


@pytest.fixture
def signed(published: Bundle, tmp_path: Path) -> Bundle:
    """A copy to be tampered with."""
    shutil.copytree(published.uri, tmp_path / "v1")
    return read_bundle(str(tmp_path / "v1"))


def refusal(uri: str, key: str) -> str:
    """Why a bundle is refused, as a command would."""
    with pytest.raises(InputError) as refused:
        resolve(uri, verify=key)
    return str(refused.value)


def test_a_signed_bundle_answers_as_before_from_what_was_checked(signed: Bundle, keys: Keys) -> None:
    found = resolve(signed.uri, verify=keys.pem)
    assert found.info == signed.info and found.signed_by and not signed.signed_by
    pixels = np.full((8, 8, 3), 200, np.uint8)
    before = Predictor(signed, engine="onnx").predict_each([pixels])
    for name in COVERED:  # whoever comes later changes nothing of what was checked
        Path(signed.uri, name).write_bytes(b"other")
    after = Predictor(found.with_threshold(0.25).hold(), engine="onnx")
    assert after.bundle.signed_by == found.signed_by
    assert after.predict_each([pixels])[0].probability == before[0].probability  # type: ignore[union-attr]


def test_what_people_edit_is_not_covered(signed: Bundle, keys: Keys) -> None:
    Path(signed.uri, CARD).write_text("edited")
    Path(signed.uri, "MODEL_CARD.2.md").write_text("new")
    Path(signed.uri, "report").mkdir()
    Path(signed.uri, "report", "report.html").write_text("<p>later</p>")
    assert resolve(signed.uri, verify=keys.pem).signed_by


def test_one_that_is_not_signed_is_refused(tmp_path: Path, keys: Keys) -> None:
    bundle = make_bundle(tmp_path / "v1", size=8)
    assert not is_signed(bundle)
    assert "is not signed (model.sig is missing)" in refusal(bundle.uri, keys.pem)


def test_one_of_another_key_is_refused(signed: Bundle, keys: Keys, tmp_path: Path) -> None:
    other = make_keys(tmp_path, "other")
    assert "was signed with another key" in refusal(signed.uri, other.pem)
    ours = json.loads(Path(signed.uri, SIGNATURE).read_text())
    sign(signed, other.private)
    theirs = json.loads(Path(signed.uri, SIGNATURE).read_text())
    theirs["verificationMaterial"] = ours["verificationMaterial"]  # it claims to be of the right one
    Path(signed.uri, SIGNATURE).write_text(json.dumps(theirs))
    assert "model.sig was altered" in refusal(signed.uri, keys.pem)


@pytest.mark.parametrize("name", COVERED)
@given(at=some.integers(0, 1 << 20), bit=some.integers(0, 7))
def test_any_flipped_bit_of_a_covered_file_is_refused_by_its_name(
    published: Bundle, keys: Keys, name: str, at: int, bit: int
) -> None:
    path = Path(published.uri, name)
    whole = path.read_bytes()
    at %= len(whole)
    try:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        said = refusal(published.uri, keys.pem)
        assert name in said or "is of other pixel rules" in said  # what bundle.json says is looked at first
    finally:
        path.write_bytes(whole)


@given(at=some.integers(0, 1 << 20), bit=some.integers(0, 7))
def test_a_flipped_bit_of_the_signature_never_lets_another_file_in(
    published: Bundle, keys: Keys, at: int, bit: int
) -> None:
    """Some of its bits mean nothing, as the last ones of base64; none of them makes a changed graph the right one."""
    path, graph = Path(published.uri, SIGNATURE), Path(published.uri, GRAPH)
    whole, right = path.read_bytes(), graph.read_bytes()
    at %= len(whole)
    try:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        graph.write_bytes(right + b"\0")
        refusal(published.uri, keys.pem)
    finally:
        path.write_bytes(whole)
        graph.write_bytes(right)


@pytest.mark.parametrize("name", [BOM, WEIGHTS, GRAPH])
def test_a_missing_file_is_refused_by_its_name(signed: Bundle, keys: Keys, name: str) -> None:
    Path(signed.uri, name).unlink()
    assert name in (said := refusal(signed.uri, keys.pem)) and "missing" in said


@pytest.mark.parametrize("name", ["sketch.parquet", "extra/plugin.py", ".hidden"])
def test_an_added_file_is_refused_by_its_name(signed: Bundle, keys: Keys, name: str) -> None:
    Path(signed.uri, name).parent.mkdir(exist_ok=True)
    Path(signed.uri, name).write_bytes(b"")
    assert f"{name} is not covered by the signature" in refusal(signed.uri, keys.pem)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b'{"verificationMaterial": {}, "dsseEnvelope": []}'])
def test_what_is_no_signature_is_refused(signed: Bundle, keys: Keys, data: bytes) -> None:
    Path(signed.uri, SIGNATURE).write_bytes(data)
    assert "model.sig: cannot be read as a signature" in refusal(signed.uri, keys.pem)


def test_a_signature_that_leaves_the_graph_out_is_refused(signed: Bundle, keys: Keys) -> None:
    """By the right key and a stock tool that was told to ignore what decides the answers."""
    folder = Path(signed.uri)
    (folder / SIGNATURE).unlink()
    ignoring = model_signing.hashing.Config().set_ignored_paths(paths=[CARD, GRAPH, SIGNATURE])
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys.private)
    signer.set_hashing_config(ignoring).sign(folder, folder / SIGNATURE)
    assert "model.onnx is not covered by the signature" in refusal(signed.uri, keys.pem)


def test_stock_tools_read_our_signature(signed: Bundle, keys: Keys) -> None:
    folder = Path(signed.uri)
    stock = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys.public)
    stock.verify(folder, folder / SIGNATURE)
    (folder / GRAPH).write_bytes(b"other")
    with pytest.raises(ValueError, match=r"Hash mismatch for .*model\.onnx"):
        stock.verify(folder, folder / SIGNATURE)


def test_a_bundle_on_s3_is_signed_and_checked_there(s3: S3Server, published: Bundle, keys: Keys) -> None:
    files = {path.name: path.read_bytes() for path in Path(published.uri).iterdir() if path.name != SIGNATURE}
    uri = s3.upload("signed/v1", files)
    stores = s3.stores
    sign(read_bundle(uri, stores), keys.private)
    assert resolve(uri, stores, keys.pem).signed_by
    s3.upload("signed/v1", {GRAPH: files[GRAPH] + b"\0"})
    with pytest.raises(InputError, match=r"model\.onnx is not what was signed"):
        resolve(uri, stores, keys.pem)


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_what_is_no_public_key_is_refused(tmp_path: Path, keys: Keys) -> None:
    (tmp_path / "text").write_text("no key")
    with pytest.raises(InputError, match="no public key in PEM"):
        public_key(str(tmp_path / "text"))
    with pytest.raises(InputError, match="is a private key; give the public one"):
        public_key(keys.private)
    with pytest.raises(InputError, match="cannot be read as a public key"):
        public_key(str(tmp_path / "none"))
    assert public_key(keys.public) == public_key(keys.pem) == keys.pem


def test_a_key_with_a_password_asks_for_it_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    locked = make_keys(tmp_path, "locked", password=b"secret word")
    bundle = make_bundle(tmp_path / "v1", size=8)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert promote.command([bundle.uri, "--sign", locked.private]) == 3
    assert "no terminal to ask" in capfd.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: "not it")
    assert promote.command([bundle.uri, "--sign", locked.private]) == 3
    assert "wrong password" in (said := capfd.readouterr().err) and "not it" not in said
    monkeypatch.setattr(getpass, "getpass", lambda prompt: "secret word")
    assert promote.command([bundle.uri, "--sign", locked.private]) == 0
    assert resolve(bundle.uri, verify=locked.pem).signed_by


# ---- commands --------------------------------------------------------------------------------------------------------


def test_promote_signs_before_best_json_moves(tmp_path: Path, keys: Keys, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "m" / "v1", size=8, version="v1")
    folder = ModelFolder(str(tmp_path / "m"))
    bad = tmp_path / "bad.key"
    bad.write_text("no key")
    assert promote.command([folder.uri, "--version", "v1", "--sign", str(bad)]) == 3
    assert folder.pointer() is None and "is no private key" in capfd.readouterr().err
    assert promote.command([folder.uri, "--version", "v1", "--sign", keys.private, "--list"]) == 0
    assert folder.pointer() is not None and verified(bundle, keys.pem).signed_by
    assert "signed" in capfd.readouterr().out.splitlines()[2]


def test_score_refuses_before_any_work(
    tmp_path: Path, signed: Bundle, keys: Keys, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans").mkdir()
    Path(signed.uri, GRAPH).write_bytes(Path(signed.uri, GRAPH).read_bytes() + b"\0")
    flags = [str(tmp_path / "scans"), "--model", signed.uri, "--out", str(tmp_path / "scores"), "--verify", keys.public]
    assert score.command(flags) == 3
    assert "model.onnx is not what was signed" in capfd.readouterr().err
    assert not (tmp_path / "scores").exists()
