"""What a job tells while it works: lines for a person, or with `--log-format json` one JSON object a line (RFC 8259).

In JSON everything that the process prints, whoever prints it, comes to stderr in one order: `time` (ISO 8601, UTC),
`level`, `job`, `run_id` where there is one, `message`, and fields beside a message where they are known. No secret of
the environment and no password of a URL is in any line.
"""

import contextlib
import io
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

from pipeline.base.secrets import without_secrets

TEXT, JSON = "text", "json"
_TERMINAL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r")  # colours, and lines that are redrawn
_LEVELS = {"warning": "warning", "error": "error"}
# Variables whose value is a secret, by their last words
_SECRET = re.compile(r"(ACCESS_KEY|TOKEN|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|(API|ADMIN)_KEYS?|SECRET(_KEY)?|HEADERS)$")
_NAMED_PARTS = re.compile(r"(CREDENTIAL|HEADERS)$")  # name=value or user:password, by itself a secret
_SHORTEST_SECRET = 8  # what is shorter may be a word that lines have anyway


def redacted(text: str) -> str:
    """Without what `without_secrets` takes out, and without values of variables of the environment that are secrets."""
    text = without_secrets(text)
    for name, value in os.environ.items():
        if _SECRET.search(name):
            for one in _secrets_in(name, value):
                if len(one) >= _SHORTEST_SECRET:
                    text = text.replace(one, "***")
    return text


def _secrets_in(name: str, value: str) -> list[str]:
    """The value, then what may be told of it without the rest."""
    parts = value.split(",")  # API keys stand in one variable
    if _NAMED_PARTS.search(name):
        parts += [re.split("[=:]", part, maxsplit=1)[-1].strip() for part in parts]
    return [value, *parts]


class JsonLines(io.TextIOBase):
    """A text stream that turns each line written to it into a JSON object on `out`."""

    def __init__(self, out: TextIO, job: str) -> None:
        self._out, self._job, self._began = out, job, time.monotonic()
        self._begun = threading.local()  # what a thread has written of a line that has not ended
        self.run_id = ""

    def write(self, text: str) -> int:
        *lines, rest = (getattr(self._begun, "text", "") + text).split("\n")
        self._begun.text = rest
        for line in lines:
            self.event(line)
        return len(text)

    def event(self, message: str, level: str | None = None, **fields: Any) -> None:
        """One line; a message without words, which parts paragraphs on a screen, is none."""
        line = self.line(message, level, **fields)
        if line:
            self._out.write(line)  # in one piece: lines of several threads do not mix
            self._out.flush()

    def line(self, message: str, level: str | None = None, **fields: Any) -> str:
        message = redacted(_TERMINAL.sub("", message)).strip()
        if not message:
            return ""
        level = level or _LEVELS.get(message.partition(":")[0].lower(), "info")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        told = {"time": now, "level": level, "job": self._job, "run_id": self.run_id, "message": message}
        whole = {name: value for name, value in told.items() if value} | _plain(fields)
        return json.dumps(whole, default=str, allow_nan=False) + "\n"

    def end(self, exit_code: int, meaning: str) -> None:
        """Tell that the job has ended: its last line."""
        self.finish()
        self._out.write(self.end_line(exit_code, meaning))
        self._out.flush()

    def end_line(self, exit_code: int, meaning: str) -> str:
        seconds = round(time.monotonic() - self._began, 3)
        level = "error" if exit_code else "info"
        return self.line(meaning, level, event="end", exit_code=exit_code, seconds=seconds)

    def finish(self) -> None:
        """Tell what was written of a last line."""
        self.write("\n")

    def flush(self) -> None:
        self._out.flush()

    def fileno(self) -> int:
        return self._out.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


def _plain(value: Any) -> Any:
    """As JSON has it: what is no number is null."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return redacted(value) if isinstance(value, str) else value


def in_json() -> JsonLines | None:
    """Where lines go, if they are JSON."""
    return sys.stderr if isinstance(sys.stderr, JsonLines) else None


@contextlib.contextmanager
def speaking_json(job: str, *, has_results: bool) -> Iterator[JsonLines]:
    """Within, what this process prints becomes JSON. `has_results`: its stdout is data, and stays what it is."""
    before = sys.stdout, sys.stderr
    lines = JsonLines(sys.stderr, job)
    sys.stderr = lines
    if not has_results:
        sys.stdout = lines
    try:
        yield lines
    finally:
        lines.finish()
        sys.stdout, sys.stderr = before


def tell(out: TextIO, text: str, **fields: Any) -> None:
    """A line to `out`. `fields` are what its words tell, by name: JSON has both, text only the words."""
    if isinstance(out, JsonLines):
        out.event(text, **fields)
    else:
        print(text, file=out, flush=True)


def under_run(run_id: str) -> None:
    """From here on lines belong to this run."""
    lines = in_json()
    if lines is not None:
        lines.run_id = run_id
