"""Variables of the process that a library reads, for as long as it is at work."""

import contextlib
import os
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def in_environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Within, the variables are set; what the user has set stays."""
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
