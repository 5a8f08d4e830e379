"""FHIR R4 answers: resources that fhir.resources and the profiles take, counts that add up, nothing beyond."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.protocols.fhir.bundle import bundle
from serving.protocols.fhir.codes import LOCAL, LOINC, kind_of
from serving.protocols.fhir.tally import Sent, named
from tests.clinical import (
    BLASTS,
    CELLS,
    answer,
    by_code,
    checked,
    code,
    context,
    findings,
    model_info,
    of_cells,
    parts,
    rejected,
    sent,
)
from tests.searches import search

OTHERS = "leukocytes-other-than-blasts-per-100-leukocytes"
INFO = model_info()


@given(sent(INFO))
def test_counts_add_up_and_shares_are_of_leukocytes_scored(files: list[Sent]) -> None:
    kinds = checked(bundle(context(INFO), files))
    assert len(findings(kinds)) == len(files)
    if len(files) == 1:
        assert "DiagnosticReport" not in kinds and len(kinds["Observation"]) == 1
        return
    told = by_code(kinds)
    counts = parts(told.pop("images-counted"))
    apart = ("leukocytes", "no-leukocytes", "review", "out-of-distribution", "rejected")
    assert sum(counts[name] for name in apart) == counts["files"] == len(files)
    assert counts["rejected"] == sum(each.answer is None for each in files)
    absent = [each["dataAbsentReason"]["coding"][-1]["code"] for each in findings(kinds) if "dataAbsentReason" in each]
    assert {name: counts[name] for name in apart[2:]} == {name: absent.count(name) for name in apart[2:]}
    scored = [each["valueCodeableConcept"]["text"] for each in findings(kinds) if "valueCodeableConcept" in each]
    leukocytes = [name for name in scored if name != "Erythroblast"]
    assert counts["leukocytes"] == len(leukocytes) and len(scored) + len(absent) == len(files)
    for each in told.values():
        assert parts(each)["denominator"] == len(leukocytes)
        assert each["valueQuantity"]["value"] == round(100 * parts(each)["count"] / len(leukocytes), 2)
    blasts = sum(name in BLASTS for name in scored)
    assert ("26446-5" in told) == (blasts > 0)
    if leukocytes:
        expected = {"26478-8": scored.count("Lymphocyte"), "26485-3": scored.count("Monocyte")}
        expected |= {"26446-5": blasts} if blasts else {}
        assert {name: parts(told[name])["count"] for name in expected} == expected
        assert told["erythroblasts-per-100-leukocytes"]["valueQuantity"]["code"] == "/100{WBCs}"
    else:
        assert not told


@given(sent(INFO))
def test_an_image_is_told_of_as_in_the_json_answer(files: list[Sent]) -> None:
    for each, found in zip(files, findings(checked(bundle(context(INFO), files))), strict=True):
        if each.answer is None:
            assert found["dataAbsentReason"]["coding"][0]["code"] == "error" and "truncated" in str(found)
            continue
        said = parts(found)
        assert said["decision"]["text"] == each.answer.decision
        assert (said["probability"], said["threshold"]) == (each.answer.probability, INFO.threshold)
        assert {name: said[name] for name in CELLS} == each.answer.classes
        assert said.get("is-ood") == each.answer.is_ood and said["ood-score"] == each.answer.ood_score
        band = said["review-band"]
        assert (band["low"]["value"], band["high"]["value"]) == INFO.review_band
        is_absent = bool(each.answer.is_ood) or each.answer.decision == "review"
        assert ("dataAbsentReason" in found) == is_absent
        flags = {"positive": "POS", "negative": "NEG", "review": "IND"}
        shown = [flag["coding"][0]["code"] for flag in found.get("interpretation", [])]
        assert shown == ([] if each.answer.is_ood else [flags[str(each.answer.decision)]])
        if not is_absent:
            assert (found["valueCodeableConcept"]["text"] in BLASTS) == (each.answer.decision == "positive")
            assert found["valueCodeableConcept"]["text"] == named(INFO, each.answer)


def test_a_low_threshold_counts_a_cell_on_the_side_of_its_decision_and_says_so() -> None:
    info = model_info(threshold=0.2, review_band=None)
    said = answer(info, [0.6, 0.05, 0.05, 0.2, 0.1])
    assert (said.decision, said.class_name) == ("positive", "Lymphocyte")
    [found] = findings(checked(bundle(context(info), [Sent(said, None, None)])))
    assert found["valueCodeableConcept"]["text"] == "Myeloblast"
    assert "Lymphocyte is the most probable class" in str(found["note"])


@pytest.mark.parametrize("unit", ["field", None])
@search(15)
@given(st.data())
def test_what_is_not_known_to_be_cells_gives_no_share(unit: Any, data: st.DataObject) -> None:
    files = data.draw(sent(INFO))
    kinds = checked(bundle(context(INFO, unit), files))
    assert LOINC not in str(kinds) and "%" not in str(by_code(kinds))
    assert set(by_code(kinds)) <= {"images-counted"}


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({}, {"positive-per-100-cells"}),
        ({"Benign": 0, "Pre": 1}, {"positive-per-100-cells"}),
        ({"Monocyte": 0, "Promyelocyte": 1, "Blast": 1}, {"positive-per-100-cells"}),  # no blast by name
        ({"Monocyte": 0, "Platelet": 0, "Blast": 1}, {"positive-per-100-cells"}),  # no leukocyte
        (
            {"Monocyte": 0, "Lymphocytes": 0, "Blast_no_lineage_spec": 1},
            {"26446-5", OTHERS},
        ),
    ],
)
def test_positive_is_blast_only_where_every_class_behind_it_is_one_by_name(
    labels: dict[str, int], told: set[str]
) -> None:
    info = model_info(("negative", "positive"), ("positive",))
    files = of_cells(info, "positive", "negative", "negative")
    kinds = checked(bundle(context(info, class_labels=labels), files))
    [report] = kinds["DiagnosticReport"]
    assert set(by_code(kinds)) - {"images-counted"} == told
    assert by_code(kinds)[sorted(told)[0]]["valueQuantity"]["value"] == 33.33
    assert code(report) == "image-findings" and report["code"]["coding"][0]["system"] == LOCAL


def test_a_class_that_is_no_kind_of_cell_leaves_all_uncounted() -> None:
    info = model_info((*CELLS, "other"))
    kinds = checked(bundle(context(info), of_cells(info, "Lymphocyte", "Myeloblast")))
    assert set(by_code(kinds)) == {"images-counted", "positive-per-100-cells"}
    assert "no kinds of cells by name ('other')" in kinds["DiagnosticReport"][0]["conclusion"]


def test_the_report_of_a_differential() -> None:
    files = [*of_cells(INFO, "Lymphocyte", "Lymphocyte", "Monocyte", "blast"), rejected()]
    kinds = checked(bundle(context(INFO, subject="P-7"), files))
    [report] = kinds["DiagnosticReport"]
    assert report["status"] == "preliminary"
    assert [each["coding"][0]["code"] for each in report["category"]] == ["LAB", "HM"]
    assert report["code"]["coding"][0] | {"display": ""} == {"system": LOINC, "code": "69738-3", "display": ""}
    assert "leukocytes scored: 4 in 5 files, blasts: 1 (25.00 %)" in report["conclusion"]
    assert "1 not read as an image" in report["conclusion"] and "esearch use only" in report["conclusion"]
    for each in (report, *kinds["Observation"]):
        assert each["subject"] == {"type": "Patient", "identifier": {"value": "P-7"}}
    shares = {name: each["valueQuantity"]["value"] for name, each in by_code(kinds).items() if "valueQuantity" in each}
    assert shares == {"26446-5": 25, "26478-8": 50, "26485-3": 25, "erythroblasts-per-100-leukocytes": 0}
    assert len(report["result"]) == len(kinds["Observation"])
    targets = [target["reference"] for target in kinds["Provenance"][0]["target"]]
    assert {each["reference"] for each in report["result"]} < set(targets)


def test_no_blast_is_told_with_how_little_that_says() -> None:
    kinds = checked(bundle(context(INFO), of_cells(INFO, *["Lymphocyte"] * 20)))
    assert "26446-5" not in by_code(kinds)
    assert (
        "none named a blast (so many show none up to a share of 13.9 %)" in kinds["DiagnosticReport"][0]["conclusion"]
    )


def test_the_same_bytes_twice_are_one_image_and_told_of() -> None:
    [one, other] = of_cells(INFO, "Lymphocyte", "Monocyte")
    kinds = checked(bundle(context(INFO, card=""), [one, other, one]))
    assert len(kinds["DocumentReference"]) == 2
    assert "same bytes as another: 1" in kinds["DiagnosticReport"][0]["conclusion"]


@pytest.mark.parametrize("name", ["positive", "Early", "", "blastx", "immature blast?", "non-blast", "cell", "s"])
def test_names_that_are_no_kind(name: str) -> None:
    assert kind_of(name) is None


@search(15)
@given(st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True))
def test_any_class_name_makes_resources_that_are_valid(names: list[str]) -> None:
    info = model_info(names, names[1:])
    checked(bundle(context(info), of_cells(info, *names)))
