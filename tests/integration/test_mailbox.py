"""What workers and Ray Train's controller tell the driver, on its way through the cluster's key-value store."""

from typing import Any

from pipeline.training.progress import Announcer, Mailbox


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


def test_a_worker_that_fails_is_named_with_what_it_says(ray_cluster: Any) -> None:
    mailbox = Mailbox()
    Announcer(mailbox).after_exception(None, {1: ValueError("no more room\nsecond line")})
    (event,) = mailbox.take()
    assert event["kind"] == "note" and event["text"].startswith("worker 1 failed (ValueError: no more room)")
