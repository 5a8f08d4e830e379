"""`leukoray explain`: a picture and a line for each image, and what it says where there is none."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import explain
from pipeline.base.record import Record
from tests.bundles import make_bundle, make_mapped_bundle
from tests.unit.test_maps import red_at

SIZE = 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    Image.fromarray(red_at(SIZE, 8, 40)).save(made / "a.png")
    Image.fromarray(red_at(SIZE, 40, 8)[:, :, ::-1].copy()).save(made / "b.png")
    return made


def run(*arguments: str | Path) -> int:
    return explain.command([*map(str, arguments)])


def lines_of(out: Path) -> list[dict[str, str]]:
    with open(out / explain.TABLE, newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_gets_a_picture_with_its_map_beside_it_and_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = make_mapped_bundle(tmp_path / "model"), tmp_path / "out"
    assert run(folder, "--model", bundle.uri, "--out", out) == 0
    red, blue = lines_of(out)
    assert [red["decision"], blue["decision"]] == ["positive", "negative"]
    assert red["map_of"] == blue["map_of"] == "positive" and red["class"] == "positive"
    assert float(red["peak"]) > 0 and float(blue["peak"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [red["picture"], blue["picture"], explain.TABLE, "run.json"]
    kept = Record.model_validate_json((out / "run.json").read_bytes())
    assert (kept.job, kept.exit_code, kept.counts) == ("explain", 0, {"images": 2, "pictures": 2})
    assert kept.digests == {"model": bundle.info.identity()}
    pixels = np.asarray(Image.open(out / red["picture"]), np.int64)
    side = explain.SIDE
    plain, mapped = pixels[:, :side], pixels[:, -side:]
    scale = side // SIZE
    hot, cold = (slice(9 * scale, 15 * scale), slice(41 * scale, 47 * scale)), (slice(200, 300), slice(0, 100))
    assert (plain[hot][..., 0] > 230).all()
    assert (mapped[hot][..., 0] - mapped[hot][..., 2]).mean() > 50  # orange
    assert np.ptp(mapped[cold], axis=-1).max() == 0  # gray
    told = capsys.readouterr().out
    assert "0002_b.png" in told and "no place speaks for it" in told and "not a medical device" in told


def test_of_many_classes_the_map_is_of_the_one_that_is_named_or_asked_for(folder: Path, tmp_path: Path) -> None:
    bundle = make_mapped_bundle(tmp_path / "model", task="multiclass")
    assert run(folder, "--model", bundle.uri, "--out", tmp_path / "named") == 0
    assert [line["map_of"] for line in lines_of(tmp_path / "named")] == ["Pro", "Benign"]
    assert run(folder, "--model", bundle.uri, "--out", tmp_path / "pro", "--of", "Pro") == 0
    assert [line["map_of"] for line in lines_of(tmp_path / "pro")] == ["Pro", "Pro"]
    assert [float(line["peak"]) > 0 for line in lines_of(tmp_path / "pro")] == [True, False]


def test_what_cannot_be_read_has_a_line_that_says_why_and_the_job_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.png").write_bytes(b"\x89PNG no image")
    bundle = make_mapped_bundle(tmp_path / "model")
    assert run(folder, "--model", bundle.uri, "--out", tmp_path / "out") == 4
    broken, sound = lines_of(tmp_path / "out")
    assert broken["why_not"] and not broken["picture"] and sound["picture"] == "0002_b.png"
    assert "1 of 2 images could not be read" in capsys.readouterr().err


def test_pictures_of_others_stay_and_those_of_an_earlier_run_go(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = make_mapped_bundle(tmp_path / "model"), tmp_path / "out"
    assert run(folder, "--model", bundle.uri, "--out", out) == 0
    Image.fromarray(red_at(SIZE, 8, 40)).save(out / "0003_mine.png")
    (folder / "b.png").unlink()
    assert run(folder, "--model", bundle.uri, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0001_a.png", "0003_mine.png", explain.TABLE, "run.json"]
    Image.fromarray(red_at(SIZE, 8, 40)).save(out / "0001_a.png")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(folder, "--model", bundle.uri, "--out", out) == 3
    assert f"{out / '0001_a.png'} is of no explanation" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_names_of_any_length_and_lines_in_the_order_of_the_images(folder: Path, tmp_path: Path) -> None:
    long = "\U0001f9ec" * 60  # 240 bytes, which a file's name may have
    (folder / "a.png").rename(folder / f"{long}.png")
    (folder / "c.png").write_bytes(b"\x89PNG no image")
    bundle = make_mapped_bundle(tmp_path / "model")
    assert run(folder, "--model", bundle.uri, "--out", tmp_path / "out") == 4
    lines = lines_of(tmp_path / "out")
    assert [Path(line["uri"]).name for line in lines] == ["b.png", "c.png", f"{long}.png"]
    assert [line["picture"] for line in lines] == ["0001_b.png", "", f"0003_{long[:40]}.png"]
    assert (tmp_path / "out" / lines[2]["picture"]).stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--of", "Late"], "no map of 'Late'; of positive"),
        (["--of", "negative"], "no map of 'negative'; of positive"),
    ],
)
def test_a_class_without_a_map_is_refused_before_any_image_is_read(
    arguments: list[str], why: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_mapped_bundle(tmp_path / "model")
    assert run(folder, "--model", bundle.uri, "--out", tmp_path / "out", *arguments) == 3
    assert why in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_model_without_maps_and_a_source_without_images_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = make_bundle(tmp_path / "linear")
    assert run(folder, "--model", linear.uri, "--out", tmp_path / "out") == 3
    assert "no map is known of its network (linear)" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    bundle = make_mapped_bundle(tmp_path / "model")
    assert run(tmp_path / "empty", "--model", bundle.uri, "--out", tmp_path / "out") == 3
    assert "no image" in capsys.readouterr().err


def test_no_torch_is_needed(folder: Path, tmp_path: Path) -> None:
    bundle = make_mapped_bundle(tmp_path / "model")
    code = (
        "import sys\n"
        "from jobs import explain\n"
        f"code = explain.command([{str(folder)!r}, '--model', {bundle.uri!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
