"""The GPU session on the emulated GPU: its memory is the processor's, and the virtual machine calls the emulator."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from random_models import random_input, random_integer_graph
from simt import Machine, SimtError

from intcert.compile.library_cuda import device_target
from intcert.compile.lower_cuda import lower_cuda
from intcert.compile.plan import make_plan
from intcert.compile.reference import ReferenceSession
from intcert.runtime import gpu
from intcert.runtime.errors import DeviceLostError
from intcert.runtime.gpu import GpuSession
from intcert.runtime.noise import noise_law
from intcert.targets import find

KEY = 0xFEDCBA9876543210
GRAPH = random_integer_graph(3, "q15")
LAW = noise_law("0.25")


class EmulatedVM:
    """Stands for the VM of a library: entry points by name, with the constants inside."""

    def __init__(self, *_: object, **__: object) -> None:
        self.plan = make_plan(GRAPH, LAW, find("cuda-sm80"))
        self.machine = Machine(lower_cuda(GRAPH, self.plan, device_target(find("cuda-sm80"))))

    def __getitem__(self, name: str) -> Callable[..., tvm.runtime.Tensor]:
        def call(*arguments: tvm.runtime.Tensor | int) -> tvm.runtime.Tensor:
            arrays = [a if isinstance(a, int) else a.numpy().copy() for a in arguments]
            written = {"counts": 2, "logits": 2, "layers": 1}[name]
            try:
                self.machine.run(f"{name}_host", *arrays[:-written], self.plan.blob.copy(), *arrays[-written:])
            except SimtError as error:
                raise RuntimeError(str(error)) from error
            for tensor, array in zip(arguments[-written:], arrays[-written:], strict=True):
                tensor.copyfrom(array)
            return arguments[-written]

        return call


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> GpuSession:
    plan = make_plan(GRAPH, LAW, find("cuda-sm80"))
    manifest = SimpleNamespace(
        input_shape=GRAPH.input_shape,
        classes=GRAPH.classes,
        sigma=LAW.sigma,
        graph_hash=GRAPH.digest,
        noise_hash=LAW.digest,
        target="cuda-sm80",
        arena_bytes=plan.arena_bytes,
        layers=[{}] * len(plan.steps),
    )
    for name in ("require_architecture", "load_library"):
        monkeypatch.setattr(gpu, name, lambda *_: None)
    monkeypatch.setattr(gpu, "open_gpu", lambda *_: tvm.cpu(0))
    monkeypatch.setattr(tvm.runtime.vm, "VirtualMachine", EmulatedVM)
    return GpuSession(SimpleNamespace(manifest=manifest, path="model.intcert"), chunk=64)


def test_counts_and_logits(session: GpuSession) -> None:
    reference = ReferenceSession(GRAPH, LAW)
    image = np.random.default_rng(5).integers(0, 256, GRAPH.input_shape).astype(np.uint8)
    with session:
        for first, n in ((0, 130), (7, 1), (9, 130)):
            np.testing.assert_array_equal(session.counts(image, KEY, first, n), reference.counts(image, KEY, first, n))
        for n in (1, 64, 70):
            x = random_input(GRAPH, n, n)
            np.testing.assert_array_equal(session.logits(x), reference.logits(x))


def test_layers(session: GpuSession) -> None:
    plan = make_plan(GRAPH, LAW, find("cuda-sm80"))
    x = random_input(GRAPH, 1, 3)
    arena = np.zeros(plan.arena_bytes, np.uint8)
    arena[plan.input_offset :][: x.nbytes] = x.reshape(-1).view(np.uint8)
    after = session.layers(arena, 0, len(plan.steps))
    step = plan.steps[-1]
    logits = after[step.result :][: step.layout.bytes].view(step.layout.dtype)[: GRAPH.classes]
    np.testing.assert_array_equal(logits, ReferenceSession(GRAPH, LAW).logits(x)[0])
    with pytest.raises(ValueError, match="not among the"):
        session.layers(arena, 0, len(plan.steps) + 1)


def test_wrong_calls(session: GpuSession) -> None:
    image = np.zeros(GRAPH.input_shape, np.uint8)
    for arguments, message in (
        ((image[1:], KEY, 0, 10), "expected an array"),
        ((image, KEY, 0, 0), "cannot draw n = 0"),
        ((image, 2**64, 0, 1), "key"),
    ):
        with pytest.raises(ValueError, match=message):
            session.counts(*arguments)
    with pytest.raises(ValueError, match="0 images"):
        session.logits(np.zeros((0, *GRAPH.input_shape), np.int16))


def test_a_gpu_that_fails_is_lost(session: GpuSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Traceback\nCUDA: an illegal memory access was encountered")

    monkeypatch.setattr(EmulatedVM, "__getitem__", lambda vm, name: fail)
    with pytest.raises(DeviceLostError, match="illegal memory access") as caught:
        session.counts(np.zeros(GRAPH.input_shape, np.uint8), KEY, 0, 1)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_closed_sessions_do_not_count(session: GpuSession) -> None:
    session.close()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.counts(np.zeros(GRAPH.input_shape, np.uint8), KEY, 0, 1)
