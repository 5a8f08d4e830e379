"""The usual Ray Data template: read_images, a callable class with an eager torchvision model, write_parquet.

After https://docs.ray.io/en/latest/data/working-with-images.html and .../data/batch_inference.html. In its favour:
images are made small in the read tasks, so little crosses the object store, and actors take half a CPU, so that reads
find one.
"""

import time
from typing import Any

import numpy as np
import ray
import torch
from torchvision.transforms import v2

from tests.benchmarks.eager import MEAN, STD, eager_model
from tests.benchmarks.measure import contender_arguments, read_rows, report


class Classifier:
    def __init__(self, bundle: str) -> None:
        self.model = eager_model(bundle)
        self.transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)  # uint8 (B, 3, S, S)
        with torch.inference_mode():
            probability = torch.sigmoid(self.model(self.transform(images)))[:, 0].numpy()
        return {
            "path": batch["path"],
            "probability": probability,
            "finished_at": np.full(len(probability), time.time()),
        }


def main() -> None:
    options = contender_arguments(__doc__)
    ray.init(include_dashboard=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    images = ray.data.read_images(options.images, mode="RGB", size=(224, 224), include_paths=True)
    scored = images.map_batches(
        Classifier,
        fn_constructor_args=(options.bundle,),
        batch_size=options.batch,
        concurrency=options.workers,
        num_cpus=0.5,
    )
    scored.write_parquet(options.out)
    report(*read_rows(options.out))


if __name__ == "__main__":
    main()
