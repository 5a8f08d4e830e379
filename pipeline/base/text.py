"""Quantities and errors as a person reads them in one line, and names as every reader of tables takes them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import ValidationError

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_DASH = re.compile("[\u2010-\u2015\u2212]")
_MINUS = re.compile(r"(?:^\s*)-(?=\d)|(?<=\w)-(?=\s*$)")


def human_time(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def as_word(value: object) -> str:
    """A cell of a table as text: 'true' and 'false' for what is one of them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def first_line(error: BaseException) -> str:
    """What an error says in its first line with words, at most 200 characters; its class where it says nothing."""
    return _line(error, 0)


def last_line(error: BaseException) -> str:
    """As `first_line`, of the last: where a traceback that travelled as text says what it is about."""
    return _line(error, -1)


def _line(error: BaseException, at: int) -> str:
    lines = str(error).strip().splitlines()
    return lines[at].strip()[:200] if lines else type(error).__name__


def problems(error: ValidationError, whole: str = "the whole") -> str:
    """What a record was refused for, field by field; `whole` names what lies in no single field."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or whole}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors()
    )


def column_names(names: Sequence[str], prefix: str = "", taken: Iterable[str] = ()) -> list[str]:
    """One column name for each of `names` that DuckDB, Spark, BigQuery, Polars and pandas take as it is.

    All but letters, digits and underscores are replaced. Names that this makes equal, or equal to one `taken`, get
    their number behind them, so that no two columns share a name even where case is not told apart.
    """
    plain = [prefix + re.sub(r"\W", "_", unicodedata.normalize("NFC", name)) for name in names]
    plain = [f"_{name}" if not name or name[0].isdigit() else name for name in plain]
    counts = Counter(name.casefold() for name in plain)
    used = {name.casefold() for name in taken}
    is_clear = [counts[name.casefold()] == 1 and name.casefold() not in used for name in plain]
    used |= {name.casefold() for name, clear in zip(plain, is_clear, strict=True) if clear}
    result = []
    for number, (name, clear) in enumerate(zip(plain, is_clear, strict=True)):
        if not clear:
            name = f"{name}_{number}"
            while name.casefold() in used:
                name += "_"
            used.add(name.casefold())
        result.append(name)
    return result


def folded(name: str) -> str:
    """What two spellings of one class (or subject) have in common: composed letters, no case, one kind of separator.

    Letters of full width and invisible ones are looked past, and so is the kind of a dash. A minus is no separator:
    '-1' is not '1', and 'CD34-' not 'CD34'.
    """
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFKC", name)).casefold()
    plain = _MINUS.sub("\N{MINUS SIGN}", _DASH.sub("-", plain))
    return re.sub(r"[\s_\-]+", " ", plain).strip()
