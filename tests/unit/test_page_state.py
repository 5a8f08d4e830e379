"""When the page asks which model answers: after another one's answer, again and again, but not all the time."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node")
MAIN = (Path(__file__).parents[2] / "serving" / "page" / "main.js").read_text()
NOTICE = MAIN.partition("/* Whether the service is ready")[0]
# The page's own code with a clock that is turned; what is written is when it asked, in ms, for each step.
WORLD = """
let now = 0, timers = [], asked = [], answering = null;
const performance = { now: () => now };
const setTimeout = (act, ms) => timers.push([now + ms, act]);
function turn(ms) {
  for (const end = now + ms; ; ) {
    const next = timers.sort((one, other) => one[0] - other[0])[0];
    if (!next || next[0] > end) { now = end; return; }
    timers.shift();
    now = next[0];
    next[1]();
  }
}
function loadState() { asked.push(now); service = { model: { sha256: answering.sha256 }, refused: answering.refused }; }
const said = STEPS.map(([state, answers, ms]) => {
  answering = state;
  if (!service) { service = { model: { sha256: state.sha256 }, refused: state.refused }; }
  asked = [];
  answers.forEach(noticeModel);
  turn(ms);
  return asked;
});
console.log(JSON.stringify(said));
"""


def asked(*steps: tuple[dict[str, Any], list[str], int]) -> list[list[int]]:
    """Each step: what /readyz would say, whose answers come, and ms that pass then."""
    script = NOTICE + WORLD.replace("STEPS", json.dumps(steps))
    done = subprocess.run([NODE or "node", "-"], input=script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(NODE is None, reason="the page's code: Node.js is missing")
def test_another_models_answer_asks_which_one_it_is_there_and_back_every_ten_seconds_at_most() -> None:
    first, other, broken = {"sha256": "a"}, {"sha256": "b"}, {"sha256": "a", "refused": "why"}
    told = asked(
        (first, ["a"] * 9, 60_000),
        (other, ["b"] * 9, 4_000),  # promoted
        (first, ["a"] * 9, 60_000),  # and rolled back, 4 s later
        (first, ["b", "a"] * 9, 25_000),  # a candidate takes its share
        (broken, ["b"], 20_000),  # a model is refused
        (first, ["a"], 20_000),  # and is no more
        (first, ["a"] * 9, 60_000),
    )
    assert told == [[], [60_000], [70_000], [124_000], [149_000], [169_000], []]
