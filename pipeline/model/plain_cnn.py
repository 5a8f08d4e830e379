"""The plain CNN of the field's papers: convolution, pooling, ReLU, fully connected; squeeze-and-excitation too."""

import torch
from torch import Tensor, nn

HEAD_DROPOUT = 0.2


class SqueezeExcitation(nn.Module):
    """Weigh channels by what the whole field shows (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        gated: Tensor = features * self.gate(features)  # (B, C, H, W)
        return gated


class PlainCnn(nn.Module):
    """Convolution, ReLU, pooling; four times; then fully connected. float (B, 3, S, S) -> (B, outputs), S >= 16."""

    WIDTHS = (24, 48, 96, 128)

    def __init__(self, outputs: int, *, excite: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in self.WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if excite:
                layers.append(SqueezeExcitation(width))
            layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(2 * channels, 64), nn.ReLU(), nn.Dropout(HEAD_DROPOUT), nn.Linear(64, outputs)
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)  # (B, C, S/16, S/16)
        # the mean says how the field looks, the maximum whether one suspicious cell is somewhere in it
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)  # (B, 2C)
        logits: Tensor = self.classifier(pooled)
        return logits
