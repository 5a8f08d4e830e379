"""What the page's scripts make of answers: they run in Node.js as they stand, before a document that holds nothing."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.base.csv_text import guarded
from pipeline.model.bundle import Bundle
from serving.pages import LANGUAGES, SCRIPTS, words_of
from serving.protocols.fhir.bundle import bundle
from serving.protocols.fhir.tally import Sent, meaning
from serving.routes import create_app
from serving.schemas import ModelInfo
from tests.bundles import make_bundle
from tests.clinical import answer, by_code, checked, context, model_info, of_cells, parts
from tests.unit.test_oip_rpc import built
from tests.unit.test_page_words import PAGE

NODE = shutil.which("node")
EN = words_of("en")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")
CELLS = ("Myeloblast", "Lymphocyte", "Platelet")
BROWSER = """
const given = JSON.parse(require("fs").readFileSync(0, "utf8")), elements = {};
function element() {
  const own = { style: {}, dataset: {}, hidden: true, disabled: false, textContent: "", value: "", parts: [] };
  Object.defineProperty(own, "childNodes", { get: () => own.parts });
  own.append = (...parts) => { own.parts.push(...parts); };
  own.replaceChildren = (...parts) => { own.parts = parts; };
  own.querySelector = () => element();
  own.querySelectorAll = () => [];
  own.classList = { add() {}, remove() {}, toggle() {} };
  return new Proxy(own, { get: (from, name) => (name in from ? from[name] : () => undefined) });
}
const text = (part) => (typeof part === "string" ? part : part.textContent + part.parts.map(text).join(""));
const document = { documentElement: element(), body: element(), querySelectorAll: () => [], createElement: element };
document.getElementById = (id) => (elements[id] ??= element());
document.getElementById("about").textContent = JSON.stringify(given.about);
const location = { search: "", href: "http://localhost/" }, navigator = { languages: ["en"] };
const addEventListener = () => {};
let state = given.state;
const fetch = async (path, options) => answers(path, options);
const replied = (told, status = 200, headers = {}) => {
  const blob = async () => ({ text: async () => (typeof told === "string" ? told : JSON.stringify(told)) });
  return { ok: status < 400, status, headers: new Map(Object.entries(headers)), blob };
};
let answers = () => replied(state);
"""


def run(script: str, state: dict[str, Any], **given: Any) -> Any:
    """What the body of a function gives, in the page of a service whose /readyz says `state`."""
    about = {"suffixes": [".png"], "subject": "^[0-9]$", "words": {each: words_of(each) for each in LANGUAGES}}
    page = "".join((PAGE / f"{name}.js").read_text() for name in SCRIPTS)
    asked = f"(async () => {{ await sleep(1, new AbortController().signal); {script} }})()"
    end = f"{asked}.then((found) => {{ console.log(JSON.stringify(found)); process.exit(0); }});"
    done = subprocess.run(
        [str(NODE), "-e", f"{BROWSER}\n{page}\n{end}"],
        input=json.dumps({"about": about, "state": state, **given}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def ready(info: ModelInfo, **more: Any) -> dict[str, Any]:
    roles = {name: kind.role for name, kind in meaning(info, info.unit, {}).kinds.items()}
    limits = {"max_bytes": 1000, "max_pixels": 10**6, "max_files": 500, "max_request_bytes": 2000}
    return {"model": info.model_dump(), "roles": roles, "needs_api_key": False, "refused": None, **limits, **more}


def rows_of(info: ModelInfo, files: Sequence[Sent]) -> list[dict[str, Any]]:
    model = info.model_dump()
    return [
        {
            "order": order,
            "name": f"{order}.png",
            "state": sent.answer.decision,
            "digest": str(order),
            "answer": {**sent.answer.model_dump(), "model": model, "threshold": info.threshold},
        }
        for order, sent in enumerate(files)
        if sent.answer is not None
    ]


def subject(info: ModelInfo, files: Sequence[Sent], **more: Any) -> list[str]:
    script = "return subjectSentences(given.rows);"
    found: list[str] = run(script, ready(info, **more), rows=rows_of(info, files))
    return found


def test_a_share_is_of_leukocytes_as_in_the_report_of_the_service() -> None:
    info = model_info(CELLS, ("Myeloblast",), unit="cell")
    files = of_cells(info, *["Myeloblast"] * 3, *["Lymphocyte"] * 57, *["Platelet"] * 40)
    told = by_code(checked(bundle(context(info), files)))
    report = told["26446-5"]
    assert (parts(report)["count"], parts(report)["denominator"]) == (3, 60)
    said = subject(info, files)
    assert said[0].startswith("100 of 100 counted")
    assert EN["subject.beside.other"].format(n=40) in said
    assert f"3 of 60 leukocytes positive ({report['valueQuantity']['value']:.1f}\u00a0%)." in said
    assert f"{100 * (1 - 0.05 ** (1 / 60)):.1f}\u00a0%" in said[-1]


def test_the_service_tells_which_cells_its_classes_are(tmp_path: Path) -> None:
    async def told(bundle: Bundle) -> Any:
        transport = httpx.ASGITransport(create_app(built(bundle.uri)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return (await http.get("/readyz")).json()["roles"]

    cells = {"classes": CELLS, "positive_classes": ("Myeloblast",)}
    of_cells = make_bundle(tmp_path / "a", size=16, task="multiclass", unit="cell", **cells)
    of_fields = make_bundle(tmp_path / "b", size=16, task="multiclass", unit="field", **cells)
    assert asyncio.run(told(of_cells)) == {"Myeloblast": "blast", "Lymphocyte": "leukocyte", "Platelet": "beside"}
    assert asyncio.run(told(of_fields)) == {}


def test_no_limit_is_told_of_cells_that_are_no_leukocytes_nor_a_share() -> None:
    info = model_info(CELLS, ("Myeloblast",), unit="cell")
    said = subject(info, of_cells(info, *["Platelet"] * 9))
    assert said[-1] == EN["subject.beside.other"].format(n=9)


def test_a_model_of_other_classes_counts_every_cell_and_one_that_is_not_told_of_none() -> None:
    info = model_info(("odd", "even"), ("odd",), unit="cell")
    files = of_cells(info, "odd", "even", "even", "even")
    said = subject(info, files)
    assert "1 of 4 positive (25.0\u00a0%)." in said
    other = info.model_copy(update={"sha256": "f" * 64})
    said = run("return subjectSentences(given.rows);", ready(other), rows=rows_of(info, files))
    assert said[-1] == EN["subject.other_model"] and not any("positive (" in each for each in said)


def test_what_a_model_has_no_rule_for_is_not_told_as_none() -> None:
    info = model_info(CELLS, ("Myeloblast",), unit="cell", review_band=None, ood=None)
    both = f"{EN['subject.unlooked.review']}, {EN['subject.unlooked.unlike']}"
    assert EN["subject.unlooked"].format(what=both) in subject(info, of_cells(info, "Lymphocyte"))
    ood = {"threshold": 4.0}
    has_both = info.model_dump() | {"review_band": (0.4, 0.6), "ood": ood}
    rows = rows_of(info, of_cells(info, "Lymphocyte"))
    for row in rows:
        row["answer"]["model"] = has_both
    said = run("return subjectSentences(given.rows);", ready(info), rows=rows)
    assert not any("Not looked for" in each for each in said)


def test_an_image_counts_as_the_class_on_the_side_of_its_decision() -> None:
    """Positive at a low threshold, though a platelet is the most probable of all: it counts as the blast."""
    info = model_info(CELLS, ("Myeloblast",), unit="cell", threshold=0.2, review_band=None)
    sent = Sent(answer(info, [0.3, 0.1, 0.6]), None, None)
    assert sent.answer is not None and sent.answer.decision == "positive"
    assert "1 of 1 leukocytes positive (100.0\u00a0%)." in subject(info, [sent])


@pytest.mark.parametrize(
    ("threshold", "fact", "card"), [(None, "2.3", "none"), (4.0, "2.3 (limit 4)", "a distance of 4")]
)
def test_a_model_without_a_limit_has_none_and_not_0(threshold: float | None, fact: str, card: str) -> None:
    info = model_info(CELLS, ("Myeloblast",))
    [row] = rows_of(info, of_cells(info, "Lymphocyte"))
    row["answer"]["ood_score"] = 2.34
    row["answer"]["model"] = {**row["answer"]["model"], "ood": {"threshold": threshold}}
    script = """
      const pairs = (list) => list.parts.map(text), model = given.row.answer.model;
      return [pairs(answerBody(given.row).at(-1)), pairs(cardFacts(model)), text(unlikeNote(given.row.answer))];
    """
    facts, told, note = run(script, ready(info), row={**row, "total_ms": 1})
    assert facts[facts.index(EN["fact.ood"]) + 1] == fact
    assert card in told[told.index(EN["card.ood"]) + 1]
    assert ("limit" in note) == (threshold is not None)


def test_that_the_service_is_busy_is_said_no_longer_than_it_is() -> None:
    script = """
      const seen = [];
      gate.hold(3);
      seen.push(gate.said);
      await sleep(2900, new AbortController().signal);
      gate.hold(.4);
      for (let look = 0; gate.said && look < 200; look += 1) await sleep(50, new AbortController().signal);
      return [...seen, gate.said];
    """
    assert run(script, ready(model_info())) == [["busy", {"seconds": "3"}], None]


def test_a_file_that_the_service_refuses_as_too_large_is_told_with_the_limit_it_has_now() -> None:
    script = """
      const refused = replied({ error: { code: "too_large", message: "no" } }, 413);
      answers = (path) => path === "readyz" ? replied(state) : refused;
      const lines = [];
      for (const [size, most] of [[900, 500], [900, 1000]]) {
        state = { ...state, max_bytes: most };
        const asked = post("predict", new ArrayBuffer(size), new AbortController().signal);
        await asked.catch((error) => lines.push(told(error)));
      }
      return lines;
    """
    said = run(script, ready(model_info()))
    assert said == [
        EN["error.too_large"].format(size="900\u00a0B", limit="500\u00a0B"),
        EN["error.too_large.unknown"],
    ]


def test_names_are_guarded_as_in_other_tables() -> None:
    names = ["x;=1+1;.png", "=1", "\t'=1", "-1.5", "a;\n@b", "plain, b.png", "-", "x\t+1", "1;2", "'x; '@"]
    names += [f"{sign}1.png" for sign in "\uff1d\uff0b\uff0d\uff20"] + ["a;\uff1d1.png", "'\uff1d1.png", "a\uff1d1.png"]
    assert run("return given.names.map(guarded);", ready(model_info()), names=names) == [
        guarded(name) for name in names
    ]


def test_a_report_is_shown_and_saved_under_the_id_that_stands_there_and_no_other() -> None:
    """Two are asked for at once, and the first comes last; then another id is typed."""
    script = """
      const held = {}, row = { order: 1, state: "negative", name: "a", file: new File(["x"], "a") };
      rows = [row];
      const report = (path) => replied({ entry: [], of: path });
      const late = (path) => new Promise((come) => { held[path.at(-1)] = () => come(report(path)); });
      answers = (path) => (path === "readyz" ? replied(state) : late(path));
      const ask = (id) => { $("subject-id").value = id; return askReport({ preventDefault() {} }); };
      const shown = () => reportShown && reportShown.answer && reportShown.answer.of;
      const seen = [], first = ask("1"), second = ask("2");
      await sleep(1, new AbortController().signal);
      held[2]();
      await second;
      seen.push(shown());
      held[1]();
      await first;
      seen.push(shown());
      $("subject-id").value = "3";
      showSubject(rows);
      return [...seen, shown()];
    """
    of = "predict?format=fhir&subject=2"
    found = run(script, ready(model_info()))
    assert found == [of, of, None]


def test_what_is_no_answer_of_the_service_is_an_error_and_stops_nothing() -> None:
    script = """
      const seen = [];
      for (const each of given.told) {
        answers = (path) => path === "readyz" ? replied(state) : replied(each);
        const one = { ...newRow(new File(["x"], "a"), "a"), node: element(), head: element(), body: element() };
        await work(one, run.signal);
        rows = [one];
        await askReport({ preventDefault() {} });
        seen.push([one.state, one.failure.code, one.answer, reportShown.says]);
      }
      return seen;
    """
    told = [{"ok": True}, [], None, "<html>", {"probability": "0.5"}, {"probability": 0.5, "model": {}}]
    found = run(script, ready(model_info()), told=told)
    assert found == [["error", "bad_answer", None, EN["error.bad_answer"]]] * len(told)


def test_a_service_that_asks_for_no_pause_is_not_asked_again_without_one() -> None:
    script = """
      const pauses = [];
      gate.hold = (seconds) => pauses.push(seconds);
      const ways = ["0", "Mon, 01 Jan 2024 00:00:00 GMT", "2", ""].map((text) => ({ "Retry-After": text }));
      answers = () => (pauses.length < ways.length ? replied("", 503, ways[pauses.length]) : replied({ done: true }));
      await post("predict", new ArrayBuffer(1), new AbortController().signal);
      return pauses;
    """
    assert run(script, ready(model_info())) == [1, 2, 2, 8]


def test_why_there_is_no_model_yet_is_said_in_words_that_a_reader_knows() -> None:
    script = """
      service = null;
      const lines = [];
      const cut = () => { throw new TypeError("Failed to fetch"); };
      const unready = { error: { code: "not_ready", message: "the model does not answer its probe" } };
      const others = [[unready, 503], ["<html>", 502], ["<html>"], [{}]].map((told) => () => replied(...told));
      for (const way of [...others, cut]) {
        answers = way;
        await loadState();
        lines.push($("model").textContent);
      }
      return [lines, service];
    """
    lines, service = run(script, ready(model_info()))
    assert service is None
    assert lines == [
        EN["model.not_ready"].format(why="the model does not answer its probe"),
        EN["model.not_there"].format(status=502),
        EN["model.not_ours"],
        EN["model.not_ours"],
        EN["model.no_answer"],
    ]


def test_a_camera_that_comes_late_goes_off_again() -> None:
    """Another was chosen before the first was given, and the dialog was closed before the third was."""
    script = """
      const given = [], ended = [], name = "srcObject";
      const stream = (id) => ({ id, getTracks: () => [{ stop: () => ended.push(id) }] });
      const getUserMedia = ({ video: { id } }) => new Promise((come) => { given[id] = () => come(stream(id)); });
      navigator.mediaDevices = { getUserMedia };
      $("camera").open = true;
      const first = startCamera({ id: 0 }), second = startCamera({ id: 1 });
      given[1]();
      await second;
      given[0]();
      await first;
      const seen = [[...ended], camera.stream.id, $("video")[name].id, $("take").disabled];
      const third = startCamera({ id: 2 });
      stopCamera();
      given[2]();
      await third;
      return [...seen, ended, camera.stream, $("take").disabled];
    """
    assert run(script, ready(model_info())) == [[0], 1, 1, False, [0, 1, 2], None, True]
