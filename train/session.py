"""The rivals as sessions: float arithmetic under continuous noise, certified by the same loop as compiled artifacts.

FloatRS-fp is Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019;
FloatRS-quant adds the same noise to the image, quantizes the sum and runs a quantized network on it. For both, the
smoothed classifier keeps a class of probability p at least within the radius sigma Phi^-1(p) (their theorem 1),
whatever the network does with its input.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from intcert.runtime.certificate import CertificateParameters, OneClassTable, one_class_claims
from intcert.runtime.confidence import parse_alpha
from intcert.runtime.decimals import canonical_decimal
from intcert.runtime.errors import CertificateError, ModelError, SigmaError
from intcert.runtime.keys import KEY_LIMIT
from intcert.runtime.noise import PIXEL_STEPS, parse_sigma
from intcert.runtime.session import ROW, cpu_name
from intcert.runtime.smoothing import SmoothingBound
from intcert.train.program import image_shape, load_program
from intcert.train.recipes import METHODS

# What the noise hash covers. Another way to draw must change it.
_NOISE = "normal, float32, sigma {sigma} on the [0, 1] scale; numpy Philox, key, block of 64 samples << 128"


class TorchSession:
    """A rival's program in torch; see ``intcert.runtime.session.Session``. A context manager.

    The samples 64 b .. 64 b + 63 are one batch, whose noise comes from a counter-based generator of key and b. Counts
    depend neither on how many samples a call asks for nor on the threads: each batch is computed by one. They do depend
    on the processor and on torch's version in rare ties, as float arithmetic does.

    Attributes:
        graph_hash: SHA-256 in hex of the program's file.
        noise_hash: SHA-256 in hex of a description of the noise.
        method: ``float`` or ``floatrs-quant``.
        class_names: as trained, or none.
    """

    def __init__(
        self, path: str | Path, *, sigma: str | None = None, threads: int | None = None, device: str = "cpu"
    ) -> None:
        """Load a program that ``intcert train --recipe float`` or ``floatrs-quant`` wrote.

        sigma: noise level on the [0, 1] scale, an exact decimal; by default the one it was trained with. threads: how
        many batches are computed at once; None takes torch's number. device: a torch device.

        Raises:
            ModelError: no program, or not a rival's.
            SigmaError: sigma is no decimal on the [0, 1] scale, or neither given nor in the program.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads = {threads} is not positive")
        path = Path(path)
        program, metadata = load_program(path)
        self.method = metadata.get("recipe")
        if self.method not in METHODS or METHODS[self.method].discrete:
            raise ModelError(
                f"{str(path)!r} is no rival's program (recipe {self.method!r}): `intcert compile` makes the artifact "
                "that certify takes"
            )
        sigma = metadata.get("sigma") if sigma is None else sigma
        if sigma is None:
            raise SigmaError(f"{str(path)!r} does not carry its sigma; give one on the [0, 1] scale, like --sigma 0.25")
        parse_sigma(sigma)
        self.sigma = canonical_decimal(sigma)
        self.input_shape = image_shape(program)
        (output,) = (node for node in program.graph.nodes if node.op == "output")
        self.classes = int(output.args[0][0].meta["val"].shape[1])
        names = tuple(metadata.get("class_names", ()))
        self.class_names = names if len(names) == self.classes else ()
        self.graph_hash = hashlib.sha256(path.read_bytes()).hexdigest()
        self.noise_hash = hashlib.sha256(_NOISE.format(sigma=self.sigma).encode()).hexdigest()
        self._torch_device = torch.device(device)
        self.target = f"torch {torch.__version__}, {self.method}"
        on_gpu = self._torch_device.type == "cuda"
        self.device = torch.cuda.get_device_name(self._torch_device) if on_gpu else cpu_name()
        self.threads = threads or torch.get_num_threads()
        self._network = program.module().to(self._torch_device, memory_format=torch.channels_last)
        self._pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        self._last: tuple[tuple[int, bytes, int], np.ndarray] | None = None

    def counts(self, x: np.ndarray, key: int, first: int, n: int) -> np.ndarray:
        """See ``Session.counts``.

        Raises:
            ValueError: x is not uint8[H, W, C], n < 1, first < 0, or key is outside 0 .. 2^64 - 1.
        """
        if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape != self.input_shape:
            raise ValueError(f"expected an array uint8{list(self.input_shape)}")
        if n < 1 or first < 0:
            raise ValueError(f"cannot draw n = {n} samples from number {first}")
        if not 0 <= key < KEY_LIMIT:
            raise ValueError(f"key {key} is outside 0 .. 2^64 - 1")
        image = x.tobytes()
        begin, end = first // ROW, -(-(first + n) // ROW)
        known = {} if self._last is None else dict([self._last])

        def classes(block: int) -> np.ndarray:
            earlier = known.get((key, image, block))
            return self._classes(x, key, block) if earlier is None else earlier

        blocks = list(self._pool.map(classes, range(begin, end)))
        # The next call usually begins inside this one's last batch.
        self._last = (key, image, end - 1), blocks[-1]
        drawn = np.concatenate(blocks)[first - begin * ROW :][:n]
        rows = np.zeros((-(-n // ROW), self.classes), np.int32)
        np.add.at(rows, (np.arange(n) // ROW, drawn), 1)
        return rows

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits float32[n, classes] of images with noise. x: float32[n, H, W, C] on the [0, 1] scale, not clamped."""
        images = torch.from_numpy(x).to(self._torch_device).permute(0, 3, 1, 2)
        with torch.no_grad():
            return self._network(images.contiguous(memory_format=torch.channels_last)).float().cpu().numpy()

    def _classes(self, x: np.ndarray, key: int, block: int) -> np.ndarray:
        """Answers to the samples of a batch, int64[64]."""
        generator = np.random.Generator(np.random.Philox(key=key, counter=block << 128))
        noise = generator.standard_normal((ROW, *self.input_shape), np.float32)
        noise *= np.float32(self.sigma)
        noise += x.astype(np.float32) / np.float32(PIXEL_STEPS)
        return self.logits(noise).argmax(-1)

    def close(self) -> None:
        """Stop the threads; a second call does nothing."""
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cohen_table(parameters: CertificateParameters) -> OneClassTable:
    """The certificate of Cohen et al. 2019 as a table: R = sigma Phi^-1(p), p the Clopper-Pearson lower bound.

    Their theorem holds for continuous noise without any error term. The claim is ``ceil(R^2) - 1`` in squared pixel
    steps, as for integer noise, so both are compared at a radius by the same integers.

    Raises:
        CertificateError: the rule is not ``cp1``, which is theirs.
    """
    if parameters.rule != "cp1":
        raise CertificateError(f"rule {parameters.rule} is not for rivals, which are certified as published; give cp1")
    sigma = PIXEL_STEPS * Fraction(parameters.sigma)
    bound = SmoothingBound(sigma, Fraction(0), parameters.dimension, Fraction(0))
    return OneClassTable(parameters, bound, one_class_claims(bound, parameters.n, parse_alpha(parameters.alpha)))
