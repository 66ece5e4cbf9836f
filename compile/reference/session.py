"""The reference as something that can count: the Session protocol on NumPy alone, slow and definitive."""

from __future__ import annotations

import numpy as np

from intcert.compile.graph import IntegerGraph
from intcert.compile.reference.network import run
from intcert.compile.reference.noise import sample_noise
from intcert.runtime.noise import NoiseLaw
from intcert.runtime.session import ROW


class ReferenceSession:
    """counts and logits of a graph under a noise law (see ``intcert.runtime.session.Session``)."""

    target = "reference"
    device = "numpy"

    def __init__(self, graph: IntegerGraph, law: NoiseLaw, batch: int = 64) -> None:
        self.graph, self.law, self.batch = graph, law, batch
        self.input_shape, self.classes = graph.input_shape, graph.classes
        self.sigma, self.graph_hash, self.noise_hash = law.sigma, graph.digest, law.digest

    def logits(self, x: np.ndarray) -> np.ndarray:
        """x: int16[n, H, W, C], pixel + noise. Returns int32[n, classes]."""
        return run(self.graph, x)

    def counts(self, x: np.ndarray, key: int, first: int, n: int) -> np.ndarray:
        """x: uint8[H, W, C]. Returns int32[ceil(n / 64), classes]: argmax counts, 64 samples a row."""
        rows = np.zeros((-(-n // ROW), self.classes), np.int32)
        for start in range(0, n, self.batch):
            size = min(self.batch, n - start)
            noise = sample_noise(self.law, key, first + start, size, x.size).reshape(size, *x.shape)
            winners = self.logits(x.astype(np.int16) + noise).argmax(-1)
            np.add.at(rows, ((start + np.arange(size)) // ROW, winners), 1)
        return rows
