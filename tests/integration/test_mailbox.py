"""What workers and Ray Train's controller tell the driver, on its way through the cluster's key-value store."""

from typing import Any

import pytest

from pipeline.base.errors import PlatformError
from pipeline.training.group import LeavingError
from pipeline.training.progress import FAILURE, REFUSAL, Announcer, Mailbox


def test_events_come_once_and_in_order_from_any_process_and_of_steps_only_the_newest(ray_cluster: Any) -> None:
    mailbox = Mailbox()

    @ray_cluster.remote(num_cpus=0)
    def tell(number: int) -> None:
        mailbox.post({"kind": "note", "number": number})
        for step in range(3):
            mailbox.replace({"kind": "step", "step": step + number})

    ray_cluster.get(tell.remote(0))
    ray_cluster.get(tell.remote(1))
    assert mailbox.take() == [
        {"kind": "note", "number": 0},
        {"kind": "note", "number": 1},
        {"kind": "step", "step": 3},
    ]
    assert mailbox.take() == []
    assert Mailbox().take() == []  # another run's
    mailbox.close()


def test_workers_learn_from_another_process_that_nobody_waits_for_their_run(ray_cluster: Any) -> None:
    mailbox, other = Mailbox(), Mailbox()
    mailbox.end()

    @ray_cluster.remote(num_cpus=0)
    def asked() -> tuple[bool, bool]:
        return mailbox.has_ended(), other.has_ended()

    assert ray_cluster.get(asked.remote()) == (True, False)


@pytest.mark.parametrize(
    ("errors", "kinds", "said"),
    [
        ({1: ValueError("no more room\nsecond line")}, ["note", FAILURE], "worker 1 failed (ValueError: no more room)"),
        ({0: OSError("closed by peer"), 1: PlatformError("the disk is full")}, [REFUSAL], "the disk is full"),
        ({0: LeavingError(), 1: LeavingError()}, ["note"], "a node is about to go away: continuing on the others"),
    ],
)
def test_workers_that_fail_are_told_by_what_follows(
    ray_cluster: Any, errors: dict[int, Exception], kinds: list[str], said: str
) -> None:
    mailbox = Mailbox()
    Announcer(mailbox).after_exception(None, errors)
    events = mailbox.take()
    assert [event["kind"] for event in events] == kinds
    assert events[0]["text"].startswith(said)
