"""What tuning rests on: candidates of every kernel family, the process that runs them, their times, the cost model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from random_models import convolution_graph
from test_tune import layer_of

pytest.importorskip("xgboost")

from intcert import targets
from intcert.compile.tune.cost_model import CostModel, Space
from intcert.compile.tune.device import CandidateError, LocalDevice, Worker
from intcert.compile.tune.features import NAMES, features
from intcert.compile.tune.program import check_cases, expected_result, layer_program, result_of, with_operands

X86 = targets.find("x86")
FAMILIES = [  # kernel, target, input shape, outputs, kernel size, options
    pytest.param("conv2d.amx-int8", "x86-amx", (8, 8, 16), 32, (3, 3), {"residual": 1}, id="amx"),
    pytest.param("conv2d.vpdpbusd", "x86-vnni", (5, 7, 20), 40, (3, 3), {"residual": 1}, id="dot, vnni"),
    pytest.param("conv2d.vpmaddwd", "x86", (5, 7, 20), 40, (1, 1), {}, id="dot, avx2"),
    pytest.param("depthwise.vpdpbusd", "x86-vnni", (4, 9, 24), 24, (3, 3), {"groups": 24}, id="depthwise dot"),
    pytest.param("depthwise.vpmaddwd", "x86", (4, 9, 24), 24, (3, 3), {"groups": 24}, id="depthwise, pairs of rows"),
    pytest.param(
        "depthwise.mul", "x86-vnni", (4, 9, 24), 24, (3, 3), {"groups": 24, "dilation": (1, 2)}, id="depthwise"
    ),
]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(60) as process:
        yield process


@pytest.mark.parametrize(("kernel", "target", "shape", "outputs", "size", "options"), FAMILIES)
def test_candidates_equal_the_reference(kernel, target, shape, outputs, size, options, worker: Worker) -> None:
    """The default and four others of each family, through the tuner's own build, run and check."""
    if targets.find(target) not in targets.runnable():
        pytest.skip(f"this machine does not run {target}")
    layer = layer_of(convolution_graph(3, "q15", shape, outputs, size, **options), targets.find(target))
    assert layer.kernel().name == kernel
    schedules = layer.schedules()
    assert layer.kernel().schedule == schedules[0]
    assert len(set(schedules)) == len(schedules) > 4
    vectors = [features(layer, schedule) for schedule in schedules]
    assert len({vector.tobytes() for vector in vectors}) == len(schedules)
    assert all(vector.shape == (len(NAMES),) for vector in vectors)
    device = LocalDevice(worker)
    others = np.random.default_rng(4).permutation(np.arange(1, len(schedules)))[:4]
    for number in (0, *others):
        program = worker.call(layer_program, layer, schedules[number])
        for operands in check_cases(layer, 5):
            found = result_of(program, layer, device.run(program, with_operands(program, layer, operands)))
            np.testing.assert_array_equal(found, expected_result(layer, operands), err_msg=str(schedules[number]))


def test_times_are_of_every_program_in_every_round(worker: Worker) -> None:
    small, large = (
        layer_of(convolution_graph(3, "q15", shape, 16, (3, 3)), X86) for shape in ((2, 2, 16), (16, 16, 16))
    )
    programs = [worker.call(layer_program, layer, None) for layer in (small, large)]
    times = LocalDevice(worker).measure(programs, 5)
    assert times.shape == (2, 5)
    assert (times > 0).all()
    assert np.median(times[1]) > 3 * np.median(times[0])


def test_a_worker_survives_what_it_runs() -> None:
    with Worker(20) as process:
        with pytest.raises(CandidateError, match="ZeroDivisionError: integer division"):
            process.call(divmod, 1, 0)
        with pytest.raises(CandidateError, match=r"the process died \(SIGABRT\)"):
            process.call(os.abort)
        began = time.monotonic()
        with pytest.raises(CandidateError, match=r"no answer in 0\.5 s"):
            process.call(time.sleep, 600, timeout=0.5)
        assert time.monotonic() - began < 30
        assert process.call(divmod, 7, 2) == (3, 1)


def test_the_model_finds_the_best_of_a_space() -> None:
    """After some measurements of one layer, the model ranks the candidates of another like it."""
    model = CostModel()
    layers = [layer_of(convolution_graph(3, "q15", (8, 16, 16), outputs, (3, 3)), X86) for outputs in (48, 64)]
    spaces = [Space(layer) for layer in layers]

    def ratio(space: Space, number: int) -> float:
        tile = space.schedules[number]
        return 1 + abs(tile.columns * tile.blocks - 8) / 8

    assert not model.warm
    first = range(0, len(spaces[0].schedules), 2)
    model.learn(spaces[0], list(first), [ratio(spaces[0], number) for number in first])
    model.learn(spaces[0], [1], [None])
    assert model.warm
    scores = model.scores(spaces[1])
    assert len(scores) == len(spaces[1].schedules)
    best = np.argsort(-scores)[:5]
    assert np.mean([ratio(spaces[1], int(number)) for number in best]) < 1.3
