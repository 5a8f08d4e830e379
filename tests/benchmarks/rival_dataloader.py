"""Plain PyTorch: a Dataset with Pillow and torchvision transforms, a DataLoader, an eager model, one Parquet file.

After https://docs.pytorch.org/tutorials/beginner/basics/data_tutorial.html and torchvision's transforms v2 guide.
"""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from tests.benchmarks.eager import MEAN, STD, eager_model
from tests.benchmarks.measure import contender_arguments, read_rows, report


class Fields(Dataset[tuple[torch.Tensor, str]]):
    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).glob("*.jpg"))
        self.transform = v2.Compose(
            [v2.Resize((224, 224)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), str(self.paths[index])


def main() -> None:
    options = contender_arguments(__doc__)
    model = eager_model(options.bundle)
    loader = DataLoader(Fields(options.images), batch_size=options.batch, num_workers=options.workers)
    columns: dict[str, list[object]] = {"path": [], "probability": [], "finished_at": []}
    with torch.inference_mode():
        for images, paths in loader:  # float32 (B, 3, 224, 224)
            columns["probability"] += torch.sigmoid(model(images))[:, 0].tolist()
            columns["path"] += paths
            columns["finished_at"] += [time.time()] * len(paths)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), f"{options.out}/predictions.parquet")
    report(*read_rows(options.out))


if __name__ == "__main__":
    main()
