"""The service on a real socket without Ray: uvicorn in a thread, for tests that need HTTP or a browser."""

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn

from serving.engine import Engine
from serving.model import load_model
from serving.routes import create_app
from serving.settings import ServingSettings


@contextlib.contextmanager
def live(settings: ServingSettings) -> Iterator[str]:
    """URL of one running engine, on a free port."""
    engine = Engine(settings, load_model(settings.model, settings))
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
