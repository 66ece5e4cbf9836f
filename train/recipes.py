"""What a training run consists of: the paper's method and its two rivals as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from intcert.runtime.decimals import canonical_decimal
from intcert.runtime.errors import IntcertError, ModelError
from intcert.runtime.noise import parse_sigma
from intcert.train.consistency import Consistency
from intcert.train.models import MODELS
from intcert.train.ranges import OBSERVERS


@dataclass(frozen=True)
class Method:
    """How a method treats noise and network.

    discrete: noise is the discrete Gaussian on the pixel grid, else the continuous one; quantized: the last epochs
    train through fake quantization and the program's arithmetic is 8-bit, else everything is float; title: for people.
    """

    discrete: bool
    quantized: bool
    title: str


#: Lin et al. 2021, section 4.1: the method and what it is compared with.
METHODS = {
    "intrs": Method(discrete=True, quantized=True, title="IntRS (discrete noise, quantized network)"),
    "float": Method(discrete=False, quantized=False, title="FloatRS-fp (continuous noise, float network)"),
    "floatrs-quant": Method(discrete=False, quantized=True, title="FloatRS-quant (continuous noise, then quantized)"),
}

SCHEDULES = ("step", "cosine")

#: Lin et al. 2021, section 4.1.
BATCH_SIZE = 256
BATCH_SIZES = {"resnet50": 64}


class Phase(NamedTuple):
    """A part of a run with a learning-rate schedule of its own."""

    name: str
    epochs: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, given images, first weights, device and number of threads.

    Attributes:
        method: a key of ``METHODS``.
        arch: a key of ``models.MODELS``.
        sigma: noise level on the [0, 1] scale, an exact decimal.
        epochs: of the whole run.
        qat_epochs: how many of them, the last ones, train through fake quantization; 0 for a float network.
        batch_size: images a step.
        lr, qat_lr: first learning rates of the float and the quantization-aware phase.
        schedule: ``step`` divides a phase's rate by 10 after one and two thirds of it, ``cosine`` lowers it to 0 along
            half a cosine (Loshchilov and Hutter 2017).
        crop_padding: pixels by which images are shifted at most; flip: half of them are mirrored.
        bf16: float steps run in bfloat16 autocast. Quantization-aware ones never do: bfloat16 has fewer bits than the
            rounding that they imitate.
        ranges: a key of ``ranges.OBSERVERS``, which chooses the activations' scales.
        regularizer: Jeong and Shin's, or none.
        seed: of every random choice.

    Raises:
        ModelError: unknown architecture.
        SigmaError: sigma is not a decimal on the [0, 1] scale.
        IntcertError: any other field makes no sense.
    """

    method: str
    arch: str
    sigma: str
    epochs: int
    qat_epochs: int = 0
    batch_size: int = BATCH_SIZE
    lr: float = 0.1
    qat_lr: float = 0.01
    schedule: str = "step"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    crop_padding: int = 4
    flip: bool = True
    bf16: bool = False
    ranges: str = "clipped"
    regularizer: Consistency | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arch not in MODELS:
            raise ModelError(f"unknown architecture {self.arch!r}; choose one of {', '.join(MODELS)}")
        for name, known in (("method", METHODS), ("schedule", SCHEDULES), ("ranges", OBSERVERS)):
            if getattr(self, name) not in known:
                raise IntcertError(f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(known)}")
        parse_sigma(self.sigma)
        object.__setattr__(self, "sigma", canonical_decimal(self.sigma))
        if self.epochs < 1 or self.batch_size < 1:
            raise IntcertError(f"{self.epochs} epochs in batches of {self.batch_size}; give at least 1 of each")
        if METHODS[self.method].quantized and not 1 <= self.qat_epochs <= self.epochs:
            raise IntcertError(
                f"{self.qat_epochs} of {self.epochs} epochs are quantization-aware; they find the scales of a "
                f"{self.method} network, so give 1 to {self.epochs}"
            )
        if not METHODS[self.method].quantized and self.qat_epochs:
            raise IntcertError(f"a {self.method} network has no quantization-aware epochs; give 0")

    @property
    def phases(self) -> Iterator[Phase]:
        """The phases in order; those without epochs are left out."""
        for phase in (
            Phase("float", self.epochs - self.qat_epochs, self.lr),
            Phase("qat", self.qat_epochs, self.qat_lr),
        ):
            if phase.epochs:
                yield phase
