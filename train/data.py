"""Training images in memory, their augmentation, and the noise of both kinds as torch tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from intcert.runtime.datasets import Dataset
from intcert.runtime.noise import ESCAPE, PIXEL_STEPS, NoiseLaw, noise_law, parse_sigma


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 ``[N, H, W, C]``, labels int64 ``[N]`` and the names that the labels index."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load_images(dataset: Dataset) -> ImageSet:
    """Read a whole data set into memory, in its order; classes without names are called by their numbers.

    Raises:
        DatasetError: an image cannot be read.
    """
    samples = list(dataset)
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    labels = torch.tensor([sample.label for sample in samples])
    names = dataset.class_names or tuple(str(label) for label in range(int(labels.max()) + 1))
    return ImageSet(images, labels, names)


class Sampler(Protocol):
    """Noise for a whole batch, from torch's default generator of the device."""

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Noise of ``shape`` in pixel steps: int16 on the grid, or float32."""
        ...


class ContinuousNoise:
    """The Gaussian noise of Cohen et al. 2019. sigma: standard deviation in pixel steps."""

    def __init__(self, sigma: float, device: torch.device | str = "cpu") -> None:
        self.sigma, self.device = sigma, device

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Noise float32 of ``shape`` in pixel steps."""
        return self.sigma * torch.randn(shape, device=self.device)


class NoiseSampler:
    """Draws from a :class:`NoiseLaw` with torch's random numbers, vectorised.

    The draw is that of the devices with other random bits: 16 bits select a value of the primary table, and where they
    select the escape, 64 fresh bits and a fresh sign select from the residual table. The distribution is exactly the
    law's, because all random integers are uniform on ranges of a power of two.

    Attributes:
        primary: int16[65536], the noise in pixel steps for each 16 bits (low byte: column, high byte: sign, offset and
            cell), ``ESCAPED`` where the residual law decides.
        threshold: int64[2^L], the residual columns' own share of 2^(64 - L).
        alias: int16[2^L], the magnitude that has the rest of each residual column.
    """

    ESCAPED = -(2**15)

    def __init__(self, law: NoiseLaw, device: torch.device | str = "cpu") -> None:
        draw = np.arange(1 << 16)
        column, byte = draw & 255, draw >> 8
        offset, cell = (byte & 127) >> law.cell_bits, byte & ((1 << law.cell_bits) - 1)
        block = np.where(law.thr[column] > cell, column, law.al[column])
        magnitude = (block.astype(np.int64) << law.s) | offset
        signed = np.where(byte >> 7 == 1, -magnitude, magnitude)
        primary = np.where(block == ESCAPE, self.ESCAPED, signed).astype(np.int16)
        self.primary = torch.from_numpy(primary).to(device)
        self.threshold = torch.from_numpy((law.rt >> np.uint64(law.L)).astype(np.int64)).to(device)
        self.alias = torch.from_numpy((law.rt & np.uint64((1 << law.L) - 1)).astype(np.int16)).to(device)
        self.device = device
        self._low_bits = 64 - law.L

    def residual(self, column: Tensor, low: Tensor) -> Tensor:
        """Magnitudes int16 for columns in [0, 2^L) and ``low`` in [0, 2^(64 - L)), both int64."""
        return torch.where(low < self.threshold[column], column.to(torch.int16), self.alias[column])

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Noise int16 of ``shape`` in pixel steps, from torch's default generator."""
        noise = self.primary[torch.randint(1 << 16, shape, dtype=torch.int32, device=self.device)]
        escaped = noise == self.ESCAPED
        count = int(escaped.sum())
        column = torch.randint(len(self.threshold), (count,), device=self.device)
        low = torch.randint(1 << self._low_bits, (count,), device=self.device)
        sign = 1 - 2 * torch.randint(2, (count,), dtype=torch.int16, device=self.device)
        noise[escaped] = sign * self.residual(column, low)
        return noise


def augment(images: Tensor, padding: int, flip: bool) -> Tensor:
    """Shift each image by up to ``padding`` pixels in both directions (black enters) and mirror half of them.

    Images uint8 ``[N, H, W, C]``, in and out; the choices come from torch's default generator.
    """
    n, height, width, _ = images.shape
    device = images.device
    rows = torch.randint(2 * padding + 1, (n, 1), device=device) + torch.arange(height, device=device)
    columns = torch.randint(2 * padding + 1, (n, 1), device=device) + torch.arange(width, device=device)
    if flip:
        mirrored = torch.randint(2, (n, 1), device=device) == 1
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    return padded[torch.arange(n, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def network_input(images: Tensor, noise: Tensor | None = None) -> Tensor:
    """Images uint8 ``[N, H, W, C]`` plus noise in pixel steps -> float ``[N, C, H, W]`` in [0, 1], not clamped.

    noise: int16 on the grid or float32; none for clean images.
    """
    pixels = images.to(torch.int16) if noise is None else images + noise
    return pixels.permute(0, 3, 1, 2).float() / 255


def make_sampler(sigma: str, discrete: bool, device: torch.device | str = "cpu") -> Sampler:
    """The noise of a noise level on the [0, 1] scale: the devices' discrete law, or the continuous Gaussian.

    Raises:
        SigmaError: sigma is not a decimal on the [0, 1] scale, or no discrete law exists for it.
    """
    if discrete:
        return NoiseSampler(noise_law(sigma), device)
    return ContinuousNoise(float(PIXEL_STEPS * parse_sigma(sigma)), device)
