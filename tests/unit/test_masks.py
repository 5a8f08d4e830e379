"""Masks and annotations are told from originals by their names and what lies beside them; classes of cells are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.masks import Masks


def masks_of(paths: list[str], include: tuple[str, ...] = ()) -> set[str]:
    masks = Masks(include)
    suspects = [path for path in paths if masks.is_suspect(path)]
    return {path for path, is_mask in zip(suspects, masks.find(suspects), strict=True) if is_mask}


@pytest.mark.parametrize(
    ("originals", "masks"),
    [
        (["a/1.jpg", "a/2.jpg"], ["a/1_mask.png", "a/2-mask.png"]),
        (["1.jpg"], ["1_seg.png", "1_expert1.bmp", "1.GT.tif", "1_ground_truth.png", "mask_1.png", "1_Mask_2.png"]),
        (["images/1.png", "images/2.png"], ["masks/1.png", "masks/2.png", "masks/9_of_another.png"]),
        (["s1/images/x.png"], ["s1/masks/f00d.png", "s1/masks/beef.png"]),
        (["Main Dataset/Baso/1.bmp"], ["Ground Truth Segmentation/Baso/areaforexpert1/1_expert.bmp",
                                       "Ground Truth Segmentation/Baso/areaforexpert2/1_expert.bmp"]),
        (["set/1.bmp"], ["set/annotations/1.png"]),
        (["train_images/7.jpg"], ["train_masks/7.png"]),
        (["JPEGImages/7.jpg"], ["SegmentationClass_masks/7.png", "segmentation/8.png"]),
        (["1.jpg"], ["1_nucleus_mask.png", "1_segmentation_mask.png", "1_mask_final.png"]),
        (["1.jpg"], ["1_Maske.png", "1-masque.png", "1 máscara.png"]),
        (["images/7.png"], ["masken/7.png"]),
        (["images.zip!/a/1.jpg"], ["masks.zip!/a/1.png"]),
        (["night.tar!/1.jpg"], ["night.tar!/1_mask.jpg"]),
    ],
)  # fmt: skip
def test_what_its_original_shows_to_be_a_mask_is_one(originals: list[str], masks: list[str]) -> None:
    assert masks_of([*masks, *originals]) == set(masks) == masks_of([*originals, *masks])


@pytest.mark.parametrize(
    "paths",
    [
        ["Band/1.jpg", "Seg/1.jpg"],
        ["P1/Band_neutrophils/1.jpg", "P1/Segmented_neutrophils/1.jpg"],
        ["segmented/1.jpg", "band/1.jpg", "blast/1.jpg"],
        ["a/1_mask.png", "a/2_mask.png"],
        ["a/1_seg.png", "b/1.png"],
        ["masks/1.png", "masks/2.png"],
        ["1_seg_neutrophil.jpg", "1.jpg"],
        ["healthy/label_1.jpg", "healthy/label_2.jpg"],
        ["expert/1.jpg", "novice/1.jpg"],
        ["gt/1.jpg", "other/1.jpg"],
    ],
)
def test_a_name_alone_makes_no_mask(paths: list[str]) -> None:
    assert masks_of(paths) == set()


@pytest.mark.parametrize(
    ("include", "kept"),
    [(("*_mask.png",), True), (("masks/*",), False), (("*.png",), False), (("*",), False), (("*.jpg", "*mask*"), True)],
)
def test_an_include_that_names_the_masks_takes_them_in(include: tuple[str, ...], kept: bool) -> None:
    assert masks_of(["1.jpg", "1_mask.png"], include) == (set() if kept else {"1_mask.png"})


def test_an_include_that_names_the_folder_of_masks_takes_it_in() -> None:
    assert masks_of(["images/1.jpg", "masks/1.png"], ("masks/*", "images/*")) == set()


NAMES = st.lists(st.sampled_from(["a", "1", "Seg", "images", "blast", "x_1", "cell-3"]), min_size=1, max_size=3)


@given(st.lists(NAMES.map("/".join), max_size=8))
def test_where_nothing_sounds_like_a_mask_none_is_found(paths: list[str]) -> None:
    unsuspicious = [f"{path}.jpg" for path in paths if "Seg/" not in path]
    assert masks_of(unsuspicious) == set()
