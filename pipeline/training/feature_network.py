"""The graph of a network without its head, made once for all that ask for its features, kept beside decoded images."""

import onnxruntime
import torch

from pipeline.base.errors import PlatformError
from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.feature_graph import check_features, features_digest, features_graph
from pipeline.model.trainable import linear_head
from pipeline.training.cache import PixelCache
from pipeline.training.features import Network
from pipeline.training.graphs import kept_graph


def feature_network(model: CellClassifier, architecture: str, input_size: int, cache: PixelCache | None) -> Network:
    """What of `model` goes into its head, which is linear. A kept graph that is not of this network is made again."""
    head = linear_head(model)
    assert head is not None, "asked before"
    engines = f"torch {torch.__version__} onnxruntime {onnxruntime.__version__}"
    kept = kept_graph(cache, [features_digest(model), architecture, str(input_size), engines])
    graph = kept.read()
    if graph is None or not _is_of(model, graph, input_size):
        graph = features_graph(model, input_size)
        kept.write(graph)
    return Network(graph, head.in_features)


def _is_of(model: CellClassifier, graph: bytes, input_size: int) -> bool:
    try:
        check_features(model, graph, input_size)
    except PlatformError:
        return False
    return True
