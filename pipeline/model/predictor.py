"""The one predictor: a bundle turned into `decoded images -> what the model says of each`.

Two engines behind one interface: ONNX Runtime on CPU, PyTorch on CUDA. Evaluation, scoring and serving use it, so
the same bytes get the same probability everywhere (to 1e-5 between engines).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.base.errors import Code, ImageRejected, InputError, Stage
from pipeline.base.extras import needs_training
from pipeline.images.load import Limits, LoadedImage, load_image
from pipeline.model.bundle import GOLDEN, GRAPH, WEIGHTS, Bundle
from pipeline.model.golden import Golden
from pipeline.model.outputs import FEATURES, LOGITS, Outputs
from pipeline.model.prediction import Prediction, predictions
from pipeline.model.reference import REFERENCE, Reference, colours_seen
from pipeline.model.turns import over_turns, turned

if TYPE_CHECKING:
    from pipeline.model.class_maps import ClassMaps
    from pipeline.model.maps import Maps

Engine = Literal["onnx", "torch"]


class _Runner(Protocol):
    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Of uint8 (B, S, S, 3)."""


class Predictor:
    """`Predictor(bundle).predict_each(images)`. Not thread-safe on CUDA; ONNX Runtime sessions are.

    `engine`: 'torch' for a process that holds a GPU. That the machine has one is no reason: others may hold it.
    """

    def __init__(self, bundle: Bundle, *, engine: Engine = "onnx", threads: int = 1) -> None:
        self.bundle = bundle
        self.info = bundle.info
        self.size = bundle.info.input_size
        self.model_sha256 = bundle.info.identity()
        self.engine = engine
        self._reference = _reference(bundle)
        self._run: _Runner = _OnnxRunner(bundle, threads) if self.engine == "onnx" else _torch_runner(bundle)
        self._threads = threads
        self._maps: ClassMaps | None = None  # a session of its own, for whoever asks for maps

    def load(self, data: bytes, limits: Limits = Limits()) -> LoadedImage:
        """Decode one encoded image for this model. Raises ImageRejected."""
        return load_image(data, self.size, limits, self.info.bit_depth)

    def predict_each(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction | ImageRejected]:
        """One forward pass a turn over decoded images, uint8 (S, S, 3), RGB: one result an image, in order.

        How far an image lies from those of training is told by the first turn, the image as it is.
        An image whose logits are not finite is rejected (predict_failed); its neighbours keep their answers.
        """
        if not len(images):
            return []
        stacked = np.stack(images)
        logits, features = self._outputs(stacked)
        if logits.shape[1] != self.info.outputs:
            found, names = logits.shape[1], len(self.info.classes)
            raise InputError(f"bundle {self.bundle.uri}: {found} outputs for {names} classes; publish the model again")
        finite = np.asarray(np.isfinite(logits).all(axis=1))
        scores = self._ood_scores(stacked[finite], None if features is None else features[finite])
        said = iter(predictions(self.info, logits[finite], scores))
        return [next(said) if answered else _not_finite() for answered in finite.tolist()]

    def outputs(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """Logits and features of decoded images, uint8 (S, S, 3), both means over the turns: of a linear head the ones
        come of the others. None in place of features where the graph, of an older version, gives none.
        """
        found = [self._run(some) for some in turned(np.stack(images), self.info.turns)]
        known = [one.features for one in found if one.features is not None]
        return Outputs(_mean([one.logits for one in found]), _mean(known) if known else None)

    def _outputs(self, images: NDArray[np.uint8]) -> Outputs:
        """Logits over all turns, features of the first."""
        first: list[NDArray[np.float32] | None] = []

        def forward(some: NDArray[np.uint8]) -> NDArray[np.float32]:
            logits, features = self._run(some)
            first.append(features)
            return logits

        return Outputs(over_turns(forward, images, self.info.turns), first[0])

    def _ood_scores(
        self, images: NDArray[np.uint8], features: NDArray[np.float32] | None
    ) -> NDArray[np.float32] | None:
        """(B,); None where the bundle, or the graph of an older version, has nothing to compare."""
        if self._reference is None or features is None:
            return None
        if features.shape[1] != len(self._reference.features):
            raise InputError(
                f"bundle {self.bundle.uri}: {features.shape[1]} features, {REFERENCE} is of "
                f"{len(self._reference.features)}; publish the model again"
            )
        return self._reference.scores(features, colours_seen(images, self.info.seen_size))

    def maps(self, images: Sequence[NDArray[np.uint8]], classes: Sequence[str]) -> "Maps":
        """Where decoded images, uint8 (S, S, 3), RGB, speak for a class each, by the network's one pass over each.

        A model of two classes has maps of the second. They are of the images as they are, whatever the bundle's turns,
        and 0 where the network does not look. Raises InputError where no map is known of the bundle's graph, and for a
        class that it has none of.
        """
        return self._class_maps().maps(images, classes)

    def why_no_map(self) -> str:
        """Why the network has no map; empty where it has one."""
        return self._class_maps().why_no_map()

    def _class_maps(self) -> "ClassMaps":
        if self._maps is None:
            from pipeline.model.class_maps import ClassMaps  # onnx: scoring pays nothing for it

            self._maps = ClassMaps(self.bundle, self._threads)
        return self._maps

    def probe(self) -> None:
        """A black and a white image must get an answer. Raises InputError where the model gives none."""
        shape = (self.size, self.size, 3)
        try:
            answers = self.predict_each([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)])
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime and torch raise their own kinds on a graph that does not fit
            raise InputError(f"bundle {self.bundle.uri}: fails the probe image: {error}") from error
        for answer in answers:
            if isinstance(answer, ImageRejected):
                raise InputError(f"bundle {self.bundle.uri}: fails the probe image: {answer.message}")

    def golden(self, images: Sequence[bytes]) -> Golden:
        """What this model says of encoded images, to be kept with it. Raises ImageRejected."""
        pixels = [self.load(data).pixels for data in images]
        return Golden(tuple(images), self.outputs(pixels).logits)

    def prove(self) -> None:
        """The probe, and the golden images of a bundle that has some, decoded and predicted as any other.

        Raises InputError where the model gives no answer, or another one than at publication.
        """
        self.probe()
        if not self.info.golden_sha256:
            return
        uri = self.bundle.uri
        golden = Golden.unpacked(self.bundle.file(GOLDEN), f"bundle {uri}: {GOLDEN}")
        try:
            difference = golden.difference(self.golden(golden.images).logits)
        except ImageRejected as error:
            raise InputError(f"bundle {uri}: a golden image cannot be decoded here ({error.message})") from error
        if difference is not None:
            raise InputError(
                f"bundle {uri}: does not answer its golden images as it did when it was published ({difference}): this "
                "machine or its packages compute otherwise; see `leukoray doctor`, or publish the model again here"
            )


def _mean(found: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.asarray(np.mean(np.stack(found), axis=0, dtype=np.float64), np.float32)


def _reference(bundle: Bundle) -> Reference | None:
    if bundle.info.ood is None:
        return None
    data = bundle.file(REFERENCE)
    try:
        return Reference.unpacked(data)
    except InputError as error:
        raise InputError(f"bundle {bundle.uri}: {REFERENCE} {error}; publish the model again") from error


def _not_finite() -> ImageRejected:
    return ImageRejected(Code.PREDICT_FAILED, "the model gave a logit that is not finite", Stage.PREDICT)


class _OnnxRunner:
    def __init__(self, bundle: Bundle, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                bundle.file(GRAPH), options, providers=["CPUExecutionProvider"]
            )
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime raises its own unnamed kinds
            raise InputError(
                f"bundle {bundle.uri}: {GRAPH} cannot be loaded ({error}); publish the model again"
            ) from error
        self._input = self._session.get_inputs()[0].name
        gives = [output.name for output in self._session.get_outputs()]
        self._wanted = [LOGITS, FEATURES] if FEATURES in gives else gives[:1]

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        found = [np.asarray(values, np.float32) for values in self._session.run(self._wanted, {self._input: images})]
        return Outputs(found[0], found[1] if len(found) > 1 else None)


def _torch_runner(bundle: Bundle) -> _Runner:
    try:
        from pipeline.model.torch_engine import TorchRunner
    except ModuleNotFoundError as error:
        raise needs_training(error) or error from error
    return TorchRunner(bundle.info, bundle.file(WEIGHTS))
