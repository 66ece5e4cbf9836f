"""Everything that needs a GPU, in one call: build, check the counts, time intcert and PyTorch.

    python bench/gpu.py --build-only --target cuda-sm80,cuda-sm90 --folder build/cuda     (a machine with nvcc)
    python bench/gpu.py --folder build/cuda -o cuda.json                                  (a machine with a GPU)

The first writes artifacts of ResNet-20 and ResNet-50 with random weights, and the counts that the NumPy reference finds
for a few samples; the second builds what is missing. Both sides draw their noise on the device, run the network and
count classes; each gets the batch size with which it is the fastest. PyTorch runs the sampling loop of Cohen et al. in
float32 and bfloat16, and compiled in bfloat16 with channels_last. A table goes to the terminal and, beside the JSON,
to a .tsv. Exit code 1 where counts differ from the reference's: nothing is timed then.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from peer_models import SIGMA, ModelFiles

from intcert.cli.failure import ANSWER_IS_NO, Failure
from intcert.compile.build import compile_artifact
from intcert.compile.graph import IntegerGraph
from intcert.compile.reference import ReferenceSession
from intcert.runtime import CertificateParameters, Session, certify, load_table, read_artifact
from intcert.runtime.artifact import Artifact
from intcert.runtime.benchmark import benchmark, machine_facts
from intcert.runtime.errors import IntcertError
from intcert.runtime.gpu import GpuSession

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Case:
    """checked: samples whose counts are compared; batches: images at once that may be the fastest."""

    checked: int
    batches: tuple[int, ...]


NETWORKS = {"resnet20": Case(512, (256, 512, 1024, 2048, 4096)), "resnet50": Case(66, (64, 128, 256, 512))}
KEY = 0xFEDCBA9876543210
FIRSTS = (0, 2**32 - 70)  # the second passes the end of the sample number's low word
PACKAGES = ("intcert", "apache-tvm", "apache-tvm-ffi", "numpy", "torch")


@dataclass(frozen=True)
class Rate:
    """Noisy images a second, decided and counted. batch: images at once; seconds: a round, each."""

    network: str
    implementation: str
    batch: int
    images_per_second: float
    seconds: tuple[float, ...]


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/cuda"), show_default=True)
@click.option("--target", default="cuda-sm80,cuda-sm90", show_default=True, help="Of artifacts that are built.")
@click.option("--network", "names", type=click.Choice(list(NETWORKS)), multiple=True, help="By default both.")
@click.option("--build-only", is_flag=True, help="Stop before anything needs a GPU.")
@click.option("--n", type=click.IntRange(min=1), default=16384, show_default=True, help="Samples a timed round.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("cuda.json"), show_default=True)
def main(
    folder: Path, target: str, names: tuple[str, ...], build_only: bool, n: int, rounds: int, output: Path
) -> None:
    """Build, check and time the GPU's kernels."""
    names = names or tuple(NETWORKS)
    try:
        artifacts = {name: build(ModelFiles(name, folder), target, NETWORKS[name].checked) for name in names}
        if not build_only:
            measure(artifacts, folder, n, rounds, output)
    except IntcertError as error:
        raise Failure(str(error), error.exit_code) from None


def measure(artifacts: dict[str, Path], folder: Path, n: int, rounds: int, output: Path) -> None:
    """Check every network's counts, time it, and write what was found."""
    result = {"machine": machine_facts(PACKAGES), "sigma": SIGMA, "n": n, "checked": {}, "networks": {}}
    rates: list[Rate] = []
    for name, path in artifacts.items():
        artifact, expected = read_artifact(path), np.load(expected_path(path))
        with GpuSession(artifact) as session:
            result["device"] = session.device
            check(session, expected)
            result["checked"][name] = f"{len(FIRSTS)} x {int(expected['n'])} samples equal the reference"
            click.echo(f"{name}: {result['checked'][name]}")
        found = list(intcert_rates(name, artifact, n, rounds))
        rates += found
        best = max(found, key=lambda rate: rate.images_per_second)
        with GpuSession(artifact, best.batch) as session:
            details = benchmark(session, n, rounds).to_json()
            details["certify_100000_seconds"] = certification_seconds(session, expected["image"], 100_000)
            result["networks"][name] = details
        rates += torch_rates(ModelFiles(name, folder), expected["image"], NETWORKS[name].batches, n, rounds, "cuda")
    result["rates"] = [asdict(rate) for rate in rates]
    write(output, result, rates)


def build(files: ModelFiles, target: str, samples: int) -> Path:
    """The network's artifact and expected counts, made where they are missing. Returns the artifact's path."""
    path = files.path(f"{target.replace(',', '+')}.intcert")
    if not path.exists():
        files.build("intcert.pt2")
        compile_artifact(files.path("intcert.pt2"), path, target=target, sigma=SIGMA)
    if not expected_path(path).exists():
        expect(read_artifact(path), expected_path(path), samples)
    return path


def expected_path(artifact: Path) -> Path:
    """Where the reference's counts for an artifact lie."""
    return artifact.with_suffix(".npz")


def expect(artifact: Artifact, path: Path, n: int) -> None:
    """Write the reference's rows for n samples from each of FIRSTS, of an image with some structure."""
    graph = IntegerGraph.from_bytes(artifact.graph)
    reference = ReferenceSession(graph, artifact.law, batch=16)
    height, width, channels = graph.input_shape
    rng = np.random.default_rng(11)
    image = rng.integers(0, 256, (height // 4, width // 4, channels)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    rows = np.stack([reference.counts(image, KEY, first, n) for first in FIRSTS])
    np.savez(path, image=image, rows=rows, n=n)


def check(session: Session, expected: dict[str, np.ndarray]) -> None:
    """Raise Failure unless a session counts what the reference counted."""
    for first, rows in zip(FIRSTS, expected["rows"], strict=True):
        found = session.counts(expected["image"], KEY, first, int(expected["n"]))
        if not np.array_equal(found, rows):
            row = int(np.nonzero((found != rows).any(1))[0][0])
            raise Failure(
                f"counts differ from the reference's at sample {first}, row {row}: {found[row].tolist()} instead of "
                f"{rows[row].tolist()}",
                ANSWER_IS_NO,
            )


def intcert_rates(name: str, artifact: Artifact, n: int, rounds: int) -> Iterator[Rate]:
    """intcert for each size of a chunk, and for the one that it chooses itself."""
    for chunk in (None, *NETWORKS[name].batches):
        with GpuSession(artifact, chunk) as session:
            image = np.full(session.input_shape, 128, np.uint8)
            label = "intcert int8" if chunk else "intcert int8, its own chunk"
            yield rate(name, label, session.chunk, n, rounds, lambda s=session, i=image: s.counts(i, KEY, 0, n))


def torch_rates(
    files: ModelFiles, image: np.ndarray, batches: tuple[int, ...], n: int, rounds: int, device: str
) -> Iterator[Rate]:
    """The sampling loop of Cohen et al. on a device, for each precision and batch size."""
    import torch

    files.build("float.pth")
    for label, dtype, layout, compiled in (
        ("PyTorch float32", torch.float32, torch.contiguous_format, False),
        ("PyTorch bfloat16", torch.bfloat16, torch.contiguous_format, False),
        ("PyTorch compiled, bfloat16, channels_last", torch.bfloat16, torch.channels_last, True),
    ):
        network = files.network().to(device, dtype, memory_format=layout)
        network = torch.compile(network, dynamic=False) if compiled else network
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(device, dtype) / 255
        for batch in batches:
            work = sampling_loop(network, pixels, layout, batch, n)
            yield rate(files.arch, label, batch, n, rounds, work)


def sampling_loop(
    network: torch.nn.Module, pixels: torch.Tensor, layout: torch.memory_format, batch: int, n: int
) -> Callable[[], object]:
    """A function that counts the classes of n noisy copies of an image [1, C, H, W] and returns them."""
    import torch

    def count() -> list[int]:
        counts = 0
        with torch.inference_mode():
            for _ in range(-(-n // batch)):
                images = pixels.expand(batch, -1, -1, -1).contiguous(memory_format=layout)
                logits = network(images + torch.randn_like(images) * float(SIGMA))
                counts = counts + torch.bincount(logits.argmax(1), minlength=logits.shape[1])
        return counts.tolist()  # waits for the device

    return count


def rate(name: str, label: str, batch: int, n: int, rounds: int, work: Callable[[], object]) -> Rate:
    """Time a function that evaluates n images, rounded up to whole batches, after a first call."""
    work()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    images = n if label.startswith("intcert") else -(-n // batch) * batch
    return Rate(name, label, batch, images / statistics.median(seconds), tuple(seconds))


def certification_seconds(session: Session, image: np.ndarray, n: int) -> float:
    """Wall clock of one image's certification with n samples, the certificate table being at hand."""
    parameters = CertificateParameters(session.sigma, image.size, n=n)
    table = load_table(parameters, session.artifact.law)
    certify(session, image, KEY, table)
    begin = time.perf_counter()
    certify(session, image, KEY, table)
    return time.perf_counter() - begin


def write(output: Path, result: dict[str, object], rates: list[Rate]) -> None:
    """The JSON, a table of rates beside it, and the same table on the terminal."""
    output.write_text(json.dumps(result, indent=1) + "\n")
    with output.with_suffix(".tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["network", "implementation", "batch", "images_per_second"])
        for entry in rates:
            writer.writerow([entry.network, entry.implementation, entry.batch, f"{entry.images_per_second:.1f}"])
            click.echo(
                f"{entry.network:9} {entry.implementation:42} {entry.batch:6} {entry.images_per_second:12,.0f}/s"
            )


if __name__ == "__main__":
    main()
