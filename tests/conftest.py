"""What all tests share: one S3 for the session, how long hypothesis searches, and what a run did not test."""

import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from hypothesis import settings

import tests.searches  # noqa: F401 - makes the profiles
from tests.servers import CREDENTIALS, S3Server, moto_server
from tests.stores import ceph_store, missing, rclone_store

settings.load_profile("fast")  # `--hypothesis-profile thorough` loads the other one after this

# who starts a job in the background has Ctrl-C ignored (POSIX shells do), and whatever is started here inherits that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """A job that ends in this process ignores what comes after; the next test, and what it starts, must not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images of the tests lie in their folder, not in the home of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache-home")))
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """The S3 of all tests; whatever is started after it (Ray's workers, commands) has its credentials."""
    with pytest.MonkeyPatch.context() as patch, moto_server() as server:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def ceph(s3: S3Server) -> Iterator[S3Server]:
    """Ceph's gateway, with the keys of `s3`."""
    with started_store("ceph", ceph_store) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(s3: S3Server) -> Iterator[S3Server]:
    """rclone's server, with the keys of `s3`."""
    with started_store("rclone", rclone_store) as server:
        yield server


@contextlib.contextmanager
def started_store(name: str, start: Callable[[], AbstractContextManager[S3Server]]) -> Iterator[S3Server]:
    reason = missing(name)
    if reason:
        pytest.skip(reason)
    with start() as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name at the end what the run left out, by the reasons of the skipped tests: a promise, what is missing, a way."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        terminalreporter.section("not tested here")
        for reason, count in sorted(reasons.items()):
            terminalreporter.line(f"{reason} ({count} {'test' if count == 1 else 'tests'})")
