"""Documents of a study: what the run fills, what it leaves to a person, and where the images went."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.elsewhere import record_of
from pipeline.base.errors import Code, ImageRejected
from pipeline.evaluation.comparison.predict import ComparisonWorker
from pipeline.evaluation.comparison.result import Comparison, comparison
from pipeline.evaluation.comparison.speed import Speed
from pipeline.evaluation.explanation import MapScores, judged, sentences
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.predict import Outcome
from pipeline.evaluation.promotion.criteria import Criterion
from pipeline.evaluation.reach import threshold_of
from pipeline.evaluation.report import words
from pipeline.evaluation.study.checklists import CHECKLISTS, CLAIM, STARD_AI, TRIPOD_AI
from pipeline.evaluation.study.facts import Fact, facts
from pipeline.evaluation.study.flow import draw, flow_of
from pipeline.evaluation.study.pccp import Decision, changes
from pipeline.evaluation.study.write import FILLED, IN_PART, PERSON, counted, write_study
from pipeline.ingest.matching import match
from pipeline.sources.manifest import Manifest, NearCopyCounts
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.training_data import cell_images, manifest_of
from tests.unit.test_audit import audited


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """36 images of 12 subjects: 12 a part; 3 more of a class in no part, 2 without any class."""
    parts = ("train", "validation", "test")
    rows = [
        row | {"subject_id": f"s{k // 3}", "split": parts[k // 12]}
        for k, row in enumerate(cell_images(tmp_path / "images", 36))
    ]
    more = cell_images(tmp_path / "more", 5)
    rows += [row | {"split": None, "class_name": "smudge", "label": None} for row in more[:3]]
    rows += [row | {"split": None, "class_name": None, "label": None} for row in more[3:]]
    made = manifest_of(rows, tmp_path / "manifest", split_rule="subjects")
    info = made.info.model_copy(
        update={"ignored": ["smudge"], "left_out": {"no image": 7}, "problems": {"truncated": 1}}
    )
    return Manifest(made.uri, made.table, info)


def compared(
    manifest: Manifest, folder: Path, *, unread: int = 0, old: bool = True, unread_by_old: int = 0
) -> Comparison:
    own = {"manifest_digest": manifest.info.digest, "training": {"epochs": 3, "best_epoch": 2, "weights": "none"}}
    bundles = [make_bundle(folder / "new", 16, seed=1, bias=20.0, version="new", **own)]
    if old:
        bundles.append(make_bundle(folder / "old", 16, seed=2, bias=-20.0, version="old", threshold=0.4, **own))
    said = ComparisonWorker(bundles, Stores(), on_gpu=False).predict(manifest.split("test"))
    gone = ImageRejected(Code.TRUNCATED, "ends early")
    outcomes = [
        [Outcome(of[k].row, gone) if place < unread + unread_by_old * k else of[k] for place, of in enumerate(said)]
        for k in range(len(bundles))
    ]
    quick = [Speed(100.0, 1.0, 2.0, 10, 1000) for _ in bundles]
    thresholds = [threshold_of(bundle.info) for bundle in bundles]
    return comparison(bundles, manifest, "test", outcomes, thresholds, Resampling(100), quick)


def states(text: str) -> list[str]:
    return [row.split(" | ")[-2] for row in re.findall(r"^\|(.+)\|$", text, re.MULTILINE) if " | " in row][1:]


@pytest.mark.parametrize(
    ("checklist", "last", "parted"),
    [
        (CLAIM, 44, ""),
        (TRIPOD_AI, 27, "3abc 5ab 6abc 8abc 9abc 12abcdefg 18abcdef 20abc 23ab 27abc"),
        (STARD_AI, 40, "15abcd 16abc 17ab 26ab 40ab"),
    ],
    ids=["claim", "tripod", "stard"],
)
def test_every_item_of_a_guideline_is_there_once_by_its_number(checklist: Any, last: int, parted: str) -> None:
    """As the papers count them: 44 of CLAIM, 52 of TRIPOD+AI in 27, 48 of STARD-AI in 40."""
    letters = {re.sub(r"\D", "", part): re.sub(r"\d", "", part) for part in parted.split()}
    numbers = [f"{k}{letter}" for k in range(1, last + 1) for letter in letters.get(str(k), "") or [""]]
    assert [item.number for item in checklist.items] == numbers
    assert len(numbers) == {44: 44, 27: 52, 40: 48}[last]


def test_an_item_that_asks_for_more_than_the_run_knows_is_filled_in_part(manifest: Manifest, tmp_path: Path) -> None:
    """Which camera took the images, why this kind of model, where code is to be had: no file says."""
    known = facts(compared(manifest, tmp_path, old=False).evaluations[0])
    for checklist, numbers in ((TRIPOD_AI, "1 7 9b 12c 14 18f"), (STARD_AI, "1 12 14 15b 23 40a 40b")):
        asked = {item.number: item.fact for item in checklist.items}
        told = [known[asked[number]] for number in numbers.split() if asked[number] in known]
        assert told and not any(fact.is_whole for fact in told)
    whole = {item.number: item.fact for item in STARD_AI.items}
    assert all(known[whole[number]].is_whole for number in ("15a", "15c", "18", "20", "24", "30", "31"))


def test_items_are_named_in_few_words_and_ask_for_facts_that_exist(manifest: Manifest, tmp_path: Path) -> None:
    """A fact that is misspelt would never be filled: every name is one that some run knows."""
    source = Path("pipeline/evaluation/study/facts.py").read_text()
    for checklist in CHECKLISTS:
        for item in checklist.items:
            assert len(item.about.split()) <= 10
            assert not item.fact or f'"{item.fact}"' in source, item


def test_the_files_count_what_they_fill(manifest: Manifest, tmp_path: Path) -> None:
    folder = Path(write_study(str(tmp_path / "out"), compared(manifest, tmp_path, old=False), Stores()))
    assert {path.name for path in folder.iterdir()} == {
        "claim.md",
        "tripod_ai.md",
        "stard_ai.md",
        "pccp.md",
        "flow.svg",
    }
    for checklist in CHECKLISTS:
        text = (folder / checklist.file).read_text()
        found = states(text)
        assert len(found) == len(checklist.items)
        whole, part, person = (sum(state == of for state in found) for of in (FILLED, IN_PART, PERSON))
        assert f"**{whole} of {len(found)} items filled by the run, {part} in part; {person} need a person.**" in text
        assert whole > 5 and person > 5 and words.SYNTHETIC in text
        assert "![Where the images went](flow.svg)" in text and checklist.source in text


def test_what_the_run_cannot_know_is_left_to_a_person_and_what_it_knows_is_told(
    manifest: Manifest, tmp_path: Path
) -> None:
    folder = Path(write_study(str(tmp_path / "out"), compared(manifest, tmp_path, old=False), Stores()))
    text = (folder / "claim.md").read_text()
    rows = {row.split(" | ")[0].strip("| "): row for row in text.splitlines() if row.startswith("| ")}
    for number in ("3", "13", "14", "34", "44"):
        assert rows[number].endswith(f"| {PERSON} |  |")
    assert "train 12 images" in rows["19"] and "no subject has images in two parts" in rows["20"]
    assert "smudge" in rows["8"] and IN_PART in rows["8"] and "7 no image" in rows["8"]
    assert "Sensitivity (recall) 1.000" in rows["37"]


def test_names_bring_no_html_into_the_documents(manifest: Manifest, tmp_path: Path) -> None:
    info = manifest.info.model_copy(update={"source": ["<script>x"]})
    odd = Manifest(manifest.uri, manifest.table, info)
    folder = Path(write_study(str(tmp_path / "out"), compared(odd, tmp_path, old=False), Stores()))
    text = "".join(path.read_text() for path in folder.glob("*.md"))
    assert "<script>" not in text and "&lt;script>x" in text


def test_facts_without_ground_are_not_claimed(manifest: Manifest, tmp_path: Path) -> None:
    found = compared(manifest, tmp_path, old=False).evaluations[0]
    known = facts(found)
    assert not {"pseudonyms", "external", "demographics", "ood", "protocol", "contradictions"} & set(known)
    assert "internal" in known and facts(found, {"sha256": "ab"})["protocol"].text.count("ab")


def test_the_plan_has_three_parts_and_tells_the_change_and_its_impact(manifest: Manifest, tmp_path: Path) -> None:
    found = compared(manifest, tmp_path)
    decision = Decision([Criterion("sensitivity", "met", "1.0")], "promoted", "ada", "new stain", {"sha256": "c0ffee"})
    folder = Path(write_study(str(tmp_path / "out"), found, Stores(), decision))
    text = (folder / "pccp.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "1. Description of modifications", "2. Modification protocol", "3. Impact assessment"
    ]  # fmt: skip
    assert "threshold: 0.4 -> 0.5" in text and "sensitivity: met" in text
    assert "Promoted by ada, reason given: new stain; protocol c0ffee" in text
    assert "6 images are now right that were wrong, 6 now wrong that were right" in text
    assert changes(found.evaluations[0].bundle, found.evaluations[0].bundle) == []


def test_counts() -> None:
    assert counted([Fact("a"), Fact("b", is_whole=False), None, None]) == (
        "**1 of 4 items filled by the run, 1 in part; 2 need a person.**"
    )


def test_every_image_is_somewhere_in_the_flow(manifest: Manifest, tmp_path: Path) -> None:
    flow = flow_of(compared(manifest, tmp_path, unread=2, old=False).evaluations[0])
    assert flow.listed == flow.unlabelled + sum(flow.other_without_part.values()) + flow.labelled == 41
    assert flow.other_without_part == {"of classes left out": 3} and flow.unlabelled == 2
    assert flow.parts == {"train": (12, 4), "validation": (12, 4), "test": (12, 4)}
    assert flow.scored + sum(flow.unread.values()) == 12 and flow.unread == {"truncated": 2}
    assert flow.not_listed == {"no image": 7, "not listed: truncated": 1}
    told = "".join(ET.fromstring(draw(flow)).itertext())
    for number in (
        "41 images",
        "36 images",
        "In no part: 5",
        "Measured: 10 images",
        "Could not be read: 2",
        "Not listed: 8",
    ):
        assert number in told


def test_images_that_the_other_model_lost_are_told_too(manifest: Manifest, tmp_path: Path) -> None:
    """Of 12, one has no answer of both, two more none of the old model."""
    found = compared(manifest, tmp_path, unread=1, unread_by_old=2)
    folder = Path(write_study(str(tmp_path / "out"), found, Stores()))
    told = " ".join(ET.fromstring((folder / "flow.svg").read_text()).itertext())
    assert "Measured: 9 images" in told and "Could not be read: 3" in told and "2 by the other model" in told
    missing = facts(found.evaluations[0], left_out=found.left_out)["missing"].text
    assert "1 images could not be read" in missing and "; 2 more by the other model, left out as well" in missing


def test_odd_names_do_not_break_the_diagram(manifest: Manifest, tmp_path: Path) -> None:
    info = manifest.info.model_copy(update={"left_out": {"<b>&\"'": 1, "x" * 300: 2}})
    odd = Manifest(manifest.uri, manifest.table, info)
    assert "<b>&" in "".join(ET.fromstring(draw(flow_of(compared(odd, tmp_path, old=False).evaluations[0]))).itertext())


def test_images_elsewhere_are_told_apart_by_why_they_are_in_no_part(manifest: Manifest, tmp_path: Path) -> None:
    """Matching takes the class of an image that the model does not know; it is still not one without a class."""
    info = manifest.info.model_copy(update={"ignored": ["smudge"], "units": "blocks"})
    rows = manifest.table.to_pylist()
    next(row for row in rows if row["class_name"] == "smudge").update(class_name="strange", split="test")
    there = Manifest("/there", pa.Table.from_pylist(rows, schema=manifest.table.schema), info)
    bundle = make_bundle(tmp_path / "b", 16)
    table, matched = match(there, bundle.info)
    at = Manifest(there.uri, table, info.model_copy(update={"images": table.num_rows}))
    found = compared(at, tmp_path, old=False).evaluations[0]
    flow = flow_of(replace(found, external=record_of(matched)))
    assert flow.unlabelled == 0 and flow.other_without_part == {
        "of classes the model does not know": 1, "ignored, by their manifest": 2, "without a label": 2
    }  # fmt: skip
    assert flow.listed == sum(flow.other_without_part.values()) + flow.labelled == 41
    told = "".join(ET.fromstring(draw(flow)).itertext())
    assert "12 blocks" in told and "without a class" not in told


@pytest.mark.parametrize(
    ("torn", "told", "is_whole"),
    [
        (0, "7 pairs of near copies were kept on one side", True),
        (2, "2 of 7 pairs of near copies lie in two parts", False),
    ],
)
def test_near_copies_that_splits_tear_apart_are_said_to_be(
    manifest: Manifest, tmp_path: Path, torn: int, told: str, is_whole: bool
) -> None:
    info = manifest.info.model_copy(update={"near_copies": NearCopyCounts(pairs=7, torn=torn)})
    found = compared(Manifest(manifest.uri, manifest.table, info), tmp_path, old=False).evaluations[0]
    fact = facts(found)["disjoint"]
    assert told in fact.text and fact.is_whole is is_whole
    assert ("kept on one side" in fact.text) is is_whole


def test_what_the_threshold_comes_from_is_told_apart_from_the_temperature(manifest: Manifest, tmp_path: Path) -> None:
    found = compared(manifest, tmp_path, old=False).evaluations[0]
    assert facts(found)["recalibration"].text.startswith("Temperature and threshold from validation scores;")
    folds = found.bundle.update(calibrated_on="out-of-fold")
    anew = replace(found, bundle=folds, threshold=replace(found.threshold, on="validation"))
    assert facts(anew)["recalibration"].text.startswith(
        "Temperature from out-of-fold scores, threshold from validation scores;"
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [({}, "Weights of epoch 2, the best by ROC-AUC on validation"),
     ({"calibrated_on": "out-of-fold"}, "Weights of epoch 2, the last: no epoch was chosen"),
     ({"calibrated_on": "local", "training": {"best_epoch": 2, "folds": 5}},
      "Weights of epoch 2, the last: no epoch was chosen"),
     ({"calibrated_on": "local", "training": {"best_epoch": 2, "folds": None, "monitor": "val_loss"}},
      "Weights of epoch 2, the best by loss on validation"),
     ({"training": {}}, None)],
)  # fmt: skip
def test_how_the_epoch_was_chosen(
    manifest: Manifest, tmp_path: Path, changed: dict[str, Any], told: str | None
) -> None:
    found = compared(manifest, tmp_path, old=False).evaluations[0]
    fact = facts(replace(found, bundle=found.bundle.update(**changed))).get("selection")
    assert (fact.text if fact else None) == told


def test_checks_of_robustness_and_of_maps_answer_their_items(manifest: Manifest, tmp_path: Path) -> None:
    """Of a model that knows the colour of the border; and of maps, three of four of which point into a nucleus."""
    found = compared(manifest, tmp_path, old=False).evaluations[0]
    assert "explanation" not in facts(found) and "border" not in facts(found)["robustness"].text
    scores = [MapScores(hit, 0.25, True, 0.2, 0.4 + k / 100, 0.1) for k, hit in enumerate((True, True, False, True))]
    maps = judged(scores, 4, "4 images")
    said = facts(replace(found, further={"explanation": maps}))["explanation"]
    assert "checked on 4 images" in said.text and "in 3 of 4 images (75 %" in said.text and not said.is_whole
    assert all(sentence in said.text for sentence in sentences(maps))
    rows = {item.number: item.fact for item in CLAIM.items}
    assert (rows["30"], rows["31"]) == ("robustness", "explanation")
    seen = audited(tmp_path / "audit", "border", with_disturbances=True)
    record, disturbed = seen.record(), seen.robustness()
    assert disturbed is not None
    told = facts(replace(found, audit=seen))["robustness"].text
    border = next(row for row in record["rows"] if row["shown"] == "border")
    assert f"{border['name'].lower()} {words.with_interval(border)}" in told and "of 90 images" in told
    assert all(f"{kind['name']}: {kind['told'].rstrip('.')}" in told for kind in disturbed["kinds"])
