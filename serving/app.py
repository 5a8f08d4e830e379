"""The Ray Serve application: `serving.app:build` for `serve run`, `serve deploy` and `leukoray serve`.

A replica holds one engine and one FastAPI application. It is told of another model by `user_config`
(`{model: URI, threshold: T}`): that one is loaded beside the current, proves itself, and takes over, or is refused.
"""

import asyncio
import functools
import time
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from pipeline.base.errors import UsageError
from serving.engine import Engine
from serving.model import load_model
from serving.peers import Peers
from serving.routes import create_app
from serving.settings import ModelChoice, ServingSettings, read_choice, read_settings

DEPLOYMENT = "LeukorayReplica"  # the name under `deployments:` in a Serve config
_TRY_AGAIN_S = 60.0


@serve.ingress()
class LeukorayReplica:
    """One replica."""

    def __init__(self, settings: ServingSettings) -> None:
        batcher = functools.partial(
            serve.batch, max_batch_size=settings.max_batch_size, batch_wait_timeout_s=settings.batch_wait_s
        )
        self._engine = Engine(settings, load_model(settings.model, settings), batcher)
        self._peers = Peers(settings.model)
        self._wanted: ModelChoice | None = ModelChoice()
        self._is_new, self._tried_at = True, time.monotonic()
        self._following = asyncio.Lock()  # a slow retry must not end after, and so undo, a newer wish

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for the application after the constructor."""
        return create_app(self._engine, behind_serve=True)

    async def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Called at start and at every change of `user_config`. Never raises: Serve would end the replica."""
        try:
            self._wanted = read_choice(user_config)
        except UsageError as error:
            self._wanted = None
            self._engine.refuse(str(error))
        await self._follow()

    async def _follow(self) -> None:
        """Take the model that is wanted, else the one that the other replicas answer with."""
        async with self._following:
            self._tried_at, wanted = time.monotonic(), self._wanted
            if wanted is not None and await self._engine.swap(wanted):
                await self._peers.tell(wanted)
                return
            refused = self._engine.refused
            if self._is_new:
                last = await self._peers.ask()
                if last is not None and await self._engine.swap(last):
                    self._engine.refused = refused
            self._is_new = False

    async def check_health(self) -> None:
        """Serve replaces a replica whose model stops answering. A refused model is tried again now and then."""
        await self._engine.check()
        if self._engine.refused and self._wanted and time.monotonic() - self._tried_at > _TRY_AGAIN_S:
            await self._follow()


def build(args: dict[str, Any]) -> Application:
    """The application for the `args` of a Serve config, which are the fields of `ServingSettings`."""
    settings = read_settings(args)
    deployment = serve.deployment(
        LeukorayReplica,
        name=DEPLOYMENT,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=settings.request_timeout_s + 5,  # what is in work is answered
        **settings.deployment_options(),
    )
    application: Application = deployment.bind(settings)
    return application
