"""A bundle in memory that has proved itself, ready to be swapped in."""

import contextlib
import threading
import time
from dataclasses import dataclass, field

from pipeline.base.errors import InputError
from pipeline.images.load import LoadedImage
from pipeline.model.bundle import CARD, Bundle
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.model.registry import resolve
from pipeline.model.signature import fingerprint
from serving.schemas import ImageAnswer, ImageInfo, ModelInfo
from serving.settings import ServingSettings


@dataclass(eq=False)
class Work:
    """Forward passes for clients since a model was loaded. Only the thread of these counts."""

    images: int = 0
    passes: int = 0
    ns: int = 0
    last_ms: int = 0  # since the epoch; 0: none yet

    def count(self, images: int, ns: int) -> None:
        self.images += images
        self.passes += 1
        self.ns += ns
        self.last_ms = time.time_ns() // 1_000_000


@dataclass(frozen=True)
class LoadedModel:
    """A predictor and what an answer says of it. Requests keep the one they started with through a swap."""

    predictor: Predictor
    info: ModelInfo
    card: str = ""  # Markdown; empty: the bundle has none that is true of it
    work: Work = field(default_factory=Work)
    is_candidate: bool = False  # on trial beside the one that answers
    is_in_one_thread: bool = True  # a pass computes in the thread that calls it
    passing: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)  # around a pass


def load_model(uri: str, settings: ServingSettings, threshold: float | None = None) -> LoadedModel:
    """Read the bundle that `uri` means and make it prove itself.

    Raises InputError when it is missing, altered, was trained with other preprocessing, or fails its proof.
    """
    return load_bundle(resolve(uri, settings.stores, settings.verify).with_threshold(threshold), settings)


def load_bundle(bundle: Bundle, settings: ServingSettings) -> LoadedModel:
    """Raises InputError when a file is missing or altered, the model fails its proof, or is not signed as it must be.

    Every bundle that answers comes by here, whoever read it.
    """
    if not is_trusted(bundle, settings):
        raise InputError(f"bundle {bundle.uri}: its signature was not checked with the key of this service (verify)")
    predictor = Predictor(bundle, engine=settings.engine, threads=settings.threads)
    record = {name: getattr(bundle.info, name) for name in ModelInfo.model_fields if hasattr(bundle.info, name)}
    judged = bundle.info.against_chance
    info = ModelInfo(
        sha256=predictor.model_sha256, better_than_chance=None if judged is None else judged.is_shown, **record
    )
    predictor.prove()
    is_on_cpu = predictor.engine == "onnx"
    return LoadedModel(
        predictor,
        info,
        _card(bundle),
        is_in_one_thread=is_on_cpu and settings.threads == 1,
        passing=contextlib.nullcontext() if is_on_cpu else threading.Lock(),  # a GPU takes one at a time
    )


def is_trusted(bundle: Bundle, settings: ServingSettings) -> bool:
    """Whether its signature was checked with the service's key, where it has one."""
    return settings.verify is None or bundle.signed_by == fingerprint(settings.verify)


def _card(bundle: Bundle) -> str:
    """For people, and no part of a prediction: a bundle copied without it answers all the same.

    None of a bundle that decides otherwise than its card says, as by `user_config.threshold`.
    """
    if not bundle.is_as_published:
        return ""
    try:
        return bundle.file(CARD).decode(errors="replace")
    except InputError:
        return ""


def to_answer(model: LoadedModel, said: Prediction, loaded: LoadedImage, size: int) -> ImageAnswer:
    """The prediction as the client sees it; `size` is the image's encoded length in bytes."""
    return ImageAnswer.model_construct(
        decision=said.decision,
        probability=said.probability,
        class_name=said.class_name,
        is_ood=said.is_ood,
        ood_score=said.ood_score,
        classes=dict(zip(model.info.classes, said.classes, strict=True)),
        image=ImageInfo(
            format=loaded.header.format, width=loaded.header.width, height=loaded.header.height, size_bytes=size
        ),
        remarks=loaded.remarks,
    )
