"""The emulated GPU finds what a real one would let pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from simt import Machine, Pointer, SimtError
from tvm import tirx

from intcert.compile.kernels.base import Expr, store, when
from intcert.compile.kernels.cuda import mma
from intcert.compile.kernels.cuda.base import barrier, device_function, registers, shared
from intcert.targets import find

THREADS = 32


def launch(body: Callable[..., None], values: np.ndarray) -> np.ndarray:
    """What a kernel of one warp leaves in its array of uint32, which begins as ``values``."""

    def write(block: Expr, thread: Expr, buffers: list[tirx.Buffer], scalars: list[Expr]) -> None:
        body(thread, buffers[0])

    function = device_function([("values", "uint32", 1 << 20)], lambda n: n, THREADS, write)
    memory = values.astype(np.uint32)
    machine = Machine(tvm.IRModule({"kernel": function}))
    machine.launch("kernel", [Pointer(memory.view(np.uint8), 0), np.ones((1, 1), np.int32)])
    return memory


def exchange(synchronized: bool) -> Callable[..., None]:
    def body(thread: Expr, values: tirx.Buffer) -> None:
        passed = shared(THREADS, "uint32")
        store(passed, thread, values[thread])
        if synchronized:
            barrier()
        store(values, thread, passed[THREADS - 1 - thread])

    return body


def test_threads_exchange_values_through_shared_memory() -> None:
    np.testing.assert_array_equal(launch(exchange(True), np.arange(THREADS)), np.arange(THREADS)[::-1])
    with pytest.raises(SimtError, match="just written"):
        launch(exchange(False), np.arange(THREADS))


def test_reads_before_a_write() -> None:
    def body(thread: Expr, values: tirx.Buffer) -> None:
        passed = shared(THREADS, "uint32")
        store(values, thread, passed[thread ^ 1])
        store(passed, thread, values[thread])

    with pytest.raises(SimtError, match="before the next barrier"):
        launch(body, np.arange(THREADS))


def test_two_threads_write_one_place() -> None:
    with pytest.raises(SimtError, match="two threads write"):
        launch(lambda thread, values: store(shared(4, "uint32"), thread // 16, values[thread]), np.arange(THREADS))


def test_an_access_outside_of_an_array() -> None:
    with pytest.raises(SimtError, match="outside of 32 elements"):
        launch(lambda thread, values: store(values, thread + 1, values[thread]), np.arange(THREADS))


def test_a_vector_that_is_not_aligned() -> None:
    def body(thread: Expr, values: tirx.Buffer) -> None:
        store(registers(4, "uint32"), 0, values[tirx.Ramp(thread + 1, 1, 4)], 4)

    with pytest.raises(SimtError, match="not aligned"):
        launch(body, np.arange(2 * THREADS))


def test_a_barrier_that_not_all_reach() -> None:
    def body(thread: Expr, values: tirx.Buffer) -> None:
        with when(thread < 7):
            barrier()

    with pytest.raises(SimtError, match="not all threads reach"):
        launch(body, np.arange(THREADS))


def copied(pending: int) -> Callable[..., None]:
    def body(thread: Expr, values: tirx.Buffer) -> None:
        passed = shared(4 * THREADS, "uint32")
        mma.copy(True, passed, thread * 4, values, thread * 4, 16)
        mma.commit(True)
        mma.wait(True, pending)
        barrier()
        store(values, thread, passed[4 * (THREADS - 1 - thread)])

    return body


def test_an_asynchronous_copy_arrives_when_it_is_waited_for() -> None:
    values = np.arange(4 * THREADS)
    np.testing.assert_array_equal(launch(copied(0), values)[:THREADS], 4 * np.arange(THREADS)[::-1])
    assert (launch(copied(1), values)[:THREADS] == 0xA5A5A5A5).all()


@pytest.mark.parametrize("target", ["cuda-sm75", "cuda-sm80"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_matrix_product(target: str, dtype: str) -> None:
    """ldmatrix and mma together are a product of matrices, whatever the layout of their fragments."""
    rng = np.random.default_rng(3)
    info = np.iinfo(dtype)
    left = rng.integers(info.min, info.max, (16, 32), endpoint=True).astype(dtype)
    right = rng.integers(-128, 127, (32, 8), endpoint=True).astype(np.int8)

    def body(thread: Expr, values: tirx.Buffer) -> None:
        rows = shared(16 * 8, "uint32")
        a, b, c = registers(4, "uint32"), registers(2, "uint32"), registers(4, "uint32")
        for i in range(4):
            store(rows, thread * 4 + i, values[thread * 4 + i])
            store(c, i, thread.astype("uint32"))
        for i in range(2):  # the columns of the right matrix follow the left one
            store(b, i, values[128 + thread // 4 * 8 + 4 * i + thread % 4])
        barrier()
        mma.load_matrices(a, 0, rows, thread % 16 * 8 + thread // 16 * 4)
        mma.multiply(find(target).mma, dtype, c, 0, a, 0, b, 0)
        for i in range(4):
            store(values, (thread // 4 + 8 * (i // 2)) * 8 + 2 * (thread % 4) + i % 2, c[i])

    words = np.concatenate(
        [left.view(np.uint32).reshape(-1), np.ascontiguousarray(right.T).view(np.uint32).reshape(-1)]
    )
    seen = launch(body, words)[:128].reshape(16, 8).view(np.int32)
    lanes = np.arange(16)[:, None] % 8 * 4 + np.arange(8) // 2
    np.testing.assert_array_equal(seen, left.astype(np.int32) @ right.astype(np.int32) + lanes)
