"""A program for the head of `tests/nodes.py`: decodes a manifest's images into the nodes' caches, then has every node
open them after their sources are gone. Says as JSON, twice: what was decoded where, and what each node sees.

    python -m tests.pixels_on_nodes MANIFEST CACHE HEAD
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray

from pipeline.base.cluster import on_node
from pipeline.base.resources import ClusterPlan
from pipeline.images.load import Preprocessing
from pipeline.sources.manifest import read_manifest
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache
from pipeline.training.rows import labelled_rows
from pipeline.training.supply import Supply, supply

PIXELS = Preprocessing(24)


def seen(made: Supply) -> str:
    from pipeline.training.shard import open_shards

    train, _ = open_shards(made, 0, 1)
    [batch] = train.batches([np.arange(len(train.targets))])
    return hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()


def main(manifest: str, cache: str, head: str) -> None:
    ray.init(address=head, log_to_driver=False)
    rows = labelled_rows(read_manifest(manifest))
    nodes = [node["NodeID"] for node in ray.nodes()]
    told: list[dict[str, Any]] = []
    for _ in range(2):
        made = supply(rows.splits, PIXELS, Stores(), ClusterPlan("train", 2, 0.5), PixelCache(cache, PIXELS))
        lies = [placed.node_id for filled in made.filled() for placed in filled.placed]
        for uri in rows.train["uri"].to_pylist() + rows.validation["uri"].to_pylist():
            Path(uri).unlink(missing_ok=True)
        asked = [ray.remote(num_cpus=0, scheduling_strategy=on_node(node))(seen).remote(made) for node in nodes]
        told.append({"decoded": {node: lies.count(node) for node in nodes}, "seen": ray.get(asked)})
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
