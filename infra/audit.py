"""Known vulnerabilities of what is installed and of the images' locks: `python infra/audit.py VENV UVX`.

Asks pip-audit, which asks PyPI, and tells apart what was asked and what was not: pip-audit itself ends with 0 where the
list cannot be reached. Exit codes: 0 nothing known, or nothing could be asked (NOT CHECKED), 1 something is known.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PIP_AUDIT = "pip-audit>=2.9"
_SECONDS = 600
ROOT = Path(__file__).resolve().parent.parent


def locks(root: Path = ROOT) -> list[Path]:
    """Requirements with hashes that images are built from."""
    found = sorted((root / "infra" / "images").glob("*.txt"))
    return [path for path in found if "--hash=sha256:" in path.read_text()]


def report(what: str, answer: str, trouble: str = "") -> tuple[str, bool]:
    """What pip-audit's JSON says of one place, in lines, and whether something is known to be vulnerable."""
    try:
        packages: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = trouble.strip().splitlines()[-1:] or ["no answer"]
        return f"{what}: NOT CHECKED: the list of vulnerabilities could not be asked ({last[0][:200]})", False
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return f"{what}: NOT CHECKED: none of {len(packages)} packages is known where the list was asked for", False
    found = [
        f"  {package['name']} {package['version']}: {one['id']}"
        + (f", mended in {', '.join(one['fix_versions'])}" if one.get("fix_versions") else ", not mended yet")
        for package in asked
        for one in package["vulns"]
    ]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    said = f"{what}: {len(asked)} of {len(packages)} packages checked, {len(found) or 'no'} known vulnerabilities"
    if skipped:
        said += f"; NOT CHECKED: {', '.join(skipped)}"
    return "\n".join([said, *found]), bool(found)


def asked(uvx: str, *arguments: str) -> tuple[str, str]:
    """What pip-audit prints, and what it says of trouble."""
    command = [uvx, "--from", PIP_AUDIT, "pip-audit", "--format", "json", "--progress-spinner", "off", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    return done.stdout, done.stderr


def main(venv: str, uvx: str) -> int:
    packages = next(Path(venv).glob("lib/python*/site-packages"))
    places = {"installed": ("--path", str(packages))}
    places |= {str(path.relative_to(ROOT)): ("--no-deps", "--disable-pip", "-r", str(path)) for path in locks()}
    is_vulnerable = False
    for what, arguments in places.items():
        told, is_known = report(what, *asked(uvx, *arguments))
        print(told, flush=True)
        is_vulnerable |= is_known
    return int(is_vulnerable)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
