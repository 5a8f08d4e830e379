"""A detached actor of one application, or several: started where there is none, outliving replicas, ended with them."""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.exceptions import RayError

log = logging.getLogger("ray.serve")
_NAMESPACE = "leukoray"


def find(kind: type, name: str, application: str, **options: Any) -> Any:
    """The actor of that name, made as `kind(application)` where there is none; Ray starts it anew when it dies.

    Of several applications `application` is what they have in common.
    """
    lasting = {"lifetime": "detached", "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
    actor = ray.remote(kind).options(**lasting, **_place(name, application), **options)
    return actor.remote(application)


def forget(name: str, application: str) -> None:
    """End the actor of an application that is no more."""
    try:
        ray.kill(ray.get_actor(**_place(name, application)))
    except ValueError:  # it had none
        return


async def end_with(applications: Collection[str], is_alone: Callable[[], bool], every_s: float, what: str) -> None:
    """Within the actor: end it once it is alone and Serve knows none of its applications, looking each `every_s`."""
    while True:
        await asyncio.sleep(every_s)
        known = tuple(applications)
        if not is_alone() or await asyncio.to_thread(_is_any_known, known):
            continue
        if is_alone() and known == tuple(applications):  # nobody came meanwhile
            log.info("application %s is no more, %s", ", ".join(applications), what)
            ray.kill(ray.get_runtime_context().current_actor)


def _place(name: str, application: str) -> dict[str, str]:
    return {"name": f"{name}-of-{application}", "namespace": _NAMESPACE}


def _is_any_known(applications: Collection[str]) -> bool:
    """Whether Serve has one of them; True where Serve does not say."""
    from ray import serve  # a second of a core, which an actor does without while its service starts
    from ray.serve.exceptions import RayServeException

    try:
        return not serve.status().applications.keys().isdisjoint(applications)
    except (RayError, RayServeException) as error:
        log.warning("Serve does not say which applications there are: %s", error)
        return True
