"""The endpoint without Ray, on bare uvicorn in a process of its own: `python -m tests.bare BUNDLE PORT [SETTINGS]`."""

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import free_port


@dataclass(frozen=True)
class Bare:
    """A running one."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory_mb(self, which: str = "VmRSS") -> float:
        """Resident memory; `VmHWM`: its peak since `forget_peak`."""
        found = re.search(rf"{which}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@contextlib.contextmanager
def bare_service(bundle: str, **settings: Any) -> Iterator[Bare]:
    port = free_port()
    command = [sys.executable, "-m", "tests.bare", bundle, str(port), json.dumps(settings)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    try:
        service, deadline = Bare(port, process.pid), time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{service.url}/readyz", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the service did not start"
                time.sleep(0.1)
        yield service
    finally:
        process.kill()
        process.wait()


def main() -> None:
    import uvicorn

    from serving.engine import Engine
    from serving.model import load_model
    from serving.routes import create_app
    from serving.settings import ServingSettings

    bundle, port, given = sys.argv[1:]
    settings = ServingSettings(model=bundle, **json.loads(given))
    app = create_app(Engine(settings, load_model(bundle, settings)))
    uvicorn.run(app, port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
