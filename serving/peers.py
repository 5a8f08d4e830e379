"""What the replicas of an application last agreed on, so that one that is started anew does not answer otherwise.

A Serve config may name a model that is refused. Running replicas then keep theirs; a replica that takes the place of a
dead one would come up with the model of `args`, and answers would alternate between two models.
"""

import asyncio
import logging
from typing import Any

import ray
from ray import serve

from serving.settings import ModelChoice

log = logging.getLogger("ray.serve")
_NAMESPACE = "leukoray"
_PATIENCE_S = 10.0


class _Memory:
    """A small actor that outlives replicas. It knows one choice, for the `args.model` that it was made beside."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._choice: dict[str, Any] | None = None

    def put(self, model: str, choice: dict[str, Any]) -> None:
        self._model, self._choice = model, choice

    def get(self, model: str) -> dict[str, Any] | None:
        return self._choice if model == self._model else None


class Peers:
    """The memory of one application; another `args.model` starts it anew."""

    def __init__(self, model: str) -> None:
        self._model = model

    def _memory(self) -> Any:
        options = {"lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
        place = _place(serve.get_replica_context().app_name)
        return ray.remote(_Memory).options(**options, **place).remote()

    async def tell(self, choice: ModelChoice) -> None:
        """Note what is answered with now."""
        try:
            await asyncio.wait_for(self._memory().put.remote(self._model, choice.model_dump()), _PATIENCE_S)
        except (ray.exceptions.RayError, TimeoutError) as error:  # the model is taken all the same
            log.warning("other replicas could not be told of the model: %s", error)

    async def ask(self) -> ModelChoice | None:
        """What the others answer with; None where nothing was noted, or nobody can tell."""
        try:
            found = await asyncio.wait_for(self._memory().get.remote(self._model), _PATIENCE_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            log.warning("what the other replicas answer with is not known: %s", error)
            return None
        return ModelChoice(**found) if found else None


def forget(application: str) -> None:
    """End the memory of an application that is no more."""
    try:
        ray.kill(ray.get_actor(**_place(application)))
    except ValueError:  # it had none
        return


def _place(application: str) -> dict[str, str]:
    return {"name": f"model-of-{application}", "namespace": _NAMESPACE}
