"""Sessions: anything that can count a network's decisions under noise, and the one that runs a compiled artifact."""

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from intcert.runtime.artifact import LIBRARY, Artifact, Manifest, read_artifact
from intcert.runtime.errors import ArtifactError, WrongDeviceError
from intcert.runtime.keys import KEY_LIMIT, signed_key

if TYPE_CHECKING:
    from intcert.runtime.gpu import GpuSession

ROW = 64  # samples a row of ``counts``: the stopping rules look at rows, so it is the same on every device

_CPU_INFO = Path("/proc/cpuinfo")
_SAMPLE_LIMIT = 1 << 63  # sample numbers reach the library as int64

_loaded: dict[str, Any] = {}  # modules by their library's hash, never unloaded: TVM keeps references into them
_loading = threading.Lock()


class Session(Protocol):
    """An integer network under its noise, on some device.

    input_shape: (H, W, C) of the uint8 image; classes: number of logits; sigma: noise level on the [0, 1] scale, an
    exact decimal; graph_hash, noise_hash: SHA-256 in hex of what is computed; target, device: where it is computed,
    for the record only.
    """

    input_shape: tuple[int, int, int]
    classes: int
    sigma: str
    graph_hash: str
    noise_hash: str
    target: str
    device: str

    def counts(self, x: np.ndarray, key: int, first: int, n: int) -> np.ndarray:
        """Argmax counts of the samples ``first`` .. ``first + n - 1`` of an image, int32[ceil(n / 64), classes].

        x: uint8[H, W, C]; key: the image's 64-bit noise key, unsigned. Row r counts the samples first + 64 r ..
        first + 64 r + 63; the last row may hold fewer. The result depends on nothing else.
        """
        ...

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits of noisy images. x: int16[n, H, W, C], pixel + noise. Returns int32[n, classes]."""
        ...


class LocalSession:
    """A compiled artifact on this machine's CPU, counting on several threads.

    A context manager. Attributes as in ``Session``, and artifact and threads. Calls from several threads are safe and
    take turns.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        """Load the artifact's library, which runs its code.

        threads: how many; None takes every core that this process may use.

        Raises:
            WrongDeviceError: this CPU lacks instructions that the artifact needs (found before any of it is loaded).
            ArtifactError: the library was built for another TVM, or does not load.
            ValueError: threads is not positive.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads = {threads} is not positive")
        manifest = artifact.manifest
        require_cpu_flags(artifact)
        self.artifact = artifact
        self.threads = threads or len(os.sched_getaffinity(0))
        self.input_shape, self.classes = manifest.input_shape, manifest.classes
        self.sigma, self.graph_hash, self.noise_hash = manifest.sigma, manifest.graph_hash, manifest.noise_hash
        self.target, self.device = manifest.target, cpu_name()
        module = load_library(artifact)
        # A virtual machine keeps its registers between calls, so two threads in one would corrupt them.
        self._machines = [_Machine(module) for _ in range(self.threads)]
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="intcert")

    def counts(self, x: np.ndarray, key: int, first: int, n: int) -> np.ndarray:
        """See ``Session.counts``. The same for any number of threads.

        Raises:
            ValueError: x is not uint8[H, W, C], n < 1, first < 0, or key is outside 0 .. 2^64 - 1.
        """
        require_array(x, np.uint8, self.input_shape)
        check_range(key, first, n)
        rows = np.empty((-(-n // ROW), self.classes), np.int32)

        def count(machine: "_Machine", begin: int, end: int) -> None:
            samples = min(end * ROW, n) - begin * ROW
            out = np.zeros((end - begin, self.classes), np.int32)
            rows[begin:end] = machine.call("counts", x, signed_key(key), first + begin * ROW, samples, out)

        self._share(len(rows), count)
        return rows

    def logits(self, x: np.ndarray) -> np.ndarray:
        """See ``Session.logits``.

        Raises:
            ValueError: x is not int16[n, H, W, C] with n > 0.
        """
        require_array(x, np.int16, (len(x) if np.ndim(x) else 0, *self.input_shape))
        if len(x) == 0:
            raise ValueError("a batch of 0 images has no logits")
        values = np.empty((len(x), self.classes), np.int32)

        def evaluate(machine: "_Machine", begin: int, end: int) -> None:
            out = np.zeros((end - begin, self.classes), np.int32)
            values[begin:end] = machine.call("logits", x[begin:end], out)

        self._share(len(x), evaluate)
        return values

    def layers(self, arena: np.ndarray, begin: int, end: int) -> np.ndarray:
        """Run the kernels ``begin`` .. ``end - 1`` of ``manifest.layers`` on one chunk, for benchmarks and debugging.

        arena: uint8[manifest.arena_bytes], the chunk's working memory. Returns the arena after them.

        Raises:
            ValueError: arena has another size or type, or there are no such kernels.
        """
        manifest = self.artifact.manifest
        require_array(arena, np.uint8, (manifest.arena_bytes,))
        require_layers(self.artifact.manifest, begin, end)
        result = np.empty_like(arena)

        def run(machine: "_Machine", *_: int) -> None:
            result[:] = machine.call("layers", begin, end, arena)

        self._share(1, run)
        return result

    def layer_seconds(self, begin: int, end: int, rounds: int) -> list[float]:
        """Seconds that the kernels ``begin`` .. ``end - 1`` take for one chunk on one thread, ``rounds`` times.

        Each is the mean of as many runs as fill a millisecond. No kernels at all give the cost of a call.

        Raises:
            ValueError: there are no such kernels.
        """
        manifest = self.artifact.manifest
        require_layers(self.artifact.manifest, begin, end)
        seconds: list[float] = []

        def run(machine: "_Machine", *_: int) -> None:
            seconds.extend(machine.seconds("layers", rounds, begin, end, np.zeros(manifest.arena_bytes, np.uint8)))

        self._share(1, run)
        return seconds

    def close(self) -> None:
        """Stop the threads and free the virtual machines; a second call does nothing."""
        self._pool.shutdown()
        self._machines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _share(self, items: int, work: Callable[["_Machine", int, int], None]) -> None:
        """Give every machine an equal range of the items; the calling thread waits for all of them."""
        if not self._machines:
            raise ValueError("the session is closed")
        parts = min(len(self._machines), items)
        bounds = [items * part // parts for part in range(parts + 1)]
        ranges = list(zip(self._machines, bounds[:-1], bounds[1:], strict=False))
        if parts == 1:
            work(*ranges[0])
            return
        for future in [self._pool.submit(work, *arguments) for arguments in ranges]:
            future.result()


class _Machine:
    """A TVM virtual machine that one thread at a time may enter."""

    def __init__(self, module: Any) -> None:
        import tvm
        from tvm.runtime.vm import VirtualMachine

        self._tensor, self._device = tvm.runtime.tensor, tvm.cpu()
        self._machine = VirtualMachine(module, self._device)
        # Ctrl-C may end the wait for a call while the call goes on, so callers alone cannot keep others out.
        self._lock = threading.Lock()

    def call(self, function: str, *arguments: Any) -> np.ndarray:
        """Call an entry point. Arrays are copied into aligned memory, which a view of a larger array is not."""
        return self._enter(lambda converted: self._machine[function](*converted).numpy(), arguments)

    def seconds(self, function: str, rounds: int, *arguments: Any) -> list[float]:
        """Seconds of a call without what Python adds, measured ``rounds`` times over at least a millisecond each."""
        evaluate = self._machine.time_evaluator(function, self._device, number=1, repeat=rounds, min_repeat_ms=1)
        return self._enter(lambda converted: list(evaluate(*converted).results), arguments)

    def _enter(self, work: Callable[[list[Any]], Any], arguments: Sequence[Any]) -> Any:
        converted = [self._tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        with self._lock:
            try:
                return work(converted)
            except RuntimeError as error:
                # The arguments were checked before: what the library still refuses is the machine. TVM's own defects
                # are subclasses.
                if type(error) is RuntimeError:
                    raise WrongDeviceError(str(error).strip()) from None
                raise


def open_artifact(path: str | Path, threads: int | None = None, device: str = "auto") -> "LocalSession | GpuSession":
    """Read an artifact, check its hashes and load it on this machine.

    This runs the artifact's code. The hashes protect against damage, not against malice. device: "cpu" or "cuda" to
    insist on one, else the artifact decides.

    Raises:
        ArtifactError, WrongDeviceError: see ``read_artifact``, ``LocalSession`` and ``GpuSession``; or the artifact was
            compiled for another kind of device.
        MissingDependencyError: the CUDA runtime library is missing.
    """
    artifact = read_artifact(path)
    kind = "cuda" if artifact.manifest.is_gpu else "cpu"
    if device not in ("auto", kind):
        wanted = "cuda-sm80" if device == "cuda" else "host"
        raise WrongDeviceError(
            f"{path} is for {artifact.manifest.target}, not for {device}; compile the model with --target {wanted}"
        )
    if kind == "cpu":
        return LocalSession(artifact, threads)
    from intcert.runtime.gpu import GpuSession

    return GpuSession(artifact)


def require_cpu_flags(artifact: Artifact) -> None:
    """Check that this machine has the instructions that the artifact's library uses.

    Raises:
        WrongDeviceError: some are not in /proc/cpuinfo.
    """
    missing = sorted(set(artifact.manifest.cpu_flags) - cpu_flags())
    if missing:
        raise WrongDeviceError(
            f"{artifact.path} is for {artifact.manifest.target} and needs {', '.join(missing)}, which this machine "
            "lacks; compile the model with --target host"
        )


def cpu_flags() -> frozenset[str]:
    """Instruction set extensions of this machine, named as in /proc/cpuinfo (``flags`` on x86, ``Features`` on ARM)."""
    fields = _cpu_info()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def cpu_name() -> str:
    """This machine's processor, for the record."""
    return _cpu_info().get("model name") or os.uname().machine


def _cpu_info() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo; none where there is no such file."""
    try:
        text = _CPU_INFO.read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def check_range(key: int, first: int, n: int) -> None:
    """Raise ValueError unless ``counts`` takes this key and these samples."""
    if n < 1 or first < 0 or first + n > _SAMPLE_LIMIT:
        raise ValueError(f"cannot draw n = {n} samples from number {first}")
    if not 0 <= key < KEY_LIMIT:
        raise ValueError(f"key {key} is outside 0 .. 2^64 - 1")


def require_layers(manifest: Manifest, begin: int, end: int) -> None:
    """Raise ValueError unless the network has kernels ``begin`` .. ``end - 1``."""
    known = len(manifest.layers)
    if not 0 <= begin <= end <= known:
        raise ValueError(f"kernels {begin} .. {end - 1} are not among the {known} of this network")


def require_array(x: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless x is an array of this dtype and shape."""
    if not isinstance(x, np.ndarray) or x.dtype != dtype or x.shape != shape:
        found = f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(f"expected an array {np.dtype(dtype).name}{list(shape)}, not {found}")


def load_library(artifact: Artifact) -> Any:
    """The artifact's library as a TVM module, loaded once a process however many sessions open it."""
    import tvm

    needed = artifact.manifest.tvm_version
    if tvm.__version__ != needed:
        raise ArtifactError(
            f"{artifact.path} was built with TVM {needed} but this machine has {tvm.__version__}; "
            "compile the model again"
        )
    try:
        module = load_module(artifact.library, artifact.manifest.members[LIBRARY])
        if not module.implements_function("vm_load_executable"):
            raise RuntimeError("there is no TVM virtual machine code in it")
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(
            f"{artifact.path} has a library that does not load ({reason}); compile the model again"
        ) from error
    return module


def load_module(library: bytes, digest: str) -> Any:
    """A shared library as a TVM module, loaded once a process. digest: SHA-256 in hex of its bytes.

    Raises RuntimeError or OSError.
    """
    import tvm

    with _loading:
        if digest not in _loaded:
            # dlopen knows a library by its path and never reads one path twice, so each content needs one of its own.
            with tempfile.TemporaryDirectory(prefix="intcert-") as folder:
                file = Path(folder, f"{digest}.so")
                file.write_bytes(library)
                # The mapping outlives the name: a process that is killed leaves no file behind.
                _loaded[digest] = tvm.runtime.load_module(str(file))
        return _loaded[digest]
