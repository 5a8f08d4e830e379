"""The page's words: each language says the same, each code and each place that speaks has words, none is left over."""

import re
from pathlib import Path

import pytest

from pipeline.images.load import IMAGE_SUFFIXES
from serving.interface import codes
from serving.pages import LANGUAGES, SCRIPTS, front_page, words_of

PAGE = Path(__file__).parents[2] / "serving" / "page"
CODE = "".join(path.read_text() for path in sorted(PAGE.glob("*.js")))
MARKUP = (PAGE / "page.html").read_text()
# made of parts where they are used
FAMILIES = ("error.", "decision.", "filter.", "subject.left.", "model.", "card.unit.", "card.candidate.")


def plural(key: str) -> str:
    return re.sub(r"\.(one|other)$", "", key)


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_each_language_has_the_same_words_with_the_same_gaps(language: str) -> None:
    first, other = words_of(LANGUAGES[0]), words_of(language)
    assert list(first) == list(other)
    for key, text in first.items():
        assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", other[key])), key
        assert other[key].strip() and text.strip(), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_code_says_what_is_wrong_and_what_to_do(language: str) -> None:
    missing = [code for code in codes() if f"error.{code}" not in words_of(language)]
    assert missing == [], f"serving/page/{language}.json: say what error.CODE means and what to do about it"


def test_every_key_that_is_asked_for_is_there_and_none_is_left_over() -> None:
    known = {plural(key) for key in words_of("en")}
    asked = set(re.findall(r'data-word(?:-\w+)?="([\w.]+)"', MARKUP))
    written = set(re.findall(r'"([a-z][\w.]*)"', CODE))
    assert asked <= known, asked - known
    said = set(re.findall(r'say\("([\w.]+)"[,)]', CODE))
    assert said <= known, said - known
    in_families = {key for key in known if key.startswith(FAMILIES)}
    assert known - asked - written - in_families - {"language"} == set()


def test_the_page_is_one_document_with_the_images_that_are_read() -> None:
    page = front_page()
    assert not re.search(r'(src|href)="(?!data:|docs")', page.html), "nothing to be loaded"
    assert "{{" not in page.html and words_of("en")["notice"] in page.html
    assert all(f'"{suffix}"' in page.html for suffix in IMAGE_SUFFIXES)
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "*" not in policy and policy.startswith("default-src 'none'")
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", page.html).split("<script")[0]


def test_no_script_makes_markup_of_text() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", CODE)


def test_each_script_is_part_of_the_page_and_says_what_it_is_for() -> None:
    assert {path.stem for path in PAGE.glob("*.js")} == set(SCRIPTS)
    for path in PAGE.glob("*.js"):
        assert path.read_text().startswith("/* ") and len(path.read_text().splitlines()) <= 400, path.name
