"""Everything that needs a GPU, in one call: build, check the counts, time intcert and its peers.

    python bench/gpu.py --build-only --target cuda-sm80,cuda-sm90 --folder build/cuda     (a machine with nvcc)
    python bench/gpu.py --folder build/cuda -o cuda.json                                  (a machine with a GPU)

The first writes artifacts of ResNet-20 and ResNet-50 with random weights, and the counts that the NumPy reference finds
for a few samples; the second builds what is missing. All sides draw their noise on the device, run the network and
count classes; each gets the batch size with which it is the fastest (bench/gpu_peers.py). Every layer is timed alone,
against what the GPU reaches in int8 products and in copies (bench/gpu_ceilings.py). The JSON has everything; tables go
to the terminal and, beside the JSON, to .tsv and .layers.tsv. Exit code 1 where counts differ from the reference's:
nothing is timed then. With --sanitize, compute-sanitizer's tools watch the check of ResNet-20 first.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click
import numpy as np
from gpu_ceilings import LayerShare, layer_shares, measure_ceilings
from gpu_peers import Rate, rate, tensorrt_rates, torch_rates
from peer_models import SIGMA, ModelFiles
from results import write_table

from intcert.cli.failure import ANSWER_IS_NO, Failure
from intcert.compile.build import compile_artifact
from intcert.compile.database import SHIPPED
from intcert.compile.graph import IntegerGraph
from intcert.compile.reference import ReferenceSession
from intcert.runtime import CertificateParameters, Session, certify, load_table, read_artifact
from intcert.runtime.artifact import Artifact
from intcert.runtime.benchmark import benchmark, machine_facts
from intcert.runtime.errors import IntcertError
from intcert.runtime.gpu import GpuSession
from intcert.targets import find


@dataclass(frozen=True)
class Case:
    """checked: samples whose counts are compared; batches: images at once that may be the fastest."""

    checked: int
    batches: tuple[int, ...]


NETWORKS = {"resnet20": Case(512, (256, 512, 1024, 2048, 4096)), "resnet50": Case(66, (64, 128, 256, 512))}
KEY = 0xFEDCBA9876543210
FIRSTS = (0, 2**32 - 70)  # the second passes the end of the sample number's low word
PACKAGES = ("intcert", "apache-tvm", "apache-tvm-ffi", "numpy", "torch", "tensorrt")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SANITIZED = "resnet20"


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/cuda"), show_default=True)
@click.option("--target", default="cuda-sm80,cuda-sm90", show_default=True, help="Of artifacts that are built.")
@click.option("--network", "names", type=click.Choice(list(NETWORKS)), multiple=True, help="By default both.")
@click.option("--db", "database", default=SHIPPED, help="Tuning database of artifacts that are built (intcert tune).")
@click.option("--build-only", is_flag=True, help="Stop before anything needs a GPU.")
@click.option("--check-only", is_flag=True, help="Stop before anything is timed.")
@click.option(
    "--sanitize", is_flag=True, help=f"First check {SANITIZED} under compute-sanitizer: {', '.join(SANITIZERS)}."
)
@click.option("--n", type=click.IntRange(min=1), default=16384, show_default=True, help="Samples a timed round.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("cuda.json"), show_default=True)
def main(
    folder: Path,
    target: str,
    names: tuple[str, ...],
    database: str,
    build_only: bool,
    check_only: bool,
    sanitize: bool,
    n: int,
    rounds: int,
    output: Path,
) -> None:
    """Build, check and time the GPU's kernels."""

    def built(name: str) -> Path:
        return build(ModelFiles(name, folder), target, NETWORKS[name].checked, database)

    try:
        artifacts = {name: built(name) for name in names or NETWORKS}
        if build_only:
            return
        result = {"machine": machine_facts(PACKAGES), "sigma": SIGMA, "n": n, "networks": {}}
        if sanitize:
            built(SANITIZED)
            same = ("--folder", str(folder), "--target", target, "--db", database)
            command = [sys.executable, __file__, *same, "--network", SANITIZED, "--check-only"]
            result["sanitizers"] = {tool: sanitized(tool, command) for tool in SANITIZERS}
            for tool, verdict in result["sanitizers"].items():
                click.echo(f"{tool}: {verdict}")
        result["checked"] = {name: checked(name, path) for name, path in artifacts.items()}
        if not check_only:
            measure(artifacts, folder, n, rounds, output, result)
    except IntcertError as error:
        raise Failure(str(error), error.exit_code) from None


def measure(
    artifacts: dict[str, Path], folder: Path, n: int, rounds: int, output: Path, result: dict[str, object]
) -> None:
    """Time every network, and write what was found with what ``result`` has already."""
    ceilings = measure_ceilings("cuda")
    click.echo(f"int8 products {ceilings.multiply_adds / 1e12:.0f} T/s, copies {ceilings.bytes / 1e12:.2f} TB/s")
    result["ceilings"] = asdict(ceilings)
    rates: list[Rate] = []
    shares: dict[str, list[LayerShare]] = {}
    for name, path in artifacts.items():
        artifact, expected = read_artifact(path), np.load(expected_path(path))
        found = list(intcert_rates(name, artifact, n, rounds))
        rates += found
        best = max(found, key=lambda rate: rate.images_per_second)
        with GpuSession(artifact, best.batch) as session:
            result["device"] = session.device
            measured = benchmark(session, n, rounds)
            details = measured.to_json()
            details["certify_100000_seconds"] = certification_seconds(session, expected["image"], 100_000)
            result["networks"][name] = details
        graph, target = IntegerGraph.from_bytes(artifact.graph), find(artifact.manifest.target)
        shares[name] = layer_shares(graph, target, measured.layers, ceilings)
        rates += peer_rates(ModelFiles(name, folder), expected["image"], n, rounds)
    result["rates"] = [asdict(rate) for rate in rates]
    write(output, result, rates, shares)


def peer_rates(files: ModelFiles, image: np.ndarray, n: int, rounds: int) -> Iterator[Rate]:
    """The peers that are installed; one that is not, or does not take the network, is named and left out."""
    batches = NETWORKS[files.arch].batches
    yield from torch_rates(files, image, batches, n, rounds, "cuda")
    try:
        yield from tensorrt_rates(files, image, batches, n, rounds)
    except (ImportError, RuntimeError) as error:
        click.echo(f"without TensorRT: {error}", err=True)


def sanitized(tool: str, command: list[str]) -> str:
    """What one of compute-sanitizer's tools says of a command: its last line, or the command's own."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return "compute-sanitizer is not installed"
    words = [program, "--tool", tool, "--error-exitcode", "9", *command]
    done = subprocess.run(words, capture_output=True, text=True)
    last = ([line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["no output"])[-1]
    return f"exit code {done.returncode}, {last.strip(' =')}"


def build(files: ModelFiles, target: str, samples: int, database: str = SHIPPED) -> Path:
    """The network's artifact and expected counts, made where they are missing. Returns the artifact's path."""
    tuned = "" if database == SHIPPED else f"-{Path(database).stem}"
    path = files.path(f"{target.replace(',', '+')}{tuned}.intcert")
    if not path.exists():
        files.build("intcert.pt2")
        compile_artifact(files.path("intcert.pt2"), path, target=target, sigma=SIGMA, database=database)
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


def checked(name: str, path: Path) -> str:
    """Compare a network's counts with the reference's; what was compared, which is also printed. Raises Failure."""
    expected = np.load(expected_path(path))
    with GpuSession(read_artifact(path)) as session:
        check(session, expected)
    found = f"{len(FIRSTS)} x {int(expected['n'])} samples equal the reference"
    click.echo(f"{name}: {found}")
    return found


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


def certification_seconds(session: Session, image: np.ndarray, n: int) -> float:
    """Wall clock of one image's certification with n samples, the certificate table being at hand."""
    parameters = CertificateParameters(session.sigma, image.size, n=n)
    table = load_table(parameters, session.artifact.law)
    certify(session, image, KEY, table)
    begin = time.perf_counter()
    certify(session, image, KEY, table)
    return time.perf_counter() - begin


def write(output: Path, result: dict[str, object], rates: list[Rate], shares: dict[str, list[LayerShare]]) -> None:
    """The JSON, tables of rates and of layers beside it, and the same tables on the terminal."""
    output.write_text(json.dumps(result, indent=1) + "\n")
    rows = [(r.network, r.implementation, r.batch, f"{r.images_per_second:.1f}") for r in rates]
    write_table(output.with_suffix(".tsv"), ("network", "implementation", "batch", "images_per_second"), rows)
    for r in rates:
        click.echo(f"{r.network:9} {r.implementation:42} {r.batch:6} {r.images_per_second:12,.0f}/s")
    layers = [
        (name, s.name, s.kernel, s.shape, f"{s.us:.4f}", f"{s.of_products:.4f}", f"{s.of_bytes:.4f}")
        for name, found in shares.items()
        for s in found
    ]
    columns = ("network", *(field.name for field in fields(LayerShare)))
    write_table(output.with_suffix(".layers.tsv"), columns, layers)
    for name, found in shares.items():
        for s in found:
            times = f"{s.us:9.3f} us {s.of_products:6.1%} of int8 {s.of_bytes:6.1%} of copies"
            click.echo(f"{name:9} {s.name:24} {s.kernel:16} {s.shape:>16} {times}")


if __name__ == "__main__":
    main()
