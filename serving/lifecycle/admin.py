"""POST /admin/reload, /rollback, /candidate/promote, /candidate/drop, for who has an administrator's key; without such
keys they are not there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request

from pipeline.base.errors import InputError
from serving.agreed import KeeperLost, Outcome
from serving.desk import Desk
from serving.errors import HttpError
from serving.guard import given_keys
from serving.interface import KEYS, RETRY_AFTER
from serving.schemas import ErrorBody, Switched
from serving.settings import ServingSettings

_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorBody, "description": "no key"},
    403: {"model": ErrorBody, "description": "a key that is no administrator's"},
    409: {
        "model": ErrorBody,
        "description": "the model was refused, or there is none to go back to, or to promote or drop",
    },
    503: {"model": ErrorBody, "description": "nobody decides just now", "headers": RETRY_AFTER},
    504: {"model": ErrorBody, "description": "not decided in time, as where the store does not answer; it goes on"},
}


def admin_routes(settings: ServingSettings, desk: Desk, order: Callable[[str], Awaitable[Outcome]]) -> APIRouter:
    """`order` tells the keeper to `reload`, `rollback`, `promote` or `drop`. Answers when all have followed."""
    router = APIRouter(prefix="/admin")

    async def carried_out(request: Request, what: str) -> Switched:
        desk.check(given_keys(request.headers), is_admin=True)
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                outcome = await order(what)
        except TimeoutError as error:
            message = f"not decided within {settings.request_timeout_s:g} s; it goes on: /model says what came of it"
            raise HttpError(504, "timeout", message) from error
        except (KeeperLost, InputError) as error:
            headers = {"Retry-After": str(settings.retry_after_s)}
            raise HttpError(503, "not_ready", f"nobody decides just now ({error}); try again", headers) from error
        if outcome.refused is not None:
            raise HttpError(409, "model_refused", outcome.refused)
        return _told(outcome)

    @router.post("/reload", summary="Take what the configuration names now", responses=_RESPONSES, dependencies=KEYS)
    async def reload(request: Request) -> Switched:
        """Look at best.json of the registry, or at the bundle, at once."""
        return await carried_out(request, "reload")

    @router.post("/rollback", summary="Go back to the model before", responses=_RESPONSES, dependencies=KEYS)
    async def rollback(request: Request) -> Switched:
        """It stays until best.json or the configuration changes, or /admin/reload."""
        return await carried_out(request, "rollback")

    @router.post(
        "/candidate/promote",
        summary="Take the candidate, whatever its rule says",
        responses=_RESPONSES,
        dependencies=KEYS,
    )
    async def promote(request: Request) -> Switched:
        """It stays until best.json or the configuration changes, or /admin/reload; /admin/rollback goes back."""
        return await carried_out(request, "promote")

    @router.post("/candidate/drop", summary="End the candidate's trial", responses=_RESPONSES, dependencies=KEYS)
    async def drop(request: Request) -> Switched:
        """It does not begin again until the configuration asks otherwise, or /admin/reload."""
        return await carried_out(request, "drop")

    return router


def _told(outcome: Outcome) -> Switched:
    agreed = outcome.agreed
    return Switched(
        has_changed=outcome.has_changed,
        generation=agreed.generation,
        name=agreed.chosen.name,
        version=agreed.chosen.version,
        sha256=agreed.chosen.sha256,
    )
