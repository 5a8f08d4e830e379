"""The service on a real socket without Ray: uvicorn in a thread, for tests that need HTTP or a browser."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from pipeline.model.bundle import Bundle
from serving.agreed import CandidateWish, Chosen, Trial
from serving.engine import Engine
from serving.model import load_model
from serving.routes import create_app
from serving.settings import ServingSettings


@contextlib.contextmanager
def live(settings: ServingSettings, begin: Callable[[Engine], None] = lambda engine: None) -> Iterator[str]:
    """URL of one running engine, on a free port. `begin`: what is done with it before it answers."""
    engine = Engine(settings, load_model(settings.model, settings))
    begin(engine)
    config = uvicorn.Config(create_app(engine), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "uvicorn could not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def on_trial(candidate: Bundle, **wish: Any) -> Callable[[Engine], None]:
    """For `begin`: a candidate beside the model of an engine that has no keeper. `wish`: fields of CandidateWish."""

    def begin(engine: Engine) -> None:
        model = load_model(candidate.uri, engine.settings)
        info, since = model.info, "2026-11-28T10:00:00+00:00"
        trial = Trial(
            id=f"{info.version}@{since}",
            chosen=Chosen(uri=candidate.uri, sha256=info.sha256, name=info.name, version=info.version),
            against=engine.model.info.sha256,
            wish=CandidateWish(model=candidate.uri, cores=1.0, **wish),
            since=since,
            is_running=True,
        )
        engine.candidate.take(trial, model)

    return begin
