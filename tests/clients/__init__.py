"""Clients that nobody here wrote, each run unchanged in an environment of its own (infra/clients.sh).

The modules beside this one run in those environments, so they import nothing of this repository.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_NPM = 3  # infra/clients.sh


def client_python(name: str) -> str:
    """The Python of the environment of infra/clients/NAME.txt, made where it is missing.

    Skips where PyPI is out, but for CI; where npm's registry is, everywhere.
    """
    made = subprocess.run(
        [str(ROOT / "infra" / "clients.sh"), name],
        env={**os.environ, "PYTHON": sys.executable},
        text=True,
        capture_output=True,
    )
    if made.returncode == NO_NPM or (made.returncode and "CI" not in os.environ):
        pytest.skip(f"the client {name} is not to be had: {made.stderr.strip().splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def run_client(
    name: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, program: str = "python"
) -> str:
    """What `PROGRAM ARGUMENTS` prints in a client's environment. It has to end well."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    programs = Path(client_python(name)).parent
    done = subprocess.run(
        [str(programs / program), *arguments],
        cwd=cwd,
        env={**kept, "PATH": f"{programs}:{kept['PATH']}", **(env or {})},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
