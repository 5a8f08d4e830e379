"""CSV that people open in a spreadsheet: no cell of it runs there as a formula, and reading takes the guard away again.

A cell that begins with =, +, -, @, a tab or a carriage return gets a ' before it (OWASP, 'CSV injection'), but for
numbers. Names of classes, subjects and files come from whoever made the images.
"""

import csv
import io
import re
from collections.abc import Iterable

_RISKY = re.compile(r"'*[=+\-@\t\r]")  # one with quotes before it as well, so that `unguarded` undoes exactly this


def csv_of(rows: Iterable[Iterable[object]]) -> str:
    """Rows, the header first, as text with a line each; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([guarded(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def guarded(cell: str) -> str:
    return "'" + cell if _RISKY.match(cell) and not _is_number(cell) else cell


def unguarded(cell: str) -> str:
    """What was written as this cell."""
    return cell[1:] if cell.startswith("'") and guarded(cell[1:]) == cell else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
