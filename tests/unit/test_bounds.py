"""The house's own bounds on what has to be read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 400, 50  # lines


def modules() -> Iterator[tuple[str, str]]:
    for room in ("pipeline", "serving", "jobs"):
        for file in sorted((ROOT / room).rglob("*.py")):
            yield str(file.relative_to(ROOT)), file.read_text()


def test_no_file_is_longer_than_one_sitting() -> None:
    lengths = {name: len(text.splitlines()) for name, text in modules()}
    assert len(lengths) > 100
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_longer_than_one_screen() -> None:
    lengths = {
        f"{name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, text in modules()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 500
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}
