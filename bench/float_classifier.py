"""The sampling loop of Cohen et al. 2019 in torch: what certification costs without this project."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


class FloatClassifier:
    """Repeat, randn_like, argmax, bincount (github.com/locuslab/smoothing, core.py) on a float32 network."""

    def __init__(self, network: nn.Module, image: np.ndarray, sigma: float, layout: str = "channels_last") -> None:
        """image: uint8[H, W, C]; sigma: on the [0, 1] scale."""
        self.layout, self.sigma = layout, sigma
        self.format = LAYOUTS[layout]
        self.network = network.eval().to(memory_format=self.format)
        self.image = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

    def count(self, n: int, batch: int) -> np.ndarray:
        """Classes of n noisy copies of the image, ``batch`` at once: int64[classes]."""
        counts = np.int64(0)
        with torch.no_grad():
            for begin in range(0, n, batch):
                images = self.image.repeat((min(batch, n - begin), 1, 1, 1)).contiguous(memory_format=self.format)
                logits = self.network(images + torch.randn_like(images) * self.sigma)
                counts = counts + np.bincount(logits.argmax(1).numpy(), minlength=logits.shape[1])
        return counts
