"""HL7 v2 answers, read back by hl7apy: the message is whole, and says what FHIR says."""

import unicodedata

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hypothesis import given
from hypothesis import strategies as st

from serving.protocols.fhir.bundle import bundle
from serving.protocols.fhir.tally import Sent
from serving.protocols.hl7.message import message
from tests.clinical import CELLS, answer, context, model_info, rejected, sent

INFO = model_info()
OBX = {"type": 2, "code": 3, "sub": 4, "value": 5, "unit": 6, "flags": 8, "status": 11, "model": 18}


def observations(text: str) -> list[dict[str, str]]:
    """The OBX segments of a message by field, as they stand."""
    lines = [line.split("|") for line in text.split("\r") if line.startswith("OBX")]
    assert [line[1] for line in lines] == [str(number + 1) for number in range(len(lines))]
    return [{name: (line + [""] * 20)[place] for name, place in OBX.items()} for line in lines]


def read_back(text: str) -> list[dict[str, str]]:
    """The same by hl7apy, which finds nothing wrong with the message. It takes half a second or more."""
    parsed = parse_message(text, validation_level=VALIDATION_LEVEL.STRICT)
    assert parsed.validate() and parsed.msh.msh_9.to_er7() == "OUL^R22^OUL_R22"
    results = parsed.oul_r22_specimen.oul_r22_order.oul_r22_obxtcdsidnte_suppgrp
    return [{name: getattr(each.obx, f"obx_{place}").to_er7() for name, place in OBX.items()} for each in results]


def by_code(found: list[dict[str, str]], code: str) -> list[str]:
    return [each["value"] for each in found if each["code"].partition("^")[0] == code]


@given(sent(INFO))
def test_it_says_what_fhir_says(files: list[Sent]) -> None:
    found = observations(message(context(INFO), files))
    assert {each["status"] for each in found} == {"P"}
    assert {each["model"] for each in found} == {"tiny\\F\\linear 20260101-000000-00000000^leukoray"}
    answered = [each.answer for each in files if each.answer]
    assert [value.partition("^")[0] for value in by_code(found, "decision")] == [each.decision for each in answered]
    assert [float(value) for value in by_code(found, "probability")] == pytest.approx(
        [each.probability for each in answered]
    )
    for name in CELLS:
        expected = [each.classes[name] for each in answered]
        said = [each for each in found if each["code"] == f"{name}^{name}^99LEUKOCLASS"]
        assert [float(each["value"]) for each in said] == pytest.approx(expected)
    resources = [entry["resource"] for entry in bundle(context(INFO), files)["entry"]]
    shares = {
        each["code"]["coding"][0]["code"]: each["valueQuantity"]["value"]
        for each in resources
        if each["resourceType"] == "Observation" and "valueQuantity" in each
    }
    assert {name: [float(value) for value in by_code(found, name)] for name in shares} == {
        name: [value] for name, value in shares.items()
    }


def test_segments_of_a_report() -> None:
    files = [Sent(answer(INFO, [1, 0.01, 0.01, 0.01, 0.01]), None, "1" * 64), rejected()]
    text = message(context(INFO, subject="P-7"), files)
    assert text.endswith("\r") and "\n" not in text
    names = [line[:3] for line in text.split("\r")]
    assert names[:6] == ["MSH", "SFT", "NTE", "PID", "SPM", "OBR"] and set(names[6:]) == {"OBX", "NTE", ""}
    assert "|69738-3^Differential panel, method unspecified - Blood^LN|" in text and "PID|1||P-7||" in text
    found = read_back(text)
    assert found == observations(text)
    assert by_code(found, "26478-8") == ["100"] and found[0]["unit"] == "%^^UCUM"
    assert [value.partition("^")[0] for value in by_code(found, "image-finding")] == ["Lymphocyte", "rejected"]
    assert by_code(found, "image-sha256") == [f"nih:sha-256;{'1' * 64}"]
    assert "Research use only" in text and "NTE|1||image 1 of 2\r" in text and "ends early" not in text


def test_of_one_image_there_is_no_report() -> None:
    text = message(context(INFO), [Sent(answer(INFO, [0.01, 0.01, 0.01, 1, 0.01]), None, None)])
    found = read_back(text)
    assert found == observations(text)
    assert found[0]["flags"] == "POS" and found[0]["value"].startswith("Myeloblast^")
    assert "PID|" not in text and "69738-3" not in text


def test_numbers_have_no_exponent() -> None:
    info = model_info(review_band=(1e-05, 0.6), threshold=1e-07)
    text = message(context(info), [Sent(answer(info, [1, 1e-06, 0, 1e-06, 1e-06]), None, None)])
    found = observations(text)
    assert found == read_back(text)
    assert by_code(found, "review-band") == ["^0.00001^-^0.6"] and by_code(found, "threshold") == ["0.0000001"]
    assert all(float(value) < 1e-05 and "e" not in value for value in by_code(found, "Monocyte"))


def of_names(first: str, second: str, model: str) -> str:
    info = model_info((first, second), (), name=model)
    return message(context(info), [Sent(answer(info, [1, 0.5]), None, None)])


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_names_cannot_break_out_of_their_fields(name: str) -> None:
    text = of_names(name, f"{name}|^~\\&\r\nOBX|9\x1c\x85", f"{name}\rPID|1\x0b")
    plain = of_names("a", "b", "m")
    assert [line[:3] for line in text.split("\r")] == [line[:3] for line in plain.split("\r")]
    assert [line.count("|") for line in text.split("\r")] == [line.count("|") for line in plain.split("\r")]
    assert all(each["status"] == "P" for each in observations(text))
    assert {sign for sign in text if unicodedata.category(sign) in ("Cc", "Zl", "Zp")} == {"\r"}


def test_escaped_names_are_read_back() -> None:
    text = of_names("a|b^c", "d~e&f\\", "m\r")
    assert read_back(text) == observations(text)
    assert "a\\F\\b\\S\\c" in text and "d\\R\\e\\T\\f\\E\\" in text
