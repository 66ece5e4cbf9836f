"""How fast a session works: latency of ``counts``, time of each layer, memory. What ``intcert bench`` prints."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from intcert.runtime.artifact import Artifact
from intcert.runtime.session import Session, cpu_flags, cpu_name

FORMAT_VERSION = 1  # of the JSON
PERCENTILES = (50, 90, 95, 99)
PACKAGES = ("intcert", "apache-tvm", "apache-tvm-ffi", "numpy")

_STATUS = Path("/proc/self/status")
_KEY = 1  # of the noise, whose values do not change its cost
_LAYER_ROUNDS = 9
_INPUT_BYTES = 2 << 20  # of the images that the network alone is timed with: they stay in a cache


@runtime_checkable
class LayerSession(Protocol):
    """A session that can time the kernels of its artifact where they run."""

    artifact: Artifact

    def layer_seconds(self, begin: int, end: int, rounds: int) -> list[float]:
        """Seconds that the kernels ``begin`` .. ``end - 1`` take for one chunk, measured ``rounds`` times."""
        ...


@dataclass(frozen=True)
class LayerTime:
    """One kernel on one thread. instruction: what does its multiplications, empty where it has none; seconds: an
    image, the median; share: of the sum over all layers."""

    name: str
    kernel: str
    instruction: str
    shape: tuple[int, ...]
    seconds: float
    share: float


@dataclass(frozen=True)
class Benchmark:
    """What was measured; times are seconds of wall clock.

    n: samples a ``counts`` call; counts: seconds of each call, on a board with the way there and back; network_images:
    images a ``logits`` call, which is the network without noise and decision; network: seconds of each such call;
    layers: empty where the session cannot time them; peak_memory: of this process, which on a board does little, in
    bytes, None where the system does not tell.
    """

    target: str
    device: str
    sigma: str
    dimension: int
    threads: int | None
    n: int
    counts: tuple[float, ...]
    network_images: int
    network: tuple[float, ...]
    layers: tuple[LayerTime, ...]
    peak_memory: int | None

    @property
    def images_per_second(self) -> float:
        """Noisy images that ``counts`` draws, evaluates and counts, by the median call."""
        return self.n / statistics.median(self.counts)

    @property
    def draws_per_second(self) -> float:
        """Noise samples: one for every coordinate of a noisy image."""
        return self.images_per_second * self.dimension

    @property
    def network_images_per_second(self) -> float:
        """Given images that the network evaluates, by the median call."""
        return self.network_images / statistics.median(self.network)

    def latency(self) -> dict[str, float]:
        """Percentiles of a ``counts`` call in seconds: p50, p90, p95, p99."""
        return {f"p{percent}": percentile(self.counts, percent) for percent in PERCENTILES}

    def to_json(self) -> dict[str, Any]:
        """All of it, with the machine, as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "machine": machine_facts(PACKAGES),
            **asdict(self),
            "images_per_second": self.images_per_second,
            "draws_per_second": self.draws_per_second,
            "network_images_per_second": self.network_images_per_second,
            "latency": self.latency(),
        }


def benchmark(
    session: Session, n: int, rounds: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Benchmark:
    """Measure a session.

    n: samples a ``counts`` call; rounds: calls that are timed, one more comes before them; progress: called with the
    steps done and their number.

    Raises:
        ValueError: n or rounds is not positive.
    """
    if n < 1 or rounds < 1:
        raise ValueError(f"cannot measure {rounds} calls of {n} samples")
    dimension = math.prod(session.input_shape)
    # Pixel 128 everywhere: no value costs more than another.
    image = np.full(session.input_shape, 128, np.uint8)
    images = np.full((max(1, min(n, _INPUT_BYTES // (2 * dimension))), *session.input_shape), 128, np.int16)
    layers = session.artifact.manifest.layers if isinstance(session, LayerSession) else ()
    total, done = 2 * rounds + len(layers), 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    def timed(work: Callable[[], object]) -> tuple[float, ...]:
        work()
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
            advance()
        return tuple(times)

    return Benchmark(
        target=session.target,
        device=session.device,
        sigma=session.sigma,
        dimension=dimension,
        threads=getattr(session, "threads", None),
        n=n,
        counts=timed(lambda: session.counts(image, _KEY, 0, n)),
        network_images=len(images),
        network=timed(lambda: session.logits(images)),
        layers=_layer_times(session, advance) if layers else (),
        peak_memory=peak_memory(),
    )


def _layer_times(session: LayerSession, advance: Callable[[], None]) -> tuple[LayerTime, ...]:
    manifest = session.artifact.manifest
    seconds = []
    for position in range(len(manifest.layers)):
        seconds.append(statistics.median(session.layer_seconds(position, position + 1, _LAYER_ROUNDS)))
        advance()
    # What a call costs that runs no kernel at all.
    empty = statistics.median(session.layer_seconds(0, 0, _LAYER_ROUNDS))
    images = [max(value - empty, 0.0) / manifest.chunk for value in seconds]
    total = sum(images) or 1.0
    names = [layer["kernel"].partition(".") for layer in manifest.layers]
    return tuple(
        LayerTime(layer["name"], kernel, instruction, tuple(layer["shape"]), value, value / total)
        for layer, (kernel, _, instruction), value in zip(manifest.layers, names, images, strict=True)
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that at least ``percent`` % of them do not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


def peak_memory() -> int | None:
    """The most memory that this process had resident, in bytes; None where the system does not tell.

    Linux's VmHWM: unlike getrusage's figure, it does not count what the parent process had before the exec.
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), None)


def machine_facts(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, system and versions of those packages that are installed, as JSON values."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "cpu_flags": sorted(cpu_flags()),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }
