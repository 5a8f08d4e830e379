"""GET /healthz, /readyz and /model: whether the process answers, whether the model does, and which it is."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter

from serving.desk import Desk
from serving.engine import Engine
from serving.interface import RETRY_AFTER, get
from serving.model import LoadedModel
from serving.monitoring.comparison import verdict
from serving.monitoring.sharing import NotGathered
from serving.monitoring.state import State
from serving.protocols.fhir.codes import Role
from serving.protocols.fhir.tally import meaning
from serving.schemas import Alive, CandidateBody, CandidateState, ErrorBody, ModelBody, Ready

_COUNTS_S = 1.0  # that a question for the model waits for counts


def state_routes(engine: Engine, desk: Desk, total: Callable[[], Awaitable[State]]) -> APIRouter:
    """`total` gives the counts of all replicas; it may raise NotGathered."""
    router = APIRouter()

    @get(router, "/healthz", summary="The process answers")
    async def healthz() -> Alive:
        return Alive()

    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "headers": RETRY_AFTER}}

    @get(router, "/readyz", summary="The model answers a probe image", responses=not_ready)
    async def readyz() -> Ready:
        settings = engine.settings
        await engine.refuse_unready()
        await desk.check_audit()
        return Ready(
            model=engine.model.info,
            max_bytes=settings.max_bytes,
            max_pixels=settings.max_pixels,
            max_frames=settings.max_frames,
            max_files=settings.max_files,
            max_request_bytes=settings.max_request_bytes,
            decode_timeout_s=settings.decode_timeout_s,
            needs_api_key=settings.asks_key,
            refused=engine.news.refused,
            keys_refused=desk.keys.broken,
            candidate=_candidate(engine, None),
            roles=_roles(engine.model),
        )

    @get(router, "/model", summary="The model that answers now, and whether it was shown to be better than chance")
    async def model() -> ModelBody:
        trial, counts = engine.news.trials.current, None
        if trial is not None and trial.wish.rule is not None:
            with contextlib.suppress(NotGathered, TimeoutError):  # told as null
                async with asyncio.timeout(_COUNTS_S):
                    counts = await total()
        return _model(engine, counts)

    return router


def _roles(model: LoadedModel) -> dict[str, Role]:
    """As reports for clinical systems count them, so that the page says the same."""
    bundled = model.predictor.info
    kinds = meaning(model.info, bundled.unit, bundled.class_labels).kinds
    return {name: kind.role for name, kind in kinds.items()}


def _model(engine: Engine, counts: State | None) -> ModelBody:
    current, news = engine.model, engine.news
    judged, agreed = current.predictor.info.against_chance, news.agreed
    return ModelBody(
        **dict(current.info),
        against_chance=judged,
        against_chance_text=None if judged is None else str(judged),
        generation=None if agreed is None else agreed.generation,
        cause=None if agreed is None else agreed.cause,
        since=None if agreed is None else agreed.since,
        refused=news.refused,
        follows=news.follows,
        card=current.card or None,
        candidate=_candidate(engine, counts),
    )


def _candidate(engine: Engine, counts: State | None) -> CandidateState:
    """As the keeper last said; with a verdict where there are counts for it."""
    trials = engine.news.trials
    trial, now = trials.current, None
    if trial is not None:
        now = CandidateBody(
            trial=trial.id,
            name=trial.chosen.name,
            version=trial.chosen.version,
            sha256=trial.chosen.sha256,
            stage=trial.stage,
            share=trial.wish.share,
            since=trial.since,
            rule=trial.wish.rule,
            verdict=None if counts is None else verdict(counts, trial),
        )
    return CandidateState(now=now, refused=trials.refused, last=trials.last)
