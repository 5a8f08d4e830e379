"""What the protocol answers with, whichever way a request comes: REST (`routes`) and gRPC (`rpc`) share it."""

from collections.abc import Set
from typing import Any, NamedTuple, Protocol

from pipeline import __version__
from pipeline.base.errors import ImageRejected
from serving.admission import Admission
from serving.candidate import CandidateFailed, takes_the_same
from serving.desk import Desk, Visit
from serving.engine import Engine
from serving.errors import HttpError, from_rejection
from serving.limits import at_once
from serving.model import LoadedModel
from serving.protocols.oip.schemas import IndexEntry, ModelMetadata, ServerMetadata
from serving.protocols.oip.statistics import Counted
from serving.protocols.oip.tensors import Images, Said, described, outputs_of
from serving.schemas import NOTICE, ImageAnswer, ModelInfo

_PLATFORMS = {"onnx": "onnx_onnxv1", "torch": "pytorch_torch"}


class Others(Protocol):
    """The other applications of the service, each with its model."""

    async def entries(self) -> list[IndexEntry]: ...

    async def have(self, name: str) -> bool:
        """Whether one of them has a model of that name. Raises HttpError 503 while that cannot be told."""

    async def ask(self, name: str, method: str, *arguments: Any) -> Any:
        """What a method of the replicas that have the model gives. Raises HttpError."""


class _Nobody:
    async def entries(self) -> list[IndexEntry]:
        return []

    async def have(self, name: str) -> bool:
        return False

    async def ask(self, name: str, method: str, *arguments: Any) -> Any:
        raise HttpError(404, "not_found", f"no model {name[:80]!r}")


class Wanted(NamedTuple):
    """What of a request for inference says which model may answer it."""

    request_id: str
    version: str | None  # that is named
    outputs: Set[str]  # names


class Answering:
    """The model of one engine as the protocol has it, and the way to those of other applications."""

    def __init__(self, engine: Engine, desk: Desk, admission: Admission, others: Others | None = None) -> None:
        self.engine = engine
        self.desk = desk
        self.admission = admission
        self.others = others or _Nobody()
        self.counted = Counted()

    @property
    def limit_bytes(self) -> int:
        """Of a request for inference. It is held twice, as it came and as images; what never can be is refused."""
        settings = self.engine.settings
        return min(settings.max_request_bytes, settings.max_in_flight_bytes // 2)

    def server(self, *extensions: str) -> ServerMetadata:
        return ServerMetadata(name="leukoray", version=__version__, extensions=list(extensions))

    def asked_for(self, name: str, version: str | None = None) -> LoadedModel:
        """The model that answers, if that is the one. Raises HttpError 404."""
        model = self.engine.model
        if name != model.info.name:
            raise HttpError(404, "not_found", f"no model {name[:80]!r}; there is {model.info.name!r}")
        if version not in (None, model.info.version):
            raise HttpError(404, "not_found", f"no version {version[:80]!r}; there is {model.info.version!r}")
        return model

    def metadata(self, model: LoadedModel) -> ModelMetadata:
        inputs, outputs = described(model.info)
        return ModelMetadata(
            name=model.info.name,
            versions=[model.info.version],
            platform=_PLATFORMS[model.predictor.engine],
            inputs=inputs,
            outputs=outputs,
            parameters={"classes": list(model.info.classes), **provenance(model.info)},
        )

    async def is_elsewhere(self, name: str) -> bool:
        """Whether another application has to answer for the model of that name. Raises HttpError 503 as `Others`."""
        return name != self.engine.model.info.name and await self.others.have(name)

    async def entry(self) -> IndexEntry:
        """The model in the index."""
        info, reason = self.engine.model.info, ""
        try:
            await self.engine.refuse_unready()
        except HttpError as error:
            reason = error.message
        return IndexEntry(
            name=info.name, version=info.version, state="UNAVAILABLE" if reason else "READY", reason=reason
        )

    async def index(self, is_ready_only: bool) -> list[IndexEntry]:
        """The models of the service."""
        entries = [await self.entry(), *await self.others.entries()]
        return [entry for entry in entries if entry.state == "READY" or not is_ready_only]

    async def answered(
        self, agreed: LoadedModel, wanted: Wanted, images: Images, visit: Visit
    ) -> tuple[LoadedModel, list[Said]]:
        """Who answers, and what: `agreed`, which the request began with, or the candidate where it is of its share.

        The candidate is not asked where a version is named, for pixels that are not as it takes them, and for outputs
        that it has not. Raises HttpError for the first image that is refused.
        """
        are_pixels = not isinstance(images[0], bytes)

        def suits(candidate: LoadedModel) -> bool:
            return (
                wanted.version is None
                and wanted.outputs <= outputs_of(candidate.info).keys()
                and (not are_pixels or takes_the_same(agreed, candidate))
            )

        async def by(model: LoadedModel) -> tuple[LoadedModel, list[Said]]:
            found = await self._said(model, images, visit)
            if model.is_candidate and "is_ood" in wanted.outputs and any(one.is_ood is None for one in found):
                raise CandidateFailed("its graph gives nothing to tell is_ood by")
            return model, found

        return await self.engine.by_share(wanted.request_id, by, agreed, suits)

    async def _said(self, model: LoadedModel, images: Images, visit: Visit) -> list[Said]:
        """Raises HttpError for the first image that is refused."""

        async def of(image: Any) -> Said | HttpError:
            try:
                if isinstance(image, bytes):
                    return _from_answer(await self.engine.answer(model, image))
                said = await self.engine.predict(model, image)
            except ImageRejected as error:
                return from_rejection(error)
            except HttpError as error:  # no room for it
                return error
            return Said(said.probability, said.classes, said.class_name, said.decision, said.is_ood, said.ood_score)

        outcomes, found = await at_once(of, images), list[Said]()
        visit.came_of(outcomes)
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, HttpError):
                outcome.message = f"image {place}: {outcome.message}" if len(images) > 1 else outcome.message
                raise outcome
            found.append(outcome)
        return found


def _from_answer(said: ImageAnswer) -> Said:
    classes = tuple(said.classes.values())
    return Said(said.probability, classes, said.class_name, said.decision, said.is_ood, said.ood_score)


def provenance(info: ModelInfo) -> dict[str, Any]:
    return {"sha256": info.sha256, "threshold": info.threshold, "synthetic": info.synthetic, "notice": NOTICE}
