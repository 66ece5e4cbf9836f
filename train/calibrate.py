"""Post-training quantization: a float network becomes an 8-bit one by looking at its activations on noisy images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from intcert.compile.quantizer import convert, prepare_calibration
from intcert.runtime.errors import IntcertError, ModelError
from intcert.train.data import ImageSet, make_sampler, network_input
from intcert.train.loop import derived_seed
from intcert.train.program import is_quantized
from intcert.train.ranges import OBSERVERS

BATCH = 64


class ExportedNetwork(nn.Module):
    """A float program as a module that may be exported again.

    Raises:
        ModelError: the program is quantized already.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        if is_quantized(program):
            raise ModelError("the program is quantized already; give it to `intcert compile`")
        self.network = program.module()

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Nothing changes: a program was exported in one mode and knows no other."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def quantize(
    network: nn.Module,
    data: ImageSet,
    sigma: str,
    *,
    images: int = 1024,
    ranges: str = "clipped",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportedProgram:
    """Quantize a float network to 8 bits without training it.

    network: float ``[N, C, H, W]`` in [0, 1] -> logits; data: calibration images, of which ``images`` are chosen;
    sigma: noise level on the [0, 1] scale, since the ranges must fit what the network sees under certification; ranges:
    a key of ``ranges.OBSERVERS``; progress: called with the batches done and their number.

    Raises:
        ModelError: the network has an operator without integer form.
        SigmaError: no noise law exists for sigma.
        IntcertError: no images, or unknown ranges.
    """
    if images < 1:
        raise IntcertError(f"{images} calibration images show no activations; give at least 1")
    if ranges not in OBSERVERS:
        raise IntcertError(f"unknown ranges {ranges!r}; choose one of {', '.join(OBSERVERS)}")
    sampler = make_sampler(sigma, discrete=True)
    height, width, channels = data.images.shape[1:]
    example = torch.zeros(2, channels, height, width)
    prepared = prepare_calibration(network, example, OBSERVERS[ranges])
    order = np.random.default_rng(derived_seed(seed, "calibration", 0)).permutation(len(data.images))[:images]
    batches = torch.from_numpy(order).split(BATCH)
    torch.manual_seed(derived_seed(seed, "calibration noise", 0))
    with torch.no_grad():
        for done, chosen in enumerate(batches, start=1):
            pixels = data.images[chosen]
            prepared(network_input(pixels, sampler(tuple(pixels.shape))))
            progress(done, len(batches))
    return convert(prepared, example)
