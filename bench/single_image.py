"""One CIFAR-10 image certified at N = 100,000 on one core: the compiled integer network against PyTorch in float32.

    python bench/single_image.py [--artifact m.intcert] [--n 100000] [--rounds 5] [--core 0]

Both sides draw their noise, run ResNet-20 and count the classes of 100 + N samples, in this process on one core, in
alternating rounds. The integer side is ``runtime.certify`` whole. The float side is the sampling loop of Cohen et al.
(github.com/locuslab/smoothing, core.py: repeat, randn_like, argmax, bincount) with the fastest of a few layouts and
batch sizes, timed on fewer samples and scaled; its weights are random, which does not change its time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import click
import numpy as np
import torch

from intcert.cli.options import data_source, model_path
from intcert.compile.build import compile_artifact
from intcert.runtime import (
    CertificateParameters,
    certify,
    image_key,
    load_table,
    new_run_key,
    open_artifact,
    open_dataset,
)
from intcert.train.models import resnet20

N0 = 100
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
BATCHES = (64, 256, 1024)
TRIAL_SAMPLES = 1024  # for choosing layout and batch size


class FloatClassifier:
    """The sampling loop of Cohen et al. 2019 on a float32 ResNet-20; sigma on the [0, 1] scale."""

    def __init__(self, image: np.ndarray, sigma: float, layout: str, batch: int) -> None:
        """image: uint8[H, W, C]."""
        self.name, self.sigma, self.batch = f"{layout}, batch {batch}", sigma, batch
        self.format = LAYOUTS[layout]
        self.network = resnet20().eval().to(memory_format=self.format)
        self.image = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

    def count(self, n: int) -> np.ndarray:
        """Classes of n noisy copies of the image: int64[10]."""
        counts = np.zeros(10, np.int64)
        with torch.no_grad():
            for begin in range(0, n, self.batch):
                batch = self.image.repeat((min(self.batch, n - begin), 1, 1, 1)).contiguous(memory_format=self.format)
                noise = torch.randn_like(batch) * self.sigma
                counts += np.bincount(self.network(batch + noise).argmax(1).numpy(), minlength=10)
        return counts


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process: what else the machine does matters less than in wall-clock time."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


@click.command()
@click.option("--artifact", type=click.Path(path_type=Path), help="Default: the shipped model, compiled for the host.")
@click.option("--n", type=click.IntRange(min=1), default=100_000, show_default=True, help="Estimation samples.")
@click.option("--float-samples", type=click.IntRange(min=1), default=4096, show_default=True, help="Per float round.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--core", type=int, help="Core to run on; default: the first that this process may use.")
def main(artifact: Path | None, n: int, float_samples: int, rounds: int, core: int | None) -> None:
    """Time one certification on one core, in integers and in float32."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0)) if core is None else core})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if artifact is None:
            artifact = Path(folder) / "demo.intcert"
            compile_artifact(model_path("demo"), artifact, target="host", sigma="0.25")
        measure(artifact, n, float_samples, rounds)


def measure(artifact: Path, n: int, float_samples: int, rounds: int) -> None:
    """Print the medians of alternating rounds."""
    with open_artifact(artifact, threads=1) as session:
        image = open_dataset(data_source("demo"), shape=session.input_shape, classes=session.classes)[0].image
        parameters = CertificateParameters(sigma=session.sigma, dimension=image.size, n0=N0, n=n)
        table = load_table(parameters, session.artifact.law)
        run_key = new_run_key()

        candidates = [
            FloatClassifier(image, float(session.sigma), layout, batch) for layout in LAYOUTS for batch in BATCHES
        ]
        for candidate in candidates:
            candidate.count(candidate.batch)  # the first run of a shape prepares its kernels
        rival = min(candidates, key=lambda candidate: seconds(lambda: candidate.count(TRIAL_SAMPLES)))
        certify(session, image, image_key(run_key, rounds), table)

        integer_times, float_times = [], []
        for index in range(rounds):
            key = image_key(run_key, index)  # a fresh key each: a counter range serves one draw
            integer_times.append(seconds(lambda key=key: certify(session, image, key, table)))
            elapsed = seconds(lambda: rival.count(float_samples))
            float_times.append(elapsed * (N0 + n) / float_samples)

        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("intcert", "apache-tvm", "torch", "numpy"))
        print(f"{session.device}, one core; {versions}")
        print(f"one {image.shape[0]}x{image.shape[1]} image, {N0} + {n:,} samples, sigma {session.sigma}, ResNet-20")
        print(f"median of {rounds} alternating rounds, CPU seconds (least to greatest)")
        report(f"intcert, {session.target}", integer_times, N0 + n)
        report(f"PyTorch float32, {rival.name}", float_times, N0 + n)
        print(f"  float rounds took {float_samples:,} samples each and are scaled to {N0 + n:,}")
        print(f"ratio of the medians: {statistics.median(float_times) / statistics.median(integer_times):.1f}")


def report(name: str, times: list[float], samples: int) -> None:
    """Print one side: median, extremes, and samples a second."""
    middle = statistics.median(times)
    print(f"  {name:42s} {middle:8.2f} s  ({min(times):.2f} to {max(times):.2f})  {samples / middle:10,.0f} samples/s")


if __name__ == "__main__":
    main()
