"""`leukoray transfer-check` on Ray: exit codes, files, an archive as source."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs import transfer_check
from pipeline.model.bundle import Bundle
from tests.unit.test_transfer import images, knowing_bundle, picture


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return knowing_bundle(tmp_path_factory.mktemp("model"))


def test_a_strict_check_lets_own_images_pass_and_ends_with_4_for_others(
    ray_cluster: Any, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = images(tmp_path / "own", 40)
    inverted = images(tmp_path / "other", 30, change=lambda image: Image.eval(image, lambda level: 255 - level))
    out = tmp_path / "out"
    flags = ["--model", bundle.uri, "--out", str(out), "--strict"]
    assert transfer_check.command([str(own), *flags, "--sample", "25"]) == 0
    assert "looks like the images of training" in capsys.readouterr().out
    record = json.loads((out / "transfer.json").read_text())
    assert record["images"] == {"listed": 40, "drawn": 25, "measured": 25} and record["verdict"] == "alike"
    assert transfer_check.command([str(inverted), *flags]) == 4
    told = capsys.readouterr()
    assert "do not trust the threshold" in told.err and "30 of 30 images (100 %) look unlike" in told.out
    assert (out / "transfer.html").read_text().count("<figure>") == 12
    assert transfer_check.command([str(inverted), *flags[:-1]]) == 0


def test_members_of_an_archive_are_checked_and_few_cannot_be_told(
    ray_cluster: Any, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "night.tar.gz", "w:gz") as tar:
        for seed in range(12):
            data = picture(7000 + seed) if seed else b"no image"
            member = tarfile.TarInfo(f"leukemia/patient_{seed % 3}/{seed}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    arguments = [str(tmp_path / "night.tar.gz"), "--model", bundle.uri, "--out", str(tmp_path / "out"), "--strict"]
    assert transfer_check.command(arguments) == 4
    told = capsys.readouterr().out
    assert "cannot be told: 11 images could be measured, 20 are needed" in told
    assert "1 images could not be read: 1 unsupported_format" in told and "11 images of 3 subjects" in told, told
