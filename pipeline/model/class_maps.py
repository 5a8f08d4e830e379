"""Class-activation maps of a bundle: decoded images in, a map of each out, without a session that scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.model.bundle import GRAPH, Bundle
from pipeline.model.map_graph import NoMapError
from pipeline.model.maps import Mapper, Maps, placed

BATCH = 16  # images a pass: every one keeps all inner activations of its last layers in memory


class ClassMaps:
    """`ClassMaps(bundle).maps(images, classes)`; its session is opened when it is first asked for something."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.info = bundle.info
        self.size = bundle.info.input_size
        self._bundle, self._threads = bundle, threads
        self._mapper: Mapper | None = None
        self._no_map = ""

    def maps(self, images: Sequence[NDArray[np.uint8]], classes: Sequence[str]) -> Maps:
        """As `Predictor.maps` says."""
        known = self.info.classes[1:] if self.info.outputs == 1 else self.info.classes
        if unknown := [name for name in classes if name not in known]:
            raise InputError(f"bundle {self._bundle.uri}: no map of {unknown[0]!r}; of {', '.join(known)}")
        if why_not := self.why_no_map():
            raise InputError(
                f"bundle {self._bundle.uri}: {why_not}; ask for maps of a network that pools over positions"
            )
        assert self._mapper is not None
        logits = [known.index(name) for name in classes]
        small = [
            self._mapper.small(self._mapper.inner(np.stack(images[at : at + BATCH])), logits[at : at + BATCH])
            for at in range(0, len(images), BATCH)
        ]
        return placed(np.concatenate(small), self.size, self.info.seen_size)

    def why_no_map(self) -> str:
        """Why the network has no map; empty where it has one."""
        if self._mapper is None and not self._no_map:
            try:
                self._mapper = Mapper(self._bundle.file(GRAPH), self._threads)
            except NoMapError as error:
                self._no_map = f"no map is known of its network ({self.info.architecture}): {error}"
        return self._no_map
