"""The documents: what they link, name, list and let people type must be there."""

import contextlib
import functools
import importlib
import importlib.util
import io
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.cli import JOBS
from jobs.config import parse
from pipeline.base.errors import TRANSIENT_CODES, Code
from pipeline.ingest.layouts import LAYOUTS
from pipeline.model.architectures import ARCHITECTURES
from pipeline.scoring.schemas import prediction_schema, quarantine_schema
from pipeline.sources.manifest import MANIFEST_SCHEMA
from tests.reference import config_of

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "infra" / "README.md"])
DECISIONS = ROOT / "docs" / "decisions"
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LONGEST_README = 170  # lines

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n|\n(?= {4}))+", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`]+)`")
_PATH = re.compile(
    r"((?:(?:pipeline|jobs|serving|tests|infra|docs|\.ci)/[\w./-]*|Makefile|\w+\.(?:md|toml)))(?:::?(\w+))?"
)
_MODULE = re.compile(r"(?:pipeline|jobs|serving|tests)(?:\.\w+)+")
_OURS = re.compile(r"(?:^|\s)(?:leukoray|python3? -m jobs\.\w+)(?=\s)")
_FLAG = re.compile(r"--[a-z][a-z0-9-]+")
_TYPES = {"float": "float32", "double": "float64"}  # as people write them
_FLAGS_OF_OTHERS = frozenset({"--version", "--help", "--config", "--working-dir"})  # of every job; of ray job submit


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=by_name)


# ---- reading Markdown ------------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return _INDENTED.sub("\n", _FENCED.sub("", page.read_text()))


def lines_of_code(page: Path) -> list[str]:
    """Lines of its code blocks; what a backslash continues is one line."""
    text = page.read_text()
    blocks = _FENCED.findall(text) + _INDENTED.findall(_FENCED.sub("", text))
    return re.sub(r"\\\n\s*", "", "\n".join(blocks)).splitlines()


def spans(page: Path) -> list[str]:
    """What stands between backticks in the text; a line may end inside."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(page))]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """(as written, file, anchor) of every link and picture that leads to this repository."""
    for target in _LINK.findall(prose(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield target, (page.parent / path).resolve() if path else page, anchor


def table(page: Path, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    section = page.read_text().partition(f"\n## {heading}\n")[2]
    rows = re.findall(r"^\|(.+)\|$", section.partition("\n## ")[0], re.MULTILINE)
    assert len(rows) > 2, f"{page.name} has no table below {heading!r}"
    first = section[section.index(rows[0]) :].partition("\n\n")[0]
    return [[cell.strip() for cell in row.split(" | ")] for row in re.findall(r"^\|(.+)\|$", first, re.MULTILINE)[1:]]


def documented_columns(page: Path, heading: str) -> dict[str, str]:
    """Type by name, from rows such as `| `uri`, `member` | string | ... |`."""
    columns: dict[str, str] = {}
    for names, types, *_ in table(page, heading):
        found, kinds = _SPAN.findall(names), types.split(", ")
        columns |= dict(zip(found, kinds * len(found) if len(kinds) == 1 else kinds, strict=False))
    return columns


def columns_of(schema: pa.Schema) -> dict[str, str]:
    return {field.name: _TYPES.get(str(field.type), str(field.type)).partition("[")[0] for field in schema}


# ---- links and names -------------------------------------------------------------------------------------------------


@every_page
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for written, file, anchor in links(page):
        assert file.is_relative_to(ROOT) and file.exists(), f"{written}: no such file"
        assert not anchor or anchor in anchors(file), f"{written}: no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set[Path](), {ROOT / "README.md"}
    while new:
        reached |= new
        new = {file for page in new for _, file, _ in links(page) if file.suffix == ".md"} - reached
    assert set(PAGES) - {ROOT / "infra" / "README.md"} <= reached


@every_page
def test_files_and_what_they_are_said_to_hold_are_there(page: Path) -> None:
    for span in spans(page):
        found = _PATH.fullmatch(span)
        if not found or "NAME" in span:
            continue
        path, name = found.groups()
        places = [ROOT / path, page.parent / path]
        file = next((place for place in places if place.exists()), None)
        if file is None and "/" not in path:
            continue  # a file of a bundle or a run
        assert file is not None, f"{path}: no such file"
        if name:
            defined = rf"^\s*(?:(?:async )?def |class ){name}\b|^\s*{name}\s*(?::[^=\n]+)?="
            assert re.search(defined, file.read_text(), re.MULTILINE), f"{span}: nothing of that name"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=by_name)
def test_modules_are_there(page: Path) -> None:
    code = "\n".join([*lines_of_code(page), *spans(page)])
    for name in re.findall(r"python3? -m (tests(?:\.\w+)+)", code) + list(filter(_MODULE.fullmatch, spans(page))):
        assert importlib.util.find_spec(name), name


@every_page
def test_code_blocks_are_shown_as_such(page: Path) -> None:
    """What is indented behind a list belongs to its last item, as text."""
    parts = page.read_text().split("\n\n")
    for before, after in itertools.pairwise(parts):
        is_list = re.match(r"(?:- |\d+\. )", before.lstrip("\n"))
        assert not (is_list and after.startswith("    ")), after


# ---- commands --------------------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """What a reader may type of ours, job first."""
    for line in lines_of_code(page):
        found = _OURS.search(line)
        if found and not line.strip().startswith("#"):
            words = shlex.split(line[found.start() :], comments=True)
            words = words[: words.index(">>")] if ">>" in words else words  # the shell's
            yield words[1:] if words[0] == "leukoray" else [words[2].removeprefix("jobs."), *words[3:]]


@every_page
def test_commands_are_understood_by_their_jobs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where --config FILE is looked for
    for job, *arguments in commands(page):
        if job in ("--help", "--version"):
            continue
        assert job in JOBS, f"leukoray {job}"
        try:
            parse(config_of(job), [word for word in arguments if word != "..."], prog=f"leukoray {job}")
        except SystemExit as ended:  # --help
            assert ended.code == 0


@functools.cache
def flags() -> frozenset[str]:
    """All that the jobs take, by their own help."""
    known = set(_FLAGS_OF_OTHERS)
    for job in JOBS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            parse(config_of(job), ["--help"], prog=job)
        known |= set(_FLAG.findall(text.getvalue()))
    return frozenset(known)


@every_page
def test_flags_and_jobs_named_in_the_text_exist(page: Path) -> None:
    for span in spans(page):
        if span.startswith("--"):
            assert _FLAG.findall(span)[0] in flags(), span
        if found := re.match(r"leukoray ([a-z][a-z-]*)", span):
            assert found[1] in JOBS, span


@every_page
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in [line.strip().removeprefix("$ ") for line in lines_of_code(page)] + spans(page):
        if found := re.match(r"make((?: [a-z][a-z-]*)+)(?= |$)", text):
            assert set(found[1].split()) <= targets, text


# ---- lists and tables ------------------------------------------------------------------------------------------------


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", [page for page in GUIDES if page.parent != DECISIONS], ids=by_name)
def test_every_guide_says_what_this_is_not(page: Path) -> None:
    assert "Research software, not a medical device" in page.read_text()


def test_the_quarantine_codes_are_those_of_the_code() -> None:
    rows = table(ROOT / "docs" / "score.md", "Quarantine")
    assert [row[0].strip("`") for row in rows] == [code.value for code in Code]
    assert {row[0].strip("`") for row in rows if row[-1] == "yes"} == {code.value for code in TRANSIENT_CODES}


def test_documented_columns_are_those_of_the_schemas() -> None:
    score = ROOT / "docs" / "score.md"
    predictions = columns_of(prediction_schema(["class"], ["key"]))
    placeholders = {"prob_class": "prob_<class>", "meta_key": "meta_<key>"}
    assert documented_columns(score, "Predictions") == {placeholders.get(k, k): v for k, v in predictions.items()}
    assert documented_columns(ROOT / "docs" / "ingest.md", "The manifest") == columns_of(MANIFEST_SCHEMA)
    sentence = score.read_text().partition("\n## Quarantine\n")[2].partition("The codes are")[0]
    assert _SPAN.findall(sentence) == quarantine_schema().names


def test_layouts_and_architectures_are_listed() -> None:
    assert [row[0].strip("`") for row in table(ROOT / "docs" / "ingest.md", "Layouts")] == list(LAYOUTS)
    rows = dict(row[:2] for row in table(ROOT / "docs" / "train.md", "Options"))
    assert _SPAN.findall(rows["`--architecture`"]) == list(ARCHITECTURES)


def test_every_room_says_what_it_promises() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(item["layers"] for item in contracts if item["type"] == "layers")
    rooms = [room.strip().removeprefix("pipeline.") for layer in layers for room in layer.split("|")]
    sections = re.split(r"^### ", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)[1:]
    promises = {section.partition("\n")[0]: section.count("**Invariant:**") for section in sections}
    assert set(promises) == set(rooms)
    assert all(promises.values())
