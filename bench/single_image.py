"""One CIFAR-10 image certified at N = 100,000: the compiled integer network against PyTorch in float32.

    python bench/single_image.py [--artifact m.intcert] [--n 100000] [--rounds 5] [--threads 1]

Both sides draw their noise, run ResNet-20 and count the classes of 100 + N samples, in this process on the same cores,
one for each thread, in alternating rounds. The integer side is ``runtime.certify`` whole. The float side is the
sampling loop of Cohen et al. with the fastest of a few layouts and batch sizes, timed on fewer samples and scaled; its
weights are random, which does not change its time. One thread is timed in CPU seconds, several in wall-clock seconds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import click
import torch
from clock import clock
from float_classifier import LAYOUTS, FloatClassifier

from intcert.cli.failure import Failure
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
BATCHES = (16, 64, 256)
SAMPLES = 1024  # for choosing layout and batch size


@click.command()
@click.option("--artifact", type=click.Path(path_type=Path), help="Default: the shipped model, compiled for the host.")
@click.option("--n", type=click.IntRange(min=1), default=100_000, show_default=True, help="Estimation samples.")
@click.option("--float-samples", type=click.IntRange(min=1), default=4096, show_default=True, help="Per float round.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="And as many cores.")
def main(artifact: Path | None, n: int, float_samples: int, rounds: int, threads: int) -> None:
    """Time one certification, in integers and in float32."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    if len(cores) < threads:
        raise Failure(f"--threads {threads}: this process may use {len(cores)} cores; give no more")
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if artifact is None:
            artifact = Path(folder) / "demo.intcert"
            compile_artifact(model_path("demo"), artifact, target="host", sigma="0.25")
        measure(artifact, n, float_samples, rounds, threads)


def measure(artifact: Path, n: int, float_samples: int, rounds: int, threads: int) -> None:
    """Print the medians of alternating rounds."""
    now = clock(threads)

    def seconds(work: Callable[[], object]) -> float:
        begin = now()
        work()
        return now() - begin

    with open_artifact(artifact, threads) as session:
        image = open_dataset(data_source("demo"), shape=session.input_shape, classes=session.classes)[0].image
        parameters = CertificateParameters(sigma=session.sigma, dimension=image.size, n0=N0, n=n)
        table = load_table(parameters, session.artifact.law)
        run_key = new_run_key()

        classifiers = [FloatClassifier(resnet20(), image, float(session.sigma), layout) for layout in LAYOUTS]
        candidates = [(classifier, batch) for classifier in classifiers for batch in BATCHES]
        for classifier, batch in candidates:
            classifier.count(batch, batch)  # the first run of a shape prepares its kernels
        rival, batch = min(candidates, key=lambda candidate: seconds(lambda: candidate[0].count(SAMPLES, candidate[1])))
        certify(session, image, image_key(run_key, rounds), table)

        integer_times, float_times = [], []
        for index in range(rounds):
            key = image_key(run_key, index)  # a fresh key each: a counter range serves one draw
            integer_times.append(seconds(lambda key=key: certify(session, image, key, table)))
            elapsed = seconds(lambda: rival.count(float_samples, batch))
            float_times.append(elapsed * (N0 + n) / float_samples)

        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("intcert", "apache-tvm", "torch", "numpy"))
        print(f"{session.device}, {threads} cores; {versions}")
        print(f"one {image.shape[0]}x{image.shape[1]} image, {N0} + {n:,} samples, sigma {session.sigma}, ResNet-20")
        print(f"median of {rounds} alternating rounds, seconds (least to greatest)")
        report(f"intcert, {session.target}", integer_times, N0 + n)
        report(f"PyTorch float32, {rival.layout}, batch {batch}", float_times, N0 + n)
        print(f"  float rounds took {float_samples:,} samples each and are scaled to {N0 + n:,}")
        print(f"ratio of the medians: {statistics.median(float_times) / statistics.median(integer_times):.1f}")


def report(name: str, times: list[float], samples: int) -> None:
    """Print one side: median, extremes, and samples a second."""
    middle = statistics.median(times)
    print(f"  {name:42s} {middle:8.2f} s  ({min(times):.2f} to {max(times):.2f})  {samples / middle:10,.0f} samples/s")


if __name__ == "__main__":
    main()
