"""leukoray doctor: whether this machine, its Ray and its store can do the work, and what to do where they cannot."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

from jobs.common import job, start
from jobs.doctor_cluster import authentication, cluster
from jobs.doctor_config import DoctorConfig
from jobs.doctor_machine import cores, machine, packages
from jobs.doctor_store import clock, model, out, source
from pipeline import __version__
from pipeline.base.errors import PlatformError
from pipeline.base.finding import Finding

EXAMPLES = """examples:
  leukoray doctor
  leukoray doctor --source s3://lab/2026/ --s3-endpoint https://minio.lab:9000
  leukoray doctor --out s3://lab/results                            # what this store can do
  leukoray doctor --address head:6379 --model out/demo/models       # every node of a cluster
  leukoray doctor --json | jq -r '.findings[] | select(.mend) | .mend'

Exit codes: 0 nothing failed (warnings may remain), 5 something must be changed first.
"""

CHECKS: tuple[Callable[[DoctorConfig], Iterator[Finding]], ...] = (
    packages, cores, machine, authentication, cluster, source, out, clock, model,
)  # fmt: skip


def main(config: DoctorConfig) -> None:
    if not config.json_:
        print(f"leukoray {__version__} doctor: research software, not a medical device\n", flush=True)
    findings = []
    for find in CHECKS:
        for finding in find(config):
            findings.append(finding)
            if not config.json_:
                print(_line(finding), flush=True)
    failed, warned = (sum(finding.level == level for finding in findings) for level in ("fail", "warn"))
    if config.json_:
        found = {"leukoray": __version__, "failed": failed, "warned": warned, "findings": list(map(asdict, findings))}
        print(json.dumps(found, indent=1), flush=True)
    else:
        print(f"\n{failed} failed, {warned} to look at", flush=True)
    if failed:
        raise PlatformError(f"{failed} checks failed; see 'fail' above for what to do")


def _line(finding: Finding) -> str:
    where = f"{finding.node}: " if finding.node else ""
    mend = f"\n{'':23}mend: {finding.mend}" if finding.mend else ""
    return f"  {finding.level:<4}  {finding.name:<13}  {where}{finding.text}{mend}"


command = job("doctor", DoctorConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
