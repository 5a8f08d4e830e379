"""CSV that people open in a spreadsheet: no cell of it runs there as a formula, and reading takes the guard away again.

A cell that begins with =, +, -, @ (of full width as well, which a Japanese spreadsheet takes for these), a tab or a
carriage return gets a ' before it (OWASP, 'CSV injection'), but for numbers. So does what follows a ; or a tab in a
cell, or a line's end: where cells are parted at ;, a " counts at the beginning of such a part alone. Names of classes,
subjects and files come from whoever made the images.
"""

import csv
import re
from collections.abc import Iterable

_SIGNS = r"=+\-@\uff1d\uff0b\uff0d\uff20"
_RISKY = re.compile(rf"'*[{_SIGNS}\t\r]")  # one with quotes before it as well, so that `unguarded` undoes exactly this
_PARTED = re.compile(rf"(?<=[;\t\r\n])(?=[ \t\r\n']*[{_SIGNS}])")
_GUARD = re.compile(rf"(?<=[;\t\r\n])'(?=[ \t\r\n']*[{_SIGNS}])")


def csv_of(rows: Iterable[Iterable[object]]) -> str:
    """Rows, the header first, as text with a line each; None is an empty cell."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerows([guarded(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return "".join(lines)


class _Lines(list[str]):
    """Rows that end with one character. With both in the writer both are quoted in cells: until 3.13 others are not."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def guarded(cell: str) -> str:
    if _is_number(cell):
        return cell
    return ("'" if _RISKY.match(cell) else "") + _PARTED.sub("'", cell)


def unguarded(cell: str) -> str:
    """What was written as this cell."""
    bare = _GUARD.sub("", cell)
    return next((was for was in (bare.removeprefix("'"), bare) if guarded(was) == cell), cell)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
