"""A bundle in memory that has proved itself, ready to be swapped in."""

from dataclasses import dataclass

import numpy as np

from pipeline.base.errors import ImageRejected, InputError
from pipeline.images.load import LoadedImage
from pipeline.model.predictor import Predictions, Predictor
from pipeline.model.registry import resolve
from serving.schemas import ImageAnswer, ImageInfo, ModelInfo
from serving.settings import ServingSettings


@dataclass(frozen=True)
class LoadedModel:
    """A predictor and what an answer says of it. Requests keep the one they started with through a swap."""

    predictor: Predictor
    info: ModelInfo


def load_model(uri: str, settings: ServingSettings, threshold: float | None = None) -> LoadedModel:
    """Read the bundle that `uri` means and make it answer the probe.

    Raises InputError when it is missing, altered, was trained with other preprocessing, or fails the probe.
    """
    bundle = resolve(uri, settings.stores).with_threshold(threshold)
    predictor = Predictor(bundle, engine=settings.engine, threads=settings.threads)
    record = bundle.info
    info = ModelInfo(
        name=record.name,
        version=record.version,
        sha256=predictor.model_sha256,
        architecture=record.architecture,
        preprocessing_digest=record.preprocessing_digest,
        input_size=record.input_size,
        task=record.task,
        classes=record.classes,
        positive_classes=record.positive_classes,
        threshold=record.threshold,
        review_band=record.review_band,
        synthetic=record.synthetic,
    )
    model = LoadedModel(predictor, info)
    probe(model)
    return model


def probe(model: LoadedModel) -> None:
    """Two images of opposite extremes must get finite probabilities. Raises InputError."""
    size = model.predictor.size
    images = np.stack([np.zeros((size, size, 3), np.uint8), np.full((size, size, 3), 255, np.uint8)])
    try:
        predictions = model.predictor(images)
        answered = predictions.classes.shape == (2, len(model.info.classes))
    except ImageRejected as error:
        raise InputError(f"bundle {model.predictor.bundle.uri}: fails the probe image: {error.message}") from error
    except Exception as error:  # ONNX Runtime and torch raise their own kinds on a graph that does not fit
        raise InputError(f"bundle {model.predictor.bundle.uri}: fails the probe image: {error}") from error
    if not answered:
        raise InputError(
            f"bundle {model.predictor.bundle.uri}: {predictions.classes.shape[1]} outputs for "
            f"{len(model.info.classes)} classes; publish the model again"
        )


def to_answer(model: LoadedModel, predictions: Predictions, row: int, loaded: LoadedImage, size: int) -> ImageAnswer:
    """Row `row` of a batch as the client sees it; `size` is the image's encoded length in bytes."""
    names = model.info.classes
    decision = predictions.decisions[row]
    return ImageAnswer.model_construct(
        decision=decision,
        probability=float(predictions.probability[row]),
        class_name=names[int(predictions.top[row])],
        classes={name: float(value) for name, value in zip(names, predictions.classes[row], strict=True)},
        image=ImageInfo(
            format=loaded.header.format, width=loaded.header.width, height=loaded.header.height, size_bytes=size
        ),
    )
