"""Tile units: every way a convolution can be cut, against the reference, and systems that refuse the unit."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tvm
from random_models import convolution_graph, random_input, random_integer_graph
from tvm.runtime.vm import VirtualMachine

from intcert import targets
from intcert.compile.build import compile_artifact
from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels.geometry import ConvGeometry
from intcert.compile.kernels.tile_plan import choose_tiling
from intcert.compile.kernels.tiles import configuration, pack_tiles
from intcert.compile.layout import Layout, round_up
from intcert.compile.library import compile_module
from intcert.compile.lower import lower
from intcert.compile.plan import make_plan
from intcert.compile.reference import run
from intcert.runtime.errors import WrongDeviceError
from intcert.runtime.noise import noise_law
from intcert.runtime.session import open_artifact
from intcert.targets import Target

HERE = Path(__file__).parent
AMX = targets.find("x86-amx")
needs_amx = pytest.mark.skipif(AMX not in targets.runnable(), reason="no AMX on this machine")
SHAPES = [  # input shape, output channels, kernel, options, images at once
    pytest.param((5, 32, 16), 16, (3, 3), {"residual": 1}, 3, id="folded columns"),
    pytest.param((3, 34, 3), 16, (3, 3), {}, 1, id="stem, a clipped tile"),
    pytest.param((9, 18, 3), 64, (7, 7), {"stride": (2, 2)}, 2, id="7x7 stem"),
    pytest.param((7, 16, 32), 32, (3, 3), {"residual": 2}, 2, id="two channel tiles"),
    pytest.param((16, 16, 16), 32, (3, 3), {"stride": (2, 2)}, 8, id="stride 2"),
    pytest.param((8, 8, 64), 64, (3, 3), {"residual": 1}, 4, id="two images in a run"),
    pytest.param((8, 8, 64), 64, (3, 3), {}, 3, id="an odd batch"),
    pytest.param((4, 3, 20), 24, (3, 3), {}, 16, id="many images in a run, one of them partly filled"),
    pytest.param((7, 7, 40), 48, (3, 3), {"residual": 1}, 1, id="three channel tiles, seven rows of a tile"),
    pytest.param((7, 7, 256), 80, (3, 3), {}, 1, id="a whole image in a run"),
    pytest.param((5, 9, 256), 80, (3, 3), {"residual": 1}, 1, id="a whole image in a run, with a term"),
    pytest.param((14, 14, 100), 80, (1, 1), {"residual": 1}, 1, id="pointwise, a long clipped run"),
    pytest.param((15, 15, 48), 40, (1, 1), {"stride": (2, 2)}, 2, id="pointwise, stride 2"),
    pytest.param((6, 21, 5), 33, (3, 5), {"dilation": (2, 2)}, 2, id="dilated"),
    pytest.param((4, 4, 129), 17, (4, 4), {"dilation": (1, 1)}, 2, id="a reduction too long to unroll"),
    pytest.param((1, 1, 200), 130, (1, 1), {}, 5, id="vectors"),
]


def logits(graph: IntegerGraph, target: Target, batch: int, x: np.ndarray) -> np.ndarray:
    plan = make_plan(graph, noise_law("0.25"), target, batch)
    machine = VirtualMachine(compile_module(lower(graph, plan), target).jit(), tvm.cpu())
    out = tvm.runtime.tensor(np.full((len(x), graph.classes), 12345, np.int32))
    return machine["logits"](tvm.runtime.tensor(x), out).numpy()


@needs_amx
@pytest.mark.parametrize(("dtype", "scheme"), [("uint8", "q15"), ("int8", "q15"), ("int8", "q31")])
@pytest.mark.parametrize(("shape", "outputs", "kernel", "options", "batch"), SHAPES)
def test_convolutions(shape, outputs, kernel, options, batch, dtype, scheme) -> None:
    graph = convolution_graph(7, scheme, shape, outputs, kernel, dtype=dtype, **options)
    x = random_input(graph, 2 * batch - 1, 3)
    found, expected = logits(graph, AMX, batch, x), run(graph, x)
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 14, 16, 17, 28, 31, 32, 33, 56, 112])
def test_tilings_are_legal_and_cover_the_result(width: int) -> None:
    unit = AMX.tile
    for height, batch, channels, outputs, size, stride in product(
        (1, 7, 32), (1, 8, 32), (3, 16, 64), (10, 64), (1, 3), (1, 2)
    ):
        source = Layout(height * stride, width * stride, channels, "uint8")
        result = Layout(height, width, outputs, "uint8")
        geometry = ConvGeometry(batch, source, result, (size, size), (stride, stride), (size // 2,) * 2, (1, 1), 0)
        tiled = choose_tiling(unit, geometry, may_fold=True)
        plan, folded = tiled.plan, tiled.geometry
        assert folded.result.width * plan.fold == width
        assert folded.result.stride == plan.fold * result.stride
        assert batch % plan.images == 0
        assert plan.images == 1 or tiled.positions <= unit.rows
        tiles = tiled.activation_tiles
        assert min(tiles, plan.sums) >= 1
        assert plan.sums + tiles + min(plan.outputs, 1) <= unit.registers
        covered = {
            min(tile * tiled.tile_rows, tiled.positions - tiled.tile_rows) + row
            for tile in range(tiled.blocks[2] * plan.columns)
            for row in range(tiled.tile_rows)
        }
        assert covered == set(range(tiled.positions))
        stored = [tiled.stretches(column) for column in range(plan.columns)]
        if plan.whole:
            places = [(y, x) for stretches in stored for stretch in stretches for y, x, _ in stretch]
            assert sorted(places) == list(product(range(height), range(width)))
        if tiled.staging:
            assert tiled.row % 64 == 0
            assert tiled.staging.columns >= folded.columns


def test_tile_configuration_is_as_the_manual_has_it() -> None:
    """Intel SDM, LDTILECFG: palette, start row, 14 reserved bytes, bytes a row of 16 tiles, 16 reserved, rows."""
    config = configuration(AMX.tile, sums=4, activations=2, rows=7)
    assert config[0] == 1
    assert not config[1:16].any()
    assert config[16:32].view("<u2").tolist() == [64] * 8
    assert not config[32:48].any()
    assert config[48:].tolist() == [7] * 6 + [16] * 2 + [0] * 8


def test_packed_tiles_hold_every_weight_once() -> None:
    outputs, inner = 32, round_up(70, AMX.tile.depth)
    weight = (np.arange(outputs * 2 * inner).reshape(outputs, 2, inner) % 251 - 125).astype(np.int8)
    packed = pack_tiles(AMX.tile, weight)
    assert packed.shape == (2, 2, inner // 64, 16, 16, 4)
    for o, middle, k in product(range(outputs), range(2), range(inner)):
        tile = packed[o // 16, middle, k // 64]
        assert tile[k % 64 // 4, o % 16, k % 4] == weight[o, middle, k]


@needs_amx
def test_a_refused_permission_is_one_clear_line() -> None:
    """The system call is made, and its answer is looked at: the kernel knows no feature 63."""
    tile = dataclasses.replace(AMX.tile, permission=(*AMX.tile.permission[:2], 63))
    graph = random_integer_graph(3, "q15")
    with pytest.raises(RuntimeError, match=r"refuses AMX tiles to the process.*--target x86-vnni"):
        logits(graph, dataclasses.replace(AMX, tile=tile), 2, random_input(graph, 1, 1))


@needs_amx
def test_a_refused_permission_is_a_wrong_device(tmp_path: Path) -> None:
    """The same through a session, as a user meets it."""
    tile = dataclasses.replace(AMX.tile, permission=(*AMX.tile.permission[:2], 63))
    graph = random_integer_graph(3, "q15")
    compile_artifact(graph, tmp_path / "a", target=dataclasses.replace(AMX, tile=tile), sigma="0.25")
    image = np.zeros(graph.input_shape, np.uint8)
    message = r"^counts: this system refuses AMX tiles.*--target x86-vnni$"
    with open_artifact(tmp_path / "a", threads=1) as session, pytest.raises(WrongDeviceError, match=message):
        session.counts(image, 1, 0, 10)


@needs_amx
def test_a_sandbox_that_refuses_the_permission() -> None:
    """A process whose seccomp filter answers arch_prctl with EPERM."""
    program = """
        import ctypes, struct, sys
        import test_amx as t

        graph = t.random_integer_graph(3, "q15")
        plan = t.make_plan(graph, t.noise_law("0.25"), t.AMX, 2)
        machine = t.VirtualMachine(t.compile_module(t.lower(graph, plan), t.AMX).jit(), t.tvm.cpu())
        load, equal, answer = 0x20, 0x15, 0x06  # BPF: load the call's number; compare; return
        eperm, allow = 0x00050001, 0x7FFF0000
        code = [(load, 0, 0, 0), (equal, 0, 1, 158), (answer, 0, 0, eperm), (answer, 0, 0, allow)]
        filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
        header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters)))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, header, 0, 0) == 0  # no new privileges; seccomp
        x = t.random_input(graph, 1, 1)
        out = t.tvm.runtime.tensor(t.np.zeros((1, graph.classes), "int32"))
        try:
            machine["logits"](t.tvm.runtime.tensor(x), out)
        except RuntimeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=HERE)
    assert "refuses AMX tiles to the process" in done.stdout, done.stderr
