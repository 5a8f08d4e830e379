"""A guard over the processes of a local Ray: however the one that started it ends, by `kill -9` too, they end as well.

Most of them notice by themselves. A worker or an agent that is just starting does so after up to a minute.
"""

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

_MARK = "LEUKORAY_LOCAL_RAY"  # a variable in the environment of all that Ray starts
# In the background, so that it is nobody's child: waits for the end of its input, then looks thrice for who has the
# mark, since workers may just be starting.
_SCRIPT = """
exec 3<&0
{
    read -r _
    for _ in 1 2 3; do
        grep -ls -- "$1" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do kill -9 "$pid"; done
        sleep 1
    done
} <&3 &
"""


class Guard:
    """A shell beside this process, which knows by a pipe when it ends; without a /proc (not Linux) nothing."""

    def __init__(self) -> None:
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        self._pipe = -1
        if not Path("/proc/self/environ").exists():
            return
        heard, self._pipe = os.pipe()
        with contextlib.suppress(FileNotFoundError):  # no shell, no guard
            subprocess.run(
                ["sh", "-c", _SCRIPT, "sh", self._mark],
                stdin=heard,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # what a terminal sends to all does not reach it
                check=False,
            )
        os.close(heard)

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """What is started in the block, and what that starts later, is guarded."""
        name, _, value = self._mark.partition("=")
        os.environ[name] = value
        try:
            yield
        finally:
            del os.environ[name]

    def release(self) -> None:
        """End at once what is left of those that were marked."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
