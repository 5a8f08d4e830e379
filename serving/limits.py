"""What every request that takes images is held to: a place, a time, and so many images at once."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from serving.admission import Admission, Ticket
from serving.errors import HttpError
from serving.settings import ServingSettings

_Answer = TypeVar("_Answer")
_Body = TypeVar("_Body")
_Item = TypeVar("_Item")
_Outcome = TypeVar("_Outcome")
_FILES_AT_ONCE = 4  # of one request, so that other requests are not left behind all of them


async def in_time(
    settings: ServingSettings,
    admission: Admission,
    read: Callable[[Ticket], Awaitable[_Body]],
    answer: Callable[[_Body], Awaitable[_Answer]],
) -> _Answer:
    """One request from its first byte to its answer; only a whole body takes a place in work.

    Raises HttpError 503 when there is no place, 408 when the client was too slow, 504 when we were.
    """
    has_body = False
    try:
        with admission.hold() as ticket:
            async with asyncio.timeout(settings.request_timeout_s):
                body = await read(ticket)
                has_body = True
                with admission.work():
                    return await answer(body)
    except TimeoutError as error:
        limit = f"{settings.request_timeout_s:g} s"
        if has_body:
            raise HttpError(504, "timeout", f"no answer within {limit}; try again, or send fewer images") from error
        raise HttpError(408, "body_timeout", f"the body did not arrive within {limit}") from error


async def at_once(work: Callable[[_Item], Awaitable[_Outcome]], items: Sequence[_Item]) -> list[_Outcome]:
    """`work` on a few items of one request at a time, its outcomes in order.

    Where one raises, the others are ended and waited for: nothing of a request goes on without its place and its time.
    """
    places = asyncio.Semaphore(_FILES_AT_ONCE)

    async def in_turn(item: _Item) -> _Outcome:
        async with places:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(item)) for item in items]
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first
