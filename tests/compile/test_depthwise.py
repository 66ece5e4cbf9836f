"""Depthwise convolution: every width of kernel and of result, on every target that this machine runs."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from random_models import convolution_graph, random_input
from tvm.runtime.vm import VirtualMachine

from intcert import targets
from intcert.compile.library import compile_module
from intcert.compile.lower import lower
from intcert.compile.plan import make_plan
from intcert.compile.reference import run
from intcert.runtime.noise import noise_law
from intcert.targets import Target

RUNNABLE = targets.runnable()
SHAPES = [  # input shape, kernel, options
    pytest.param((5, 19, 40), (3, 3), {"residual": 1}, id="3x3, a clipped tile"),
    pytest.param((9, 32, 16), (3, 3), {"stride": (2, 2)}, id="3x3, stride 2"),
    pytest.param((6, 7, 33), (5, 5), {}, id="5x5, a narrow row"),
    pytest.param((8, 17, 16), (7, 7), {"stride": (1, 3)}, id="7x7, stride 3"),
    pytest.param((9, 1, 40), (3, 1), {}, id="one column"),
    pytest.param((4, 9, 18), (1, 2), {}, id="1x2"),
    pytest.param((3, 4, 40), (9, 7), {"residual": 2}, id="no window inside the image"),
    pytest.param((5, 9, 40), (3, 3), {"pad_value": 100}, id="3x3, padded by 100"),
    pytest.param((2, 9, 40), (5, 3), {"pad_value": 100}, id="5x3, padded by 100"),
    pytest.param((4, 9, 40), (4, 2), {"stride": (3, 1)}, id="4x2, whole pairs of rows"),
    pytest.param((7, 12, 17), (3, 3), {"dilation": (2, 1)}, id="dilated rows"),
    pytest.param((7, 12, 17), (3, 3), {"dilation": (1, 2)}, id="dilated columns"),
]


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize(("dtype", "scheme"), [("uint8", "q15"), ("int8", "q15"), ("int8", "q31")])
@pytest.mark.parametrize(("shape", "kernel", "options"), SHAPES)
def test_depthwise(
    target: Target, shape: tuple[int, int, int], kernel: tuple[int, int], options: dict, dtype: str, scheme: str
) -> None:
    channels = shape[2]
    graph = convolution_graph(5, scheme, shape, channels, kernel, groups=channels, dtype=dtype, **options)
    plan = make_plan(graph, noise_law("0.25"), target, 2)
    assert any(step.kernel.name.startswith("depthwise") for step in plan.steps)
    machine = VirtualMachine(compile_module(lower(graph, plan), target).jit(), tvm.cpu())
    x = random_input(graph, 3, 1)
    out = tvm.runtime.tensor(np.full((len(x), graph.classes), 12345, np.int32))
    expected = run(graph, x)
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(machine["logits"](tvm.runtime.tensor(x), out).numpy(), expected)
