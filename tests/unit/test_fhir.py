"""FHIR R4 answers: resources that fhir.resources and the profiles take, counts that add up, nothing beyond."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.protocols.fhir import resources
from serving.protocols.fhir.bundle import bundle
from serving.protocols.fhir.codes import LOCAL, LOINC, kind_of
from serving.protocols.fhir.tally import Sent, named
from serving.schemas import ModelInfo
from tests.clinical import (
    BLASTS,
    CELLS,
    answer,
    by_code,
    checked,
    code,
    context,
    everything,
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
    is_looked_for = any(each.answer.is_ood is not None for each in files if each.answer)
    assert ("out-of-distribution" in counts) == is_looked_for
    counts = {"out-of-distribution": 0, **counts}
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


@pytest.mark.parametrize(
    ("unit", "why"),
    [
        ("field", "files scored; images of the model show a field with many cells: nothing is counted."),
        (None, "files scored; nobody has said what its images show: nothing is counted."),
    ],
)
@search(15)
@given(st.data())
def test_what_is_not_known_to_be_cells_gives_no_share(unit: Any, why: str, data: st.DataObject) -> None:
    files = data.draw(sent(INFO))
    kinds = checked(bundle(context(INFO, unit), files))
    assert LOINC not in str(kinds) and "%" not in str(by_code(kinds))
    assert set(by_code(kinds)) <= {"images-counted"}
    assert all(why in report["conclusion"] for report in kinds.get("DiagnosticReport", []))


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


def conclusion(info: ModelInfo, files: list[Sent]) -> str:
    return str(checked(bundle(context(info), files))["DiagnosticReport"][0]["conclusion"])


def test_no_blast_is_told_with_how_little_that_says() -> None:
    files = of_cells(INFO, *["Lymphocyte"] * 20)
    assert "26446-5" not in by_code(checked(bundle(context(INFO), files)))
    bound = "none named a blast (were the model to miss none, so many would show none up to a share of 13.9 %)."
    assert bound in conclusion(INFO, files)
    in_band = Sent(answer(INFO, [0.5, 0.01, 0.01, 0.2, 0.2]), None, None)
    assert in_band.answer is not None and in_band.answer.decision == "review"
    for left_out in (rejected(), in_band, Sent(answer(INFO, [1, 0, 0, 0, 0], True), None, None), files[0]):
        said = conclusion(INFO, [*files, left_out])
        assert "none named a blast." in said and "up to a share" not in said


def test_what_nobody_looked_for_is_no_zero() -> None:
    info = model_info(review_band=None)
    files = [Sent(answer(info, [1, 0.01, 0.01, 0.01, 0.01], None), None, f"{place:064x}") for place in range(3)]
    kinds = checked(bundle(context(info), files))
    assert {"review", "out-of-distribution"} & set(parts(by_code(kinds)["images-counted"])) == set()
    assert (
        "Not counted: none. Not looked for: images left to a person (review band); unlike the images of training."
        in kinds["DiagnosticReport"][0]["conclusion"]
    )
    assert "Not looked for" not in conclusion(INFO, of_cells(INFO, "Lymphocyte", "Monocyte"))


@pytest.mark.parametrize(
    ("classes", "counts"),
    [
        (("Neutrophil", "Lymphocyte"), {"26511-6": 1}),
        (("Neutrophil", "Band_neutrophils", "Lymphocyte"), {"26511-6": 2, "26508-2": 1}),
        (("Neutrophil", "Band cell", "Segmented neutrophil"), {"26511-6": 3, "26508-2": 1, "26505-8": 1}),
        (("Band cell", "Segmented neutrophil"), {"26508-2": 1, "26505-8": 1}),
        (
            ("Immature granulocyte", "Promyelocyte", "Myelocyte", "Metamyelocyte"),
            {"38518-7": 4, "26524-9": 1, "26498-6": 1, "28541-1": 1},
        ),
    ],
)
def test_the_code_of_a_whole_group_counts_its_parts_too(classes: tuple[str, ...], counts: dict[str, int]) -> None:
    info = model_info((*classes, "Monocyte"), ())
    told = by_code(checked(bundle(context(info), of_cells(info, *classes, "Monocyte"))))
    found = {name: parts(each)["count"] for name, each in told.items() if name != "images-counted"}
    assert found == counts | {"26485-3": 1} | ({"26478-8": 1} if "Lymphocyte" in classes else {})
    assert told[next(iter(counts))]["valueQuantity"]["value"] == round(
        100 * counts[next(iter(counts))] / (len(classes) + 1), 2
    )


def test_the_device_of_a_report_is_its_performer_by_an_extension_of_the_reference() -> None:
    kinds = checked(bundle(context(INFO), of_cells(INFO, "Lymphocyte", "Monocyte")))
    [report] = kinds["DiagnosticReport"]
    [performer] = report["performer"]
    assert performer["display"] == "tiny|linear 20260101-000000-00000000" and "extension" not in report
    assert performer["extension"][0]["valueReference"] == kinds["Observation"][0]["device"]


def test_what_a_server_keeps_once_is_known_by_all_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    files = of_cells(INFO, "Lymphocyte")

    def kept(**changes: Any) -> tuple[str, str]:
        more = {"card": changes.pop("card")} if "card" in changes else {}
        entries = bundle(context(model_info(**changes), **more), files)["entry"]
        card, device = (
            [entry["request"]["ifNoneExist"] for entry in entries if meant in str(entry["resource"]["meta"])]
            for meant in ("AI-ModelCard", "AI-Device")
        )
        return "".join(card), "".join(device)

    first = kept()
    assert kept() == first
    others = [kept(version="2"), kept(name="other"), kept(synthetic=True), kept(card="# Another\n"), kept(card="")]
    monkeypatch.setattr(resources, "__version__", "99.0")
    devices = [device for _, device in (first, *others, kept())]
    assert len(set(devices)) == len(devices)
    assert others[3][0] != first[0] and others[0][0] == first[0]
    [device] = checked(bundle(context(INFO), files))["Device"]
    assert device["identifier"][1]["value"] == INFO.sha256


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
    found = bundle(context(info), of_cells(info, *names))
    checked(found)
    texts = [value for _, value in everything(found) if isinstance(value, str)]
    assert not any(unicodedata.category(sign) == "Cc" for sign in "".join(texts))


def test_no_control_character_of_a_class_name_is_in_a_resource() -> None:
    info = model_info(("a\x1cb\x85", "\x07"), ("\x07",), threshold=0.2, review_band=None)
    found = bundle(context(info), [Sent(answer(info, [0.6, 0.4]), None, None)])
    [finding] = findings(checked(found))
    assert finding["valueCodeableConcept"]["coding"][0]["code"] == "_"
    assert any(note["text"].startswith("a b is the most probable class") for note in finding["note"])
