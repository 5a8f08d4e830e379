"""The Ray Serve application: `serving.app:build` for `serve run`, `serve deploy` and `leukoray serve`.

A replica holds one engine and one FastAPI application. It is told of another model by `user_config`
(`{model: URI, threshold: T}`): that one is loaded beside the current, proves itself, and takes over, or is refused.
"""

import functools
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from serving.engine import Engine
from serving.model import load_model
from serving.routes import create_app
from serving.settings import ServingSettings, read_settings

DEPLOYMENT = "LeukorayReplica"  # the name under `deployments:` in a Serve config


@serve.ingress()
class LeukorayReplica:
    """One replica."""

    def __init__(self, settings: ServingSettings) -> None:
        batcher = functools.partial(
            serve.batch, max_batch_size=settings.max_batch_size, batch_wait_timeout_s=settings.batch_wait_s
        )
        self._engine = Engine(settings, load_model(settings.model, settings), batcher)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for the application after the constructor."""
        return create_app(self._engine, behind_serve=True)

    async def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Called at start and at every change of `user_config`. Never raises: Serve would end the replica."""
        if user_config:
            uri = str(user_config.get("model") or self._engine.settings.model)
            await self._engine.swap(uri, user_config.get("threshold"))

    async def check_health(self) -> None:
        """Serve replaces a replica whose model stops answering."""
        await self._engine.check()


def build(args: dict[str, Any]) -> Application:
    """The application for the `args` of a Serve config, which are the fields of `ServingSettings`."""
    settings = read_settings(args)
    deployment = serve.deployment(
        LeukorayReplica,
        name=DEPLOYMENT,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
        **settings.deployment_options(),
    )
    application: Application = deployment.bind(settings)
    return application
