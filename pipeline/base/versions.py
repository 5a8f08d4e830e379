"""The one rule on files of other versions. Each kind of file has its number in the module that writes it."""

from typing import Any

from pipeline.base.errors import InputError


def check_version(found: Any, newest: int, where: str, remedy: str) -> None:
    """Raise InputError for a file whose version is none of 1 to `newest`; `remedy` mends what is no version at all.

    Whoever raises a number says in its module how the files before are read.
    """
    is_number = isinstance(found, int) and not isinstance(found, bool)
    if is_number and found > newest:
        raise InputError(
            f"{where} version {found}, made by a newer leukoray; this one reads up to version {newest}: upgrade it"
        )
    if not is_number or found < 1:
        raise InputError(f"{where} version {found}, this leukoray reads 1 to {newest}; {remedy}")
