"""From what is wished to a bundle in memory that proved itself, or why there is none. Blocking: for a thread."""

import hashlib
from dataclasses import dataclass

from pipeline.base.errors import InputError, LeukorayError
from pipeline.model.bundle import Bundle
from pipeline.model.predictor import Predictor
from pipeline.model.registry import pointer_of, resolve
from serving.agreed import CandidateWish, Chosen, Wish
from serving.settings import ServingSettings


@dataclass(frozen=True)
class Found:
    """A model that proved itself, and the pointer that it was found by (empty: none)."""

    bundle: Bundle  # with its files
    best_json: str
    pointer: str


def find(wish: Wish | CandidateWish, settings: ServingSettings) -> Found:
    """Resolve, read and prove. Raises what is wrong with it."""
    stores = settings.stores
    bundle = resolve(wish.model, stores, settings.verify)
    path = pointer_of(wish.model, bundle)
    content = stores.read_if_there(path) if path else None
    # a pointer that moved since then is looked at again
    is_of_it = content is not None and bundle.info.version.encode() in content
    pointer = digest(content) if content is not None and is_of_it else ""
    return Found(_proved(bundle.with_threshold(wish.threshold)), path, pointer)


def read(chosen: Chosen, settings: ServingSettings) -> Bundle:
    """Exactly that model. Raises InputError where another one lies there now."""
    bundle = resolve(chosen.uri, settings.stores, settings.verify).with_threshold(chosen.threshold)
    if bundle.info.identity() != chosen.sha256:
        raise InputError(f"{chosen.uri}: is no longer the model {chosen.sha256[:12]} that was agreed on")
    return _proved(bundle)


def why(error: Exception, uri: str | None = None) -> str:
    """For people. What is no error of ours does not name what it is about: `uri`."""
    if isinstance(error, LeukorayError):
        return str(error)
    return f"{'' if uri is None else f'{uri}: '}{type(error).__name__}: {error}"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _proved(bundle: Bundle) -> Bundle:
    held = bundle.hold()
    Predictor(held, engine="onnx").prove()
    return held
