"""The session that runs a compiled artifact on an NVIDIA GPU of this machine."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from intcert.runtime.artifact import Artifact
from intcert.runtime.errors import DeviceLostError, MissingDependencyError, WrongDeviceError
from intcert.runtime.keys import signed_key
from intcert.runtime.session import ROW, check_range, load_library, require_array, require_layers

if TYPE_CHECKING:
    import tvm

#: Kernels count elements of a tensor in 32 bits.
_INDEX_LIMIT = 2**31 - 1
_FREE_SHARE = 0.8  # of the free memory that a session may take
#: Bytes of activations that a chunk aims at where the device does not tell the size of its cache.
_CACHE = 32 << 20
_LEAST_CHUNK = 4 * ROW

_DRIVER = "libcuda.so.1"
_RUNTIME = "libcudart.so.13"
_OLD_DRIVER, _NO_DEVICE = 35, 100  # cudaErrorInsufficientDriver, cudaErrorNoDevice


class GpuSession:
    """A compiled artifact on this machine's GPU. See ``intcert.runtime.session.Session``.

    A context manager. Attributes as in ``Session``, and artifact, threads (1) and chunk, the samples that go through
    the network at a time. All memory on the device is taken on opening, but for one array of results that grows with
    the greatest call. Calls from several threads are safe and take turns.
    """

    threads = 1

    def __init__(self, artifact: Artifact, chunk: int | None = None) -> None:
        """Load the artifact's library, which runs its code.

        chunk: a multiple of 64; by default what fills the device's second-level cache, and fits its free memory.

        Raises:
            WrongDeviceError: there is no GPU, its driver is too old, the library has no code for it, or it has too
                little free memory.
            MissingDependencyError: the CUDA runtime library is missing.
            ArtifactError: the library was built for another TVM, or does not load.
            ValueError: chunk is not a positive multiple of 64, or too great.
        """
        if chunk is not None and (chunk < 1 or chunk % ROW):
            raise ValueError(f"chunk = {chunk} is not a positive multiple of {ROW}")
        manifest = artifact.manifest
        if chunk is not None and chunk * manifest.arena_bytes > _INDEX_LIMIT:
            raise ValueError(f"chunk = {chunk} needs more than {_INDEX_LIMIT} bytes; kernels count in 32 bits")
        needs = f"{artifact.path} is for {manifest.target}"
        place = open_gpu(needs, "compile the model with --target host to run it here")
        import tvm
        from tvm.runtime.vm import VirtualMachine

        require_architecture(artifact, str(place.compute_version), str(place.device_name))
        self.artifact = artifact
        self.input_shape, self.classes = manifest.input_shape, manifest.classes
        self.sigma, self.graph_hash, self.noise_hash = manifest.sigma, manifest.graph_hash, manifest.noise_hash
        self.target, self.device = manifest.target, str(place.device_name)
        self._place, self._machine = place, VirtualMachine(load_library(artifact), place, memory_cfg="naive")
        self._lock = threading.Lock()
        self._empty = lambda shape, dtype: tvm.runtime.empty(shape, dtype, place)
        free, cache = memory_of(place)
        self.chunk = chunk or choose_chunk(artifact, free, cache)
        try:
            self._image = self._empty(self.input_shape, "uint8")
            self._samples = self._empty((self.chunk, *self.input_shape), "int16")
            self._arena = self._empty((self.chunk, manifest.arena_bytes), "uint8")
            self._out = self._empty((1, self.classes), "int32")
        except Exception as error:
            if "out of memory" not in str(error):
                raise
            message = too_little_memory(str(artifact.path), manifest.arena_bytes, free, self.chunk)
            raise WrongDeviceError(message) from None

    def counts(self, x: np.ndarray, key: int, first: int, n: int) -> np.ndarray:
        """See ``Session.counts``.

        Raises:
            ValueError: x is not uint8[H, W, C], n < 1, first < 0, or key is outside 0 .. 2^64 - 1.
            DeviceLostError: the GPU failed.
        """
        require_array(x, np.uint8, self.input_shape)
        check_range(key, first, n)
        with self._lock, _lost():
            out = self._result(-(-n // ROW))
            self._image.copyfrom(np.ascontiguousarray(x))
            return self._machine["counts"](self._image, signed_key(key), first, n, out, self._arena).numpy()

    def logits(self, x: np.ndarray) -> np.ndarray:
        """See ``Session.logits``.

        Raises:
            ValueError: x is not int16[n, H, W, C] with n > 0.
            DeviceLostError: the GPU failed.
        """
        require_array(x, np.int16, (len(x) if np.ndim(x) else 0, *self.input_shape))
        if len(x) == 0:
            raise ValueError("a batch of 0 images has no logits")
        values = np.empty((len(x), self.classes), np.int32)
        with self._lock, _lost():
            for begin in range(0, len(x), self.chunk):
                part = np.ascontiguousarray(x[begin : begin + self.chunk])
                samples = self._samples if len(part) == self.chunk else self._empty(part.shape, "int16")
                samples.copyfrom(part)
                out = self._result(len(part))
                values[begin : begin + len(part)] = self._machine["logits"](samples, out, self._arena).numpy()
        return values

    def layers(self, arena: np.ndarray, begin: int, end: int) -> np.ndarray:
        """Run the kernels ``begin`` .. ``end - 1`` of ``manifest.layers`` on one sample, for debugging.

        arena: uint8[manifest.arena_bytes], the sample's working memory. Returns the arena after them.

        Raises:
            ValueError: arena has another size or type, or there are no such kernels.
            DeviceLostError: the GPU failed.
        """
        size = self.artifact.manifest.arena_bytes
        require_array(arena, np.uint8, (size,))
        require_layers(self.artifact.manifest, begin, end)
        with self._lock, _lost():
            single = self._empty((1, size), "uint8")
            single.copyfrom(np.ascontiguousarray(arena[None]))
            return self._machine["layers"](begin, end, single).numpy()[0]

    def layer_seconds(self, begin: int, end: int, rounds: int) -> list[float]:
        """Seconds that the kernels ``begin`` .. ``end - 1`` take for a sample, as a part of a chunk; ``rounds`` times.

        Raises:
            ValueError: there are no such kernels.
            DeviceLostError: the GPU failed.
        """
        require_layers(self.artifact.manifest, begin, end)
        with self._lock, _lost():
            evaluate = self._machine.time_evaluator("layers", self._place, number=1, repeat=rounds, min_repeat_ms=1)
            return [seconds / self.chunk for seconds in evaluate(begin, end, self._arena).results]

    def close(self) -> None:
        """Give the memory on the device back; a second call does nothing."""
        with self._lock:
            self._image = self._samples = self._arena = self._out = self._machine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _result(self, rows: int) -> Any:
        """An array for so many rows of results; the last one is kept, since calls mostly repeat their size."""
        if self._machine is None:
            raise ValueError("the session is closed")
        if self._out.shape[0] != rows:
            self._out = self._empty((rows, self.classes), "int32")
        return self._out


class _lost:  # noqa: N801 - used like a function
    """Turns CUDA's errors into a DeviceLostError: after one of them a process cannot use the GPU any more."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            reason = (str(error).strip().splitlines() or ["no message"])[-1]
            raise DeviceLostError(f"the GPU failed ({reason[:200]}); run again with --resume") from error


def choose_chunk(artifact: Artifact, free: int, cache: int) -> int:
    """Samples at a time: a multiple of 64 whose activations fill the cache, at least 256, within the free memory.

    free, cache: bytes. Raises WrongDeviceError where not even 64 samples fit.
    """
    manifest = artifact.manifest
    return fitting_chunk(str(artifact.path), manifest.arena_bytes, math.prod(manifest.input_shape), free, cache)


def fitting_chunk(name: str, arena_bytes: int, dimension: int, free: int, cache: int) -> int:
    """``choose_chunk`` of a network with so many bytes of activations and coordinates. name: for the error."""
    each = arena_bytes + 2 * dimension
    most = min(int(_FREE_SHARE * free) // each, _INDEX_LIMIT // each) // ROW * ROW
    if most == 0:
        raise WrongDeviceError(too_little_memory(name, arena_bytes, free, ROW))
    return min(max(-(-cache // each // ROW) * ROW, _LEAST_CHUNK), most)


def memory_of(place: tvm.Device) -> tuple[int, int]:
    """Bytes of a device's memory that are free, and of its second-level cache."""
    return place.available_global_memory or 0, place.l2_cache_size_bytes or _CACHE


def too_little_memory(name: str, arena_bytes: int, free: int, chunk: int) -> str:
    """What a user is told whose GPU cannot hold a chunk."""
    return (
        f"{name} needs {chunk * arena_bytes >> 20:,} MiB on the GPU for {chunk} samples, and {free >> 20:,} MiB are "
        "free; end other programs that use it"
    )


def require_architecture(artifact: Artifact, version: str, name: str) -> None:
    """Check that the library has machine code for a GPU. version: its compute capability, like "8.6".

    Raises WrongDeviceError.
    """
    architectures = artifact.manifest.target_facts["architectures"]
    if not has_code_for(architectures, version):
        raise WrongDeviceError(
            f"{artifact.path} has code for {', '.join(architectures)}, but the GPU here ({name}) is "
            f"sm_{version.replace('.', '')}; compile the model with a target for it, or with several: "
            f"--target {artifact.manifest.target},..."
        )


def has_code_for(architectures: Sequence[str], version: str) -> bool:
    """Whether machine code of one of these architectures (like "sm_86") runs on a compute capability (like "8.6").

    Code for one capability runs on the higher ones of the same major number (CUDA C++ Programming Guide, "Binary
    Compatibility").
    """
    major, minor = (int(part) for part in version.split("."))
    numbers = [int(architecture.removeprefix("sm_")) for architecture in architectures]
    return any(number // 10 == major and number % 10 <= minor for number in numbers)


def open_gpu(needs: str, otherwise: str) -> tvm.Device:
    """This machine's first GPU, with TVM's CUDA runtime loaded; or in one line why there is none.

    needs: what needs the GPU, and otherwise: what to do without, both for that line. Raises WrongDeviceError or
    MissingDependencyError.
    """
    if _library(_DRIVER) is None:
        raise WrongDeviceError(f"{needs}, but this machine has no NVIDIA driver ({_DRIVER}); {otherwise}")
    runtime = _library(_RUNTIME, *_packaged(_RUNTIME))
    if runtime is None:
        raise MissingDependencyError(f"{needs} and needs {_RUNTIME}: pip install 'intcert[cuda]'")
    count = ctypes.c_int(0)
    status = runtime.cudaGetDeviceCount(ctypes.byref(count))
    if status == _OLD_DRIVER:
        raise WrongDeviceError(f"{needs}, but the NVIDIA driver is older than CUDA 13 (580); update the driver")
    if status == _NO_DEVICE or (status == 0 and count.value == 0):
        raise WrongDeviceError(f"{needs}, but this machine has no NVIDIA GPU that CUDA can see; {otherwise}")
    if status != 0:
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
        reason = runtime.cudaGetErrorString(status).decode()
        raise WrongDeviceError(f"{needs}, but CUDA does not start here ({reason}); {otherwise}")
    import tvm
    import tvm_ffi

    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is None:
        # TVM loads it by itself where the loader finds the CUDA runtime.
        library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
        if _library(str(library)) is None:
            raise MissingDependencyError(f"{needs}, but TVM's CUDA runtime {library} does not load; install TVM again")
    return tvm.cuda(0)


def _library(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    return None


def _packaged(name: str) -> list[str]:
    """Where NVIDIA's Python packages may have put a library."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in found.submodule_search_locations or ()] if found else []
    return [str(file) for folder in folders for file in sorted(folder.glob(f"*/lib/{name}"))]
