"""Daft: list, download, decode and resize in the engine, an eager torch model in a batch UDF, write_parquet.

After https://docs.daft.ai (working with images; `daft.cls` with `daft.method.batch` for models).
"""

import time

import daft
import numpy as np
import torch
from daft.functions import decode_image, download, resize
from torchvision.transforms import v2

from tests.benchmarks.eager import MEAN, STD, eager_model
from tests.benchmarks.measure import contender_arguments, read_rows, report

RESULT = daft.DataType.struct({"probability": daft.DataType.float32(), "finished_at": daft.DataType.float64()})


@daft.cls
class Classifier:
    def __init__(self, bundle: str) -> None:
        self.model = eager_model(bundle)
        self.transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    @daft.method.batch(return_dtype=RESULT, unnest=True, batch_size=32)
    def __call__(self, images: daft.Series) -> list[dict[str, float]]:
        pixels = np.stack(images.to_pylist())  # uint8 (B, S, S, 3)
        with torch.inference_mode():
            batch = self.transform(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            probability = torch.sigmoid(self.model(batch))[:, 0].tolist()
        now = time.time()
        return [{"probability": value, "finished_at": now} for value in probability]


def main() -> None:
    options = contender_arguments(__doc__)
    frame = daft.from_glob_path(f"{options.images}/*.jpg").select("path")
    decoded = decode_image(download(frame["path"]), mode=daft.ImageMode.RGB)
    frame = frame.with_column("image", resize(decoded, 224, 224))
    frame.select("path", Classifier(options.bundle)(frame["image"])).write_parquet(options.out)
    report(*read_rows(options.out))


if __name__ == "__main__":
    main()
