"""The mutants that tests are held against: one change each, and none where a change says nothing."""

import ast

import pytest

from tests.mutants.operators import mutants
from tests.mutants.rooms import ROOMS


def changes(source: str) -> list[tuple[str, str]]:
    return [(mutant.before, mutant.after) for mutant in mutants("x.py", source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", [("a < b", "a <= b")]),
        ("a and not b", [("a and (not b)", "a or not b"), ("not b", "b")]),
        ("a + b", [("a + b", "a - b")]),
        ("a + 'text'", []),
        ("x = 2", [("2", "3")]),
        ("x = True", [("True", "False")]),
        ("x: Literal[2] = y", []),
        ("f'{a + 1}'", []),
        ("stop()", [("stop()", "pass")]),
        ("total += x", [("total += x", "pass")]),
        ("if a: b", [("if a:", "if not a:")]),
        ("def f(): return g", [("return g", "return None")]),
        ("def f(): return None", []),
        ("def f(): raise Wrong", [("raise Wrong", "pass")]),
        ("while a < b: break", [("a < b", "a <= b"), ("break", "continue")]),
        ("try: a\nexcept E: b = c", [("except E: b = c", "except E: pass")]),
        ("try: a\nexcept E: raise", [("raise", "pass")]),
    ],
)
def test_a_source_has_these_mutants(source: str, expected: list[tuple[str, str]]) -> None:
    assert changes(source) == expected


def test_each_mutant_is_the_source_with_one_change_at_its_line() -> None:
    source = ast.unparse(ast.parse("def f(a, b):\n    if a > 1:\n        return b\n    raise ValueError"))
    found = list(mutants("x.py", source))
    assert len(found) == 4
    for mutant in found:
        pairs = zip(source.splitlines(), mutant.source.splitlines(), strict=True)
        assert [number for number, (before, after) in enumerate(pairs, 1) if before != after] == [mutant.line]


@pytest.mark.parametrize("name", ROOMS)
def test_every_room_has_modules_and_tests(name: str) -> None:
    assert ROOMS[name].module_paths() and ROOMS[name].test_paths()
