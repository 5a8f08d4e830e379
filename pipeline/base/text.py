"""Quantities and errors as a person reads them in one line."""

from pydantic import ValidationError


def human_time(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def first_line(error: BaseException) -> str:
    """What an error says in its first line with words, at most 200 characters; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__


def problems(error: ValidationError, whole: str = "the whole") -> str:
    """What a record was refused for, field by field; `whole` names what lies in no single field."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or whole}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors()
    )
