"""Tuning for a GPU: every tile on the emulated GPU, the tuner's whole way there, and what it says without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
import tvm
from random_models import convolution_graph, random_input
from simt import Machine
from test_tune import layer_of

pytest.importorskip("xgboost")

from intcert.compile.database import read_database
from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels.cuda.tile import MmaTile
from intcert.compile.layer import Layer, layers_of, tunable
from intcert.compile.library_cuda import device_target
from intcert.compile.lower_cuda import lower_cuda, lower_cuda_steps
from intcert.compile.plan import Step, make_plan
from intcert.compile.reference import run
from intcert.compile.tune import gpu as tune_gpu
from intcert.compile.tune import program as tune_program
from intcert.compile.tune import session, tune
from intcert.compile.tune.device import CandidateError
from intcert.compile.tune.features import NAMES, features
from intcert.compile.tune.gpu import GpuDevice
from intcert.compile.tune.program import Program, check_cases, expected_result, layer_program, result_of, with_operands
from intcert.runtime.errors import DatabaseError, ModelError, WrongDeviceError
from intcert.runtime.noise import noise_law
from intcert.targets import CudaTarget, find

TURING, AMPERE = find("cuda-sm75"), find("cuda-sm80")
LAYERS = {  # input shape, outputs, kernel size, options
    "three_channels": ((7, 5, 3), 16, (3, 3), {"stride": (2, 2)}),
    "sixteen_channels": ((6, 7, 16), 32, (3, 3), {"residual": 1}),
    "pointwise": ((5, 5, 64), 80, (1, 1), {}),
    "wide": ((5, 4, 40), 128, (3, 3), {"dtype": "int8"}),
}


class Emulated(NamedTuple):
    """In the place of a library: what it would be compiled from."""

    module: tvm.IRModule
    blob: np.ndarray
    tile: MmaTile


class InProcess:
    """In the place of a worker: no other process could be told to emulate."""

    def __init__(self, timeout: float) -> None:
        pass

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> Any:
        return function(*arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class EmulatedGpu:
    """Runs programs on the emulator; a tile of more rows seems faster."""

    cpu = "emulated"

    def measure(self, programs: Sequence[Program], rounds: int) -> np.ndarray:
        return np.array([[1 / program.library.tile.rows] * rounds for program in programs])

    def run(self, program: Program, memory: np.ndarray) -> np.ndarray:
        arena = memory.reshape(program.images, -1).copy()
        Machine(program.library.module).run("layers_host", 0, 1, program.library.blob, arena)
        return arena.reshape(-1)


class BadGpu(EmulatedGpu):
    """Tiles of two stages crash, those of three give a wrong bit."""

    def measure(self, programs: Sequence[Program], rounds: int) -> np.ndarray:
        if programs[-1].library.tile.stages == 2:
            raise CandidateError("CUDA: an illegal memory access was encountered")
        return super().measure(programs, rounds)

    def run(self, program: Program, memory: np.ndarray) -> np.ndarray:
        after = super().run(program, memory)
        after[program.result] ^= program.library.tile.stages == 3
        return after


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are compiled for the emulator, in this process."""

    def lower(steps: list[Step], blob: np.ndarray, arena_bytes: int, device: tvm.target.Target) -> Emulated:
        return Emulated(lower_cuda_steps(steps, blob, arena_bytes, device), blob.copy(), steps[0].kernel.schedule)

    monkeypatch.setattr(tune_program, "lower_cuda_steps", lower)
    monkeypatch.setattr(tune_program, "compile_cuda", lambda module, target: module)
    monkeypatch.setattr(tune_program, "link_cuda", lambda module, target, linker: module)
    monkeypatch.setattr(session, "Worker", InProcess)


def graph_of(name: str) -> IntegerGraph:
    shape, outputs, kernel, options = LAYERS[name]
    return convolution_graph(7, "q15", shape, outputs, kernel, **options)


def require_exact(layer: Layer, tile: MmaTile) -> None:
    program, operands = layer_program(layer, tile), check_cases(layer, 5)[0]
    found = result_of(program, layer, EmulatedGpu().run(program, with_operands(program, layer, operands)))
    np.testing.assert_array_equal(found, expected_result(layer, operands), err_msg=str(tile))


@pytest.mark.parametrize("target", [TURING, AMPERE], ids=lambda target: target.name)
@pytest.mark.parametrize("name", LAYERS)
def test_tiles_give_the_same_bits(target: CudaTarget, name: str, emulated) -> None:
    """The default and a few others, through the tuner's own build, run and check."""
    layer = layer_of(graph_of(name), target, 4)
    tiles = layer.schedules()
    assert layer.kernel().schedule == tiles[0]
    assert len(set(tiles)) == len(tiles) > 4
    vectors = [features(layer, tile) for tile in tiles]
    assert len({vector.tobytes() for vector in vectors}) == len(tiles)
    assert all(vector.shape == (len(NAMES),) for vector in vectors)
    for number in {0, *np.random.default_rng(4).integers(1, len(tiles), 4)}:
        require_exact(layer, tiles[number])


@pytest.mark.slow
@pytest.mark.parametrize("target", [TURING, AMPERE], ids=lambda target: target.name)
@pytest.mark.parametrize("name", LAYERS)
def test_every_tile_gives_the_same_bits(target: CudaTarget, name: str, emulated) -> None:
    layer = layer_of(graph_of(name), target, 4)
    for tile in layer.schedules():
        require_exact(layer, tile)


def test_a_network_is_tuned_and_compiled_with_what_was_found(emulated, tmp_path: Path) -> None:
    graph, path = graph_of("sixteen_channels"), tmp_path / "db.json"
    # More images than candidates are compared on.
    report = tune(graph, AMPERE, path, name="one", trials=24, chunk=64, device=EmulatedGpu())
    assert report.network is None
    assert report.refused == []
    database = read_database(path, AMPERE)
    assert database.machine["cpu"] == "emulated"
    for layer in filter(tunable, layers_of(graph, 1, AMPERE)):
        chosen, default = database.schedule(layer), layer.schedules()[0]
        assert chosen == default or chosen.rows > default.rows
    assert any(database.schedule(layer).rows == 256 for layer in filter(tunable, layers_of(graph, 1, AMPERE)))
    plan = make_plan(graph, noise_law("0.25"), AMPERE, database=database)
    tuned = [step.kernel.schedule for step in plan.steps if step.kernel.schedule]
    assert [asdict(tile) for tile in tuned] == [
        database.layers[layer.workload].schedule for layer in layers_of(graph, 1, AMPERE) if tunable(layer)
    ]
    x = random_input(graph, 5, 7)
    out, arena = np.zeros((5, graph.classes), np.int32), np.zeros((3, plan.arena_bytes), np.uint8)
    Machine(lower_cuda(graph, plan, device_target(AMPERE))).run("logits_host", x, plan.blob.copy(), out, arena)
    np.testing.assert_array_equal(out, run(graph, x))
    with pytest.raises(DatabaseError, match="tuned for cuda-sm80, not for cuda-sm86"):
        read_database(path, find("cuda-sm86"))


def test_a_gpu_that_runs_no_default_is_an_error(emulated, tmp_path: Path) -> None:
    graph, path = graph_of("three_channels"), tmp_path / "db.json"
    assert {tile.stages for tile in layer_of(graph, TURING, 64).schedules()} == {2}
    with pytest.raises(ModelError, match=r"the default kernel of .* fails: CUDA: an illegal memory access"):
        tune(graph, TURING, path, name="one", trials=8, chunk=64, device=BadGpu())
    assert not path.exists()


def test_bad_candidates_are_reported_and_never_stored(emulated, tmp_path: Path) -> None:
    graph, path = graph_of("sixteen_channels"), tmp_path / "db.json"
    report = tune(graph, AMPERE, path, name="one", trials=16, chunk=64, device=BadGpu())
    reasons = {reason for _, _, reason in report.refused}
    assert "CUDA: an illegal memory access was encountered" in reasons
    assert "1 results differ from the reference" in reasons
    database = read_database(path, AMPERE)
    for layer in filter(tunable, layers_of(graph, 1, AMPERE)):
        assert database.schedule(layer).stages == 4 or database.schedule(layer) == layer.schedules()[0]


def test_the_workload_of_a_layer_does_not_depend_on_the_images_at_once() -> None:
    graph = graph_of("wide")
    assert layer_of(graph, AMPERE, 64).workload == layer_of(graph, AMPERE, 1).workload


def a_gpu(version: str, free: int) -> SimpleNamespace:
    return SimpleNamespace(
        compute_version=version, device_name="a GPU", available_global_memory=free, l2_cache_size_bytes=50 << 20
    )


def test_a_gpu_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_gpu, "open_gpu", lambda needs, otherwise: a_gpu("8.6", 40 << 30))
    with GpuDevice(AMPERE, 30) as device:
        assert device.cpu == "a GPU"
        assert device.chunk(97 << 10, 3 << 9) == 512
    with pytest.raises(WrongDeviceError, match=r"cuda-sm90 has no code for the GPU here \(a GPU, sm_86\)"):
        GpuDevice(find("cuda-sm90"), 30)
    monkeypatch.setattr(tune_gpu, "open_gpu", lambda needs, otherwise: a_gpu("8.6", 1 << 20))
    with GpuDevice(AMPERE, 30) as device, pytest.raises(WrongDeviceError, match="1 MiB are free"):
        device.chunk(97 << 10, 3 << 9)


@pytest.mark.skipif(bool(tvm.cuda(0).exist), reason="this machine has a GPU")
def test_a_worker_without_a_gpu_fails_the_candidate_and_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongDeviceError, match="cuda-sm80 is tuned on a GPU, but"):
        GpuDevice(AMPERE, 30)
    monkeypatch.setattr(tune_gpu, "open_gpu", lambda needs, otherwise: a_gpu("8.0", 40 << 30))
    program = Program(b"", np.zeros(64, np.uint8), 1)
    with GpuDevice(AMPERE, 60) as device:
        for _ in range(2):  # another process answers the second question
            with pytest.raises(CandidateError, match="WrongDeviceError: cuda-sm80 is tuned on a GPU, but"):
                device.measure([program], 1)
        with pytest.raises(CandidateError, match="WrongDeviceError: cuda-sm80 is tuned on a GPU, but"):
            device.run(program, program.memory)
