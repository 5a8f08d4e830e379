"""What can be learned from the synthetic smears, judged on other subjects: little from colour, all from cells."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from pipeline.samples import generate

SIZE = 96  # pixels, the model's input
SUBJECTS = 60


class Smears(NamedTuple):
    full: NDArray[np.uint8]  # (N, 240, 320, 3) as decoded
    small: NDArray[np.uint8]  # (N, SIZE, SIZE, 3)
    label: NDArray[np.int64]  # (N,) 1 leukemia
    subject: NDArray[np.str_]  # (N,)


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Smears:
    root = generate(tmp_path_factory.mktemp("samples"), images=600, subjects=SUBJECTS, seed=11, workers=2).root
    paths = sorted(root.rglob("*.jpg"), key=lambda path: path.name)
    images = [Image.open(path).convert("RGB") for path in paths]
    return Smears(
        np.stack([np.asarray(image) for image in images]),
        np.stack([np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for image in images]),
        np.array([int(path.parent.name == "leukemia") for path in paths]),
        np.array([path.name.split("_")[0] for path in paths]),
    )


def colour_histograms(images: NDArray[np.uint8], bins: int) -> NDArray[np.float64]:
    """Share of the pixels in each of bins^3 cells of the RGB cube, (N, bins^3)."""
    level = (images // (256 // bins)).astype(np.int64)
    cell = (level[..., 0] * bins + level[..., 1]) * bins + level[..., 2]
    return np.stack([np.bincount(one.ravel(), minlength=bins**3) / one.size for one in cell])


@pytest.mark.slow
@pytest.mark.parametrize("bins", [4, 8])
def test_colour_alone_does_not_tell_the_class_of_other_subjects(smears: Smears, bins: int) -> None:
    features = colour_histograms(smears.full, bins)
    aucs = []
    for repeat in range(3):
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=repeat)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        score = cross_val_predict(
            model, features, smears.label, groups=smears.subject, cv=folds, method="predict_proba"
        )[:, 1]
        aucs.append(roc_auc_score(smears.label, score))
    assert np.mean(aucs) < 0.8, f"colour histograms of {bins}^3 bins reach ROC-AUC {aucs}"


def small_network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64), (64, 64)):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 1))


@pytest.mark.slow
def test_small_network_tells_the_class_of_other_subjects(smears: Smears) -> None:
    torch.manual_seed(0)
    pixels = torch.from_numpy(smears.small).permute(0, 3, 1, 2).float() / 255 - 0.7  # (N, 3, SIZE, SIZE)
    target = torch.from_numpy(smears.label).float()
    _, held_out = next(StratifiedGroupKFold(4, shuffle=True, random_state=0).split(pixels, target, smears.subject))
    held_out = torch.from_numpy(held_out)
    known = torch.ones(len(pixels), dtype=torch.bool)
    known[held_out] = False
    network = small_network()
    epochs, batch = 7, 32
    steps = -(-int(known.sum()) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, epochs * steps)
    for epoch in range(epochs):
        order = torch.nonzero(known)[:, 0][torch.randperm(int(known.sum()))]
        for chosen in order.split(batch):
            images = pixels[chosen].flip(3) if epoch % 2 else pixels[chosen]
            loss = nn.functional.binary_cross_entropy_with_logits(network(images)[:, 0], target[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        auc = roc_auc_score(target[held_out], network(pixels[held_out])[:, 0])
    assert auc > 0.95, f"the network reaches ROC-AUC {auc:.3f} on subjects it has not seen"
