"""A network so small that the NumPy reference certifies with it in milliseconds."""

import numpy as np
import pytest

from intcert.compile.graph import IntegerGraph
from intcert.compile.nodes import Clamp, Flatten, InputQuantize, Linear, LogitScale, RequantQ31
from intcert.compile.reference import ReferenceSession
from intcert.runtime.noise import noise_law

SIGMA = "0.05"


def brightness_graph() -> IntegerGraph:
    """Three classes of 2 x 2 grey images: dark, medium and bright on the average (below 85, up to 170, above)."""
    identity = RequantQ31(
        multiplier=np.array([1 << 24], np.int32),
        term_multipliers=np.zeros((0, 1), np.int32),
        rounding=np.array([1 << 31], np.int64),
        shift=np.array([32], np.int8),
    )
    nodes = (
        InputQuantize(np.zeros(1, np.int32), identity, Clamp("uint8", 0, 255)),
        Flatten(0),
        # With the sum s of the pixels: 0, s - 4 * 85 and 2 s - 4 * 85 - 4 * 170.
        Linear(
            1,
            np.array([[0], [1], [2]], np.int8).repeat(4, axis=1),
            np.array([0, -340, -1020], np.int32),
            LogitScale(np.full(3, 1 << 30, np.int32), np.zeros(3, np.int64)),
            None,
        ),
    )
    return IntegerGraph((2, 2, 1), "q31", nodes, ("input", "flatten", "brightness"))


def brightness_images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of every brightness, uint8[n, 2, 2, 1], and their classes, int64[n]."""
    rng = np.random.default_rng(7)
    images = np.clip(np.linspace(0, 255, n)[:, None, None, None] + rng.normal(0, 20, (n, 2, 2, 1)), 0, 255)
    images = images.astype(np.uint8)
    return images, np.searchsorted([340, 680], images.sum(axis=(1, 2, 3), dtype=np.int64))


@pytest.fixture(scope="session")
def session() -> ReferenceSession:
    return ReferenceSession(brightness_graph(), noise_law(SIGMA))


@pytest.fixture
def images_file(tmp_path):
    """An npz file of 12 images for ``session``."""
    images, labels = brightness_images(12)
    path = tmp_path / "images.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Tests share no certificate tables with the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
