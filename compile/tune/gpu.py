"""This machine's GPU, which times candidates and runs them for a check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from intcert.compile.tune.device import CandidateError, Worker, load, rounds_of
from intcert.compile.tune.program import Program
from intcert.runtime.errors import WrongDeviceError
from intcert.runtime.gpu import fitting_chunk, has_code_for, memory_of, open_gpu
from intcert.targets import CudaTarget

if TYPE_CHECKING:
    import tvm


class GpuDevice:
    """The GPU, through a worker. See ``Device``; a context manager."""

    def __init__(self, target: CudaTarget, timeout: float) -> None:
        """timeout: seconds that a measurement may take.

        Raises:
            WrongDeviceError: there is no GPU, its driver is too old, or the target has no code for it.
            MissingDependencyError: the CUDA runtime library is missing.
        """
        place = _place(target.name)
        version, self.cpu = str(place.compute_version), str(place.device_name)
        if not has_code_for(target.architectures, version):
            raise WrongDeviceError(
                f"{target.name} has no code for the GPU here ({self.cpu}, sm_{version.replace('.', '')}); give the "
                "target of its compute capability, see intcert targets"
            )
        self._target, self._memory = target.name, memory_of(place)
        self._worker = Worker(timeout)

    def chunk(self, arena_bytes: int, dimension: int) -> int:
        """Images at once, as a session chooses them for a network's activations and coordinates.

        Raises WrongDeviceError where too few fit.
        """
        return fitting_chunk("the network", arena_bytes, dimension, *self._memory)

    def measure(self, programs: Sequence[Program], rounds: int) -> np.ndarray:
        return self._ask(_measure, self._target, list(programs), rounds)

    def run(self, program: Program, memory: np.ndarray) -> np.ndarray:
        return self._ask(_run, self._target, program, memory)

    def close(self) -> None:
        """End the worker, and with it what it holds of the GPU."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> np.ndarray:
        try:
            return self._worker.call(function, *arguments)
        except CandidateError:
            # After an error of CUDA's a process cannot use the GPU any more.
            self._worker.close()
            raise


def _place(target: str) -> tvm.Device:
    return open_gpu(f"{target} is tuned on a GPU", "tune for a processor, like --target host, or where the GPU is")


class _Layer:
    """A program in the memory of the GPU."""

    def __init__(self, target: str, program: Program, memory: np.ndarray) -> None:
        place = _place(target)
        import tvm
        from tvm.runtime.vm import VirtualMachine

        self._place = place
        self._machine = VirtualMachine(load(program.library), place, memory_cfg="naive")
        self._arena = tvm.runtime.tensor(memory.reshape(program.images, -1), place)

    def run(self) -> np.ndarray:
        """The memory after one run."""
        return self._machine["layers"](0, 1, self._arena).numpy().reshape(-1)

    def seconds(self, repeats: int) -> float:
        """Seconds of so many runs, by the GPU's clock."""
        evaluate = self._machine.time_evaluator("layers", self._place, number=repeats, repeat=1)
        return float(evaluate(0, 1, self._arena).mean) * repeats


def _run(target: str, program: Program, memory: np.ndarray) -> np.ndarray:
    return _Layer(target, program, memory).run()


def _measure(target: str, programs: list[Program], rounds: int) -> np.ndarray:
    layers = [_Layer(target, program, program.memory) for program in programs]
    return rounds_of([layer.seconds for layer in layers], rounds)
