"""What the replicas of an application last agreed on, so that one that is started anew does not answer otherwise.

A Serve config may name a model that is refused. Running replicas then keep theirs; a replica that takes the place of a
dead one would come up with the model of `args`, and answers would alternate between two models.
"""

import logging
from typing import Any

import ray
from ray import serve

from serving.settings import ModelChoice

log = logging.getLogger("ray.serve")
_NAMESPACE = "leukoray"
_PATIENCE_S = 10.0


class _Memory:
    """A small actor that outlives replicas."""

    def __init__(self) -> None:
        self._choice: dict[str, Any] | None = None

    def put(self, choice: dict[str, Any]) -> None:
        self._choice = choice

    def get(self) -> dict[str, Any] | None:
        return self._choice


class Peers:
    """The memory of one application with one `args.model`."""

    def __init__(self, model: str) -> None:
        self._model = model

    def _memory(self) -> Any:
        name = f"model-of-{serve.get_replica_context().app_name}-{self._model}"
        options = {"name": name, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
        return ray.remote(_Memory).options(**options).remote()

    async def tell(self, choice: ModelChoice) -> None:
        """Note what is answered with now."""
        try:
            await self._memory().put.remote(choice.model_dump())
        except ray.exceptions.RayError as error:  # the model is taken all the same
            log.warning("other replicas could not be told of the model: %s", error)

    async def ask(self) -> ModelChoice | None:
        """What the others answer with; None where nothing was noted, or nobody can tell."""
        try:
            found = await self._memory().get.remote()
        except ray.exceptions.RayError as error:
            log.warning("what the other replicas answer with is not known: %s", error)
            return None
        return ModelChoice(**found) if found else None
