"""The Ray Serve application: `serving.app:build` for `serve run`, `serve deploy` and `leukoray serve`.

A replica holds one engine and one FastAPI application. `args` and `user_config` (`{model: URI, threshold: T, candidate:
{...}}`) say which model is wished, and which one is on trial; all replicas answer with what they agree on
(`serving.lifecycle`).
"""

import functools
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.metrics import Gauge

from pipeline.base.errors import UsageError
from pipeline.storage.uris import absolute
from serving.admission import Admission
from serving.agreed import CandidateWish, News, Wish
from serving.decoder_process import ProcessDecoder
from serving.desk import Desk, check_guards
from serving.engine import Engine
from serving.keys.till import Till
from serving.lifecycle.line import RayLine
from serving.lifecycle.member import Member
from serving.model import load_model
from serving.monitoring.sharing import Sharing
from serving.neighbours import Neighbours
from serving.protocols.oip.answering import Answering
from serving.protocols.oip.elsewhere import Answered, Asked, ask
from serving.protocols.oip.rpc.ingress import RpcMethods
from serving.protocols.oip.rpc.service import Rpc
from serving.protocols.oip.schemas import IndexEntry
from serving.routes import create_app
from serving.settings import ServingSettings, read_choice, read_settings

DEPLOYMENT = "LeukorayReplica"  # the name under `deployments:` in a Serve config
_SURGE_PERCENT = 25  # rounded up: one replica more, so that a new one answers before an old one goes


@serve.ingress()
class LeukorayReplica(RpcMethods):
    """One replica."""

    def __init__(self, settings: ServingSettings) -> None:
        batcher = functools.partial(
            serve.batch, max_batch_size=settings.max_batch_size, batch_wait_timeout_s=settings.batch_wait_s
        )
        self._settings = settings
        self._engine = Engine(settings, None, batcher, ProcessDecoder(settings))
        place = serve.get_replica_context()
        name = place.replica_id.unique_id
        self._sharing = Sharing(place.app_name, name, self._engine.recorder, self._engine.counts)
        self._till = Till(place.app_name, settings.keys_file)
        self._desk = Desk(settings, self._engine.recorder, self._till.lease, name)
        others = Neighbours(place.app_name, DEPLOYMENT)
        self._answering = Answering(self._engine, self._desk, Admission(settings), others)
        self._rpc = Rpc(self._answering)
        self._own_app: FastAPI | None = None
        self._member = Member(name, self._engine, RayLine(place.app_name), _Gauges().show)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for the application after the constructor."""
        order, total = self._member.order, self._sharing.total
        app = create_app(self._engine, behind_serve=True, order=order, total=total, answering=self._answering)
        self._own_app = app
        return app

    async def index_entry(self) -> IndexEntry:
        """Which model this application has, for others of the service."""
        return await self._answering.entry()

    async def forwarded_http(self, asked: Asked) -> Answered:
        """What another application of the service hands on."""
        assert self._own_app is not None
        return await ask(self._own_app, asked)

    async def reconfigure(self, user_config: Any, rank: Any) -> None:
        """Called at start and at every change of `user_config`; because it takes `rank`, also where there is none.

        Raises InputError at start only, when there is no model to answer with: else Serve would end the replica. It
        does not wait for a change: Serve sends no requests meanwhile.
        """
        self._sharing.begin()
        await self._till.begin()
        try:
            choice = read_choice(user_config)
            asked = Wish(model=absolute(choice.model or self._settings.model), threshold=choice.threshold)
            candidate = _located(choice.candidate)
        except UsageError as error:
            await self._member.ask(str(error))
        else:
            await self._member.ask(asked, candidate)

    async def check_health(self) -> None:
        """Serve replaces a replica whose model stops answering, or that can no longer follow the others."""
        self._member.check()
        await self._engine.check()


def _located(candidate: CandidateWish | None) -> CandidateWish | None:
    return candidate and candidate.model_copy(update={"model": absolute(candidate.model)})


class _Gauges:
    """What a replica says of its model as metrics, which Ray exports."""

    def __init__(self) -> None:
        self._generation = Gauge("leukoray_model_generation", "number of the model that all replicas agreed on")
        self._refused = Gauge("leukoray_model_refused", "1 where the model last asked for was not taken")

    def show(self, news: News) -> None:
        self._generation.set(news.agreed.generation if news.agreed is not None else 0)
        self._refused.set(float(news.refused is not None))


def build(args: dict[str, Any]) -> Application:
    """The application for the `args` of a Serve config, which are the fields of `ServingSettings`.

    Raises UsageError or InputError, which `serve status` tells as the reason of a deployment that failed: a service
    that runs goes on as it is.
    """
    settings = read_settings(args)
    check_guards(settings)
    load_model(settings.model, settings.model_copy(update={"gpus_per_replica": 0.0}))
    return application(settings)


def application(settings: ServingSettings) -> Application:
    """The same of a model that was looked at already."""
    deployment = serve.deployment(
        LeukorayReplica,
        name=DEPLOYMENT,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=settings.request_timeout_s + 5,  # what is in work is answered
        max_surge_percent=_SURGE_PERCENT,
        **settings.deployment_options(),
    )
    bound: Application = deployment.bind(settings)
    return bound
