"""A transfer check without Ray: what is drawn, measured, said and shown; the command's refusals."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from jobs import summary, transfer_check
from pipeline.base.errors import Code, ImageRejected, InputError
from pipeline.evaluation import drift
from pipeline.evaluation.drawing import Drawn, draw_listed, draw_recorded, drawn
from pipeline.evaluation.report.transfer import render_transfer
from pipeline.evaluation.transfer import Inspected, Transfer, inspect_rows, sentences, statistics_of
from pipeline.images.appearance import NAMES
from pipeline.model.bundle import Bundle
from pipeline.model.drift import OOD_SCORE, ReferenceStatistics, Verdict
from pipeline.model.predictor import Predictor
from pipeline.scoring.run_folder import RECORD
from pipeline.scoring.summary.page import render_page
from pipeline.scoring.summary.summary import summarize
from pipeline.sources.manifest import write_manifest
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle, make_familiar_bundle
from tests.images import encoded
from tests.scoring_sources import score_here, write_files
from tests.training_data import cell_images, manifest_of
from tests.unit.test_appearance import cell

Change = Callable[[Image.Image], Image.Image]


def picture(seed: int, change: Change = lambda image: image) -> bytes:
    """A cell of its own size and light, on a stage where both vary a little."""
    rng = np.random.default_rng(seed)
    pixels = cell(seed, radius=rng.uniform(22, 30)) * rng.uniform(0.94, 1.0)
    return encoded(change(Image.fromarray(pixels.astype(np.uint8))), "PNG")


def images(folder: Path, count: int, first: int = 5000, change: Change = lambda image: image) -> Path:
    return write_files(folder, {f"{seed}.png": picture(seed, change) for seed in range(first, first + count)})


def knowing_bundle(folder: Path) -> Bundle:
    """A linear model that knows what 120 cells of 20 subjects look like."""
    plain = make_familiar_bundle(folder / "m", [picture(seed) for seed in range(120)], 144, unit="cell")
    rows = draw_listed(str(images(folder / "own", 120, 200)), 500, 0, Stores()).rows
    found = inspect_rows(Predictor(plain), rows)
    empty = ReferenceStatistics(images=0, subjects=0, statistics={})
    asked = Transfer(plain.info, empty, Drawn(rows, [None] * 120, 120, {}, {}), found, None)
    known = drift.fit(asked.values, [f"s{k % 20}" for k in range(120)], "subjects")
    return plain.update(reference_statistics=known)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return knowing_bundle(tmp_path_factory.mktemp("model"))


def check(bundle: Bundle, source: Path, subjects: int | None = None) -> Transfer:
    found = draw_listed(str(source), 500, 0, Stores())
    inspected = inspect_rows(Predictor(bundle), found.rows)
    return Transfer(bundle.info, statistics_of(bundle), found, inspected, subjects)


def test_own_images_look_alike(bundle: Bundle, tmp_path: Path) -> None:
    found = check(bundle, images(tmp_path, 40))
    assert found.verdict is Verdict.ALIKE
    assert sentences(found)[0] == "looks like the images of training"
    assert "40 images of an unknown number of subjects, drawn from 40" in sentences(found)[-1]


def test_blocks_are_named_and_narrow_no_limits_of_subjects(bundle: Bundle, tmp_path: Path) -> None:
    """Twenty blocks of file numbers may be of one subject; they count where the model knows its images by blocks."""
    found = check(bundle, images(tmp_path, 40), subjects=20)
    of_blocks = replace(found, called="blocks")
    assert "40 images of 20 subjects" in sentences(found)[-1]
    assert "40 images of 20 blocks" in sentences(of_blocks)[-1] and of_blocks.record()["called"] == "blocks"
    alone = replace(found, subjects=1)
    alike = replace(of_blocks, reference=found.reference.model_copy(update={"called": "blocks"}))
    wide, narrow, blocks, own = (
        {shift.name: shift.limit for shift in each.shifts} for each in (alone, found, of_blocks, alike)
    )
    assert blocks == wide != narrow == own


def test_the_command_reads_from_the_manifest_that_its_subjects_are_blocks(bundle: Bundle, tmp_path: Path) -> None:
    rows = [row | {"subject_id": f"b{k // 5}"} for k, row in enumerate(cell_images(tmp_path / "images", 30))]
    made = manifest_of(rows, tmp_path / "manifest")
    info = made.info.model_copy(update={"units": "blocks"})
    uri = write_manifest(str(tmp_path / "blocks"), [made.table], info).uri
    drawn_ = draw_recorded(uri, None, 500, 0, Stores())
    config = transfer_check.TransferCheckConfig(source=uri, model=bundle.uri)
    assert transfer_check._subjects(config, drawn_, Stores()) == (6, "blocks")
    nameless = config.model_copy(update={"subjects": 3}), replace(drawn_, subjects=[None] * len(drawn_.rows))
    assert transfer_check._subjects(*nameless, Stores()) == (3, "subjects")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image.filter(ImageFilter.GaussianBlur(2)), "blurred: "),
        (lambda image: image.point(lambda level: int(level * 0.7)), "darker by "),
        (lambda image: image.crop((24, 24, 120, 120)).resize((144, 144)), "cells look 5"),
    ],
)
def test_changed_images_are_told_by_name(bundle: Bundle, tmp_path: Path, change: Change, words: str) -> None:
    found = check(bundle, images(tmp_path, 40, change=change))
    assert found.verdict is Verdict.TOO_DIFFERENT
    assert words in "\n".join(sentences(found))


def test_few_images_cannot_be_told(bundle: Bundle, tmp_path: Path) -> None:
    found = check(bundle, images(tmp_path, 19))
    assert found.verdict is Verdict.UNKNOWN
    assert sentences(found)[0] == "cannot be told: 19 images could be measured, 20 are needed"


def test_a_figure_that_no_image_shows_is_not_within_its_limit(bundle: Bundle, tmp_path: Path) -> None:
    found = check(bundle, images(tmp_path, 40))
    blank = [replace(item, looks=(*item.looks[: NAMES.index("size")], float("nan"))) for item in found.inspected]
    assert NAMES[-1] == "size"
    changed = replace(found, inspected=blank)
    assert changed.verdict is Verdict.DIFFERS
    line = next(line for line in sentences(changed) if "cannot be told" in line)
    assert line.endswith("cannot be told, no image shows it, most at home do")
    page = html.unescape(render_transfer(changed, "red cells", {}, Stores()))
    [row] = [row for row in page.split("<tr")[1:] if line.removeprefix("- ")[8:] in row and "<td>" in row]
    assert "beyond" in row and "within the limit" not in row and page.count("within the limit") == len(NAMES)
    few = [*blank[:22], *found.inspected[:18]]
    told = replace(found, inspected=few, drawn=found.drawn)
    assert any("18 images show it, most at home do" in line or "20 are needed" in line for line in sentences(told))


def test_unreadable_images_are_counted_and_masks_left_out(bundle: Bundle, tmp_path: Path) -> None:
    images(tmp_path, 22)
    write_files(tmp_path, {"bad.png": b"no image", "5000_mask.png": picture(1)})
    found = check(bundle, tmp_path)
    assert found.unreadable == {"unsupported_format": 1} and len(found.usable) == 22
    assert found.drawn.left_out == {"masks": 1} and found.drawn.listed == 23
    assert "1 images could not be read: 1 unsupported_format" in "\n".join(sentences(found))


def test_a_source_that_can_mostly_not_be_read_is_not_called_alike(bundle: Bundle, tmp_path: Path) -> None:
    found = check(bundle, images(tmp_path, 24))
    lost = Inspected(found.inspected[0].row, ImageRejected(Code.TRUNCATED, "cut"))
    half, more = (replace(found, inspected=[*found.inspected, *[lost] * count]) for count in (24, 25))
    assert half.verdict is Verdict.ALIKE and more.verdict is Verdict.UNKNOWN
    assert sentences(more)[0] == "cannot be told: 24 of 49 images could be measured, half of them are needed"
    assert "Cannot be told: 24 of 49 images" in render_transfer(more, "a disk", {}, Stores())


def test_the_record_is_json_and_the_page_fetches_nothing(bundle: Bundle, tmp_path: Path) -> None:
    darker = images(tmp_path, 30, change=lambda image: image.point(lambda level: int(level * 0.7)))
    found = check(bundle, darker)
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["verdict"] == "too_different" and record["images"]["measured"] == 30
    by_name = {item["name"]: item for item in record["statistics"]}
    assert set(by_name) == {*NAMES, OOD_SCORE} and by_name["brightness"]["is_beyond"]
    page = render_transfer(found, "<new> microscope", {"sample": 500}, Stores())
    assert "&lt;new&gt; microscope" in page and "Darker by " in page and page.count("<figure>") == 12
    assert page.count("data:image/jpeg") == 12 and "http" not in page and "<script" not in page


def test_the_same_images_are_drawn_in_any_order() -> None:
    numbers = np.random.default_rng(0).permutation(10_000).tolist()
    chosen = drawn(numbers, 50, 3, int)
    assert chosen == drawn(sorted(numbers), 50, 3, int) and len(set(chosen)) == 50
    assert chosen != drawn(numbers, 50, 4, int)
    assert 3500 < np.mean(drawn(numbers, 1000, 0, int)) < 6500


def test_of_a_manifest_a_split_is_drawn_with_its_subjects(tmp_path: Path) -> None:
    cells = cell_images(tmp_path / "images", 30)
    for number, row in enumerate(cells):
        row["subject_id"] = f"s{number // 4}"
    manifest = manifest_of(cells, tmp_path / "manifest")
    found = draw_recorded(manifest.uri, "validation", 500, 0, Stores())
    rows = manifest.split("validation")
    assert {row.image_id for row in found.rows} == {row.image_id for row in rows}
    assert found.subject_count == len({row.subject_id for row in rows}) and found.listed == len(rows)
    with pytest.raises(InputError, match="no image in split 'test'"):
        draw_recorded(manifest.uri, "test", 500, 0, Stores())


def test_the_command_says_what_is_wrong_and_what_to_do(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, some = make_bundle(tmp_path / "old", 32), images(tmp_path / "some", 2)
    empty = tmp_path / "empty"
    (empty / "none").mkdir(parents=True)
    for arguments, code, words in (
        ([some, "--model", old.uri], 3, "publish it again with `leukoray train MANIFEST`"),
        ([empty, "--model", bundle.uri], 3, "no images found"),
        ([some, "--model", bundle.uri, "--split", "test"], 2, "is no manifest"),
        ([some, "--model", bundle.uri, "--split", "all"], 2, "expected one of"),
    ):
        assert transfer_check.command([*map(str, arguments), "--out", str(tmp_path / "out")]) == code
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image, "the network's features lie as at home"),
        (lambda image: Image.eval(image, lambda level: 255 - level), "leukoray transfer-check tells what differs"),
    ],
)
def test_a_summary_compares_what_rows_hold_with_the_models_own_images(
    bundle: Bundle, tmp_path: Path, change: Change, words: str
) -> None:
    source = images(tmp_path / "in", 30, change=change)
    run = score_here([str(source)], bundle, tmp_path / "out")[0]
    found = summarize(run)
    assert words in found.drift_note and found.drift_note in summary.account(found)
    assert words[4:] in html.unescape(render_page(found, {}))
    exact = next(shift for shift in check(bundle, source).shifts if shift.name == OOD_SCORE)
    numbers = [float(text) for text in re.findall(r"\d+\.\d\d", found.drift_note)]
    assert numbers[:2] == pytest.approx([exact.here, exact.at_home], rel=0.03)
    record = json.loads(run.read(RECORD))
    del record["model"]["features"]  # as versions before wrote it
    run.write(RECORD, json.dumps(record).encode())
    assert summarize(run).drift_note == ""


def test_a_summary_of_few_images_compares_nothing(bundle: Bundle, tmp_path: Path) -> None:
    source = images(tmp_path / "in", 19)
    assert summarize(score_here([str(source)], bundle, tmp_path / "out")[0]).drift_note == ""
