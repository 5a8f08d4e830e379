"""The documents of a study as files: `claim.md`, `tripod_ai.md`, `stard_ai.md`, `pccp.md`, `flow.svg`."""

from collections.abc import Iterable

from pipeline.evaluation.comparison.result import Comparison
from pipeline.evaluation.report import words
from pipeline.evaluation.study import pccp
from pipeline.evaluation.study.checklists import CHECKLISTS, Checklist
from pipeline.evaluation.study.facts import Fact, Facts, facts
from pipeline.evaluation.study.flow import draw, flow_of
from pipeline.storage.filled_in import write_beside_edited
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join

STUDY = "study"
FILLED, IN_PART, PERSON = "filled", "in part: needs a person", "needs a person"
_CHECK = (
    "Read every line before it is used: the run knows files and figures, not the study. What an item wants is said by "
    "its source"
)
_FDA = "https://www.regulations.gov/docket/FDA-2022-D-2628"


def write_study(out: str, comparison: Comparison, stores: Stores, decision: pccp.Decision | None = None) -> str:
    """Into the folder `study` of `out`, whose URI is given back; of the first model of the comparison.

    What a person has edited there stays, and the new text goes beside it.
    """
    found = comparison.evaluations[0]
    known = facts(found, decision.protocol if decision else None, comparison.left_out)
    info = found.bundle.info
    head = f"{info.name} / {info.version}, {found.split} split of manifest {found.manifest.info.digest[:12]}"
    synthetic = info.synthetic or found.manifest.info.synthetic
    texts = {checklist.file: checklist_text(checklist, known, head, synthetic) for checklist in CHECKLISTS}
    texts["pccp.md"] = pccp_text(pccp.parts(comparison, known, decision), head, synthetic)
    folder = join(out, STUDY)
    stores.of(folder).write(join(folder, "flow.svg"), draw(flow_of(found, comparison.left_out)).encode())
    for name, text in texts.items():
        write_beside_edited(join(folder, name), text, stores)
    return folder


def checklist_text(checklist: Checklist, known: Facts, head: str, synthetic: bool) -> str:
    """One guideline as Markdown: each item with what the run says of it."""
    told = [(item.number, item.about, known.get(item.fact)) for item in checklist.items]
    rows = (f"| {number} | {about} | {_state(fact)} | {_cell(fact)} |" for number, about, fact in told)
    return _page(
        checklist.title,
        head,
        synthetic,
        f"{counted(fact for _, _, fact in told)} {_CHECK}: <{checklist.source}>.",
        "| item | about | state | the run says |\n|---|---|---|---|\n" + "\n".join(rows),
        "![Where the images went](flow.svg)",
    )


def pccp_text(parts: Iterable[pccp.Part], head: str, synthetic: bool) -> str:
    parts = list(parts)
    sections = [
        f"## {number}. {part.title}\n\n| asks for | state | the run says |\n|---|---|---|\n"
        + "\n".join(f"| {about} | {_state(fact)} | {_cell(fact)} |" for about, fact in part.rows)
        for number, part in enumerate(parts, 1)
    ]
    every = (fact for part in parts for _, fact in part.rows)
    lead = f"{counted(every)} {_CHECK}: <{_FDA}>."
    return _page("Predetermined change control plan, a draft", head, synthetic, lead, *sections)


def counted(told: Iterable[Fact | None]) -> str:
    """'12 of 44 items filled by the run, 9 in part; 23 need a person.'"""
    every = list(told)
    whole = sum(fact is not None and fact.is_whole for fact in every)
    part = sum(fact is not None and not fact.is_whole for fact in every)
    open_ones = len(every) - whole - part
    return f"**{whole} of {len(every)} items filled by the run, {part} in part; {open_ones} need a person.**"


def _page(title: str, head: str, synthetic: bool, *sections: str) -> str:
    notes = [words.NOT_A_DEVICE, *([words.SYNTHETIC] if synthetic else [])]
    return "\n\n".join([f"# {title}", head, *(f"**{note}**" for note in notes), *sections]) + "\n"


def _state(fact: Fact | None) -> str:
    if fact is None:
        return PERSON
    return FILLED if fact.is_whole else IN_PART


def _cell(fact: Fact | None) -> str:
    return "" if fact is None else words.unmarked(fact.text).replace("|", "\\|").replace("\n", " ")
