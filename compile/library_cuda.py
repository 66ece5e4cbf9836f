"""From a Relax module of GPU kernels to the bytes of a shared library, on a machine that need not have a GPU.

TVM writes CUDA C++ for the kernels, nvcc compiles it for every architecture of the target, and the result takes the
source's place in the library, where TVM's CUDA runtime finds it.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tvm
from tvm import relax, tirx
from tvm.runtime import _ffi_api
from tvm.tirx import compilation_pipeline

from intcert.compile.cuda_toolkit import find_program
from intcert.compile.library import relax_pipeline
from intcert.compile.linker import Linker
from intcert.runtime.errors import MissingDependencyError, ModelError
from intcert.targets import CudaTarget

PIPELINE = "intcert-cuda"
NVCC_HINT = (
    "pip install 'intcert[nvcc]', or install the CUDA toolkit (13 or newer), or give its compiler: "
    "CUDACXX=/path/to/nvcc"
)
_PACKAGE = "nvidia-cuda-nvcc"


def device_target(target: CudaTarget) -> tvm.target.Target:
    """What TVM's CUDA code generator is told about a target: its weakest architecture."""
    return tvm.target.Target(
        {
            "kind": "cuda",
            "arch": target.architectures[0],
            "max_threads_per_block": target.max_threads,
            "max_shared_memory_per_block": target.shared_memory,
            "thread_warp_size": 32,
        }
    )


def compile_cuda(module: tvm.IRModule, target: CudaTarget) -> relax.VMExecutable:
    """C of the host functions and CUDA C++ of the kernels of a lowered module; no compiler has run yet."""
    # As C and not as LLVM's code, launches are calls of TVM's functions by name, which the audit can follow.
    host = tvm.target.Target({"kind": "c"})
    with _without_cuda_runtime():
        return relax.build(
            module, device_target(target).with_host(host), relax_pipeline=relax_pipeline(), tir_pipeline=PIPELINE
        )


def cuda_source(executable: relax.VMExecutable) -> str:
    """The kernels as CUDA C++."""
    return _cuda_module(executable).inspect_source("cuda")


def link_cuda(executable: relax.VMExecutable, target: CudaTarget, linker: Linker) -> bytes:
    """The executable as a shared library, with machine code of its kernels for every architecture of the target.

    Raises MissingDependencyError where there is no nvcc, ModelError where it fails.
    """
    source = cuda_source(executable)
    fatbin = compile_fatbin(source, target)

    def pack(module: tvm.runtime.Module, is_system_lib: bool, prefix: str, folder: str) -> str:
        blob = _embed(_packed_imports(_ffi_api.ModulePackImportsToC(module, is_system_lib, prefix)), source, fatbin)
        data, assembly = Path(folder, "imports.bin"), Path(folder, "imports.S")
        data.write_bytes(blob)
        assembly.write_text(
            f'.section .rodata\n.globl {_SYMBOL}\n.balign 64\n{_SYMBOL}: .incbin "{data}"\n'
            f'.type {_SYMBOL}, @object\n.size {_SYMBOL}, .-{_SYMBOL}\n.section .note.GNU-stack,"",@progbits\n'
        )
        return str(assembly)

    with tempfile.TemporaryDirectory(prefix="intcert-") as folder:
        path = Path(folder) / "lib.so"
        executable.mod.export_library(str(path), fcompile=linker, fpack_imports=pack)
        return path.read_bytes()


def compile_fatbin(source: str, target: CudaTarget) -> bytes:
    """Machine code of CUDA C++ for every architecture of a target."""
    with tempfile.TemporaryDirectory(prefix="intcert-") as folder:
        written, result = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        written.write_text(source)
        numbers = [name.removeprefix("sm_") for name in target.architectures]
        codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
        command = [nvcc(), "-fatbin", "-O3", "-std=c++17", *codes, "-o", str(result), str(written)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
            raise ModelError(f"nvcc fails for {target.name} ({(lines or ['no message'])[0][:200]}); {NVCC_HINT}")
        return result.read_bytes()


def nvcc() -> str:
    """Path of the CUDA compiler: what ``CUDACXX`` names, or as ``find_program`` has it.

    Raises MissingDependencyError.
    """
    given = os.environ.get("CUDACXX")
    found = shutil.which(given) if given else find_program("nvcc", _PACKAGE)
    if found is None:
        raise MissingDependencyError(f"compiling for a GPU needs {given or 'nvcc'}, which is not here; {NVCC_HINT}")
    return found


_SYMBOL = "__tvm_ffi__library_bin"


def _packed_imports(text: str) -> bytes:
    """The bytes of the array in the C source that TVM writes for a module's imports."""
    _, _, rest = text.partition(f"{_SYMBOL}[")
    body = rest.partition("{")[2].partition("}")[0]
    return bytes(int(number, 16) for number in body.replace("\n", "").split(",") if number.strip())


def _embed(blob: bytes, source: str, fatbin: bytes) -> bytes:
    """The packed imports with the CUDA module's source replaced by machine code.

    Strings are a length (uint64) and bytes. The blob is its own length and all modules; a CUDA module among them is its
    kind, and a string of (format, table of functions, code): cuda_fallback_module.cc of TVM.
    """

    def string(content: bytes) -> bytes:
        return struct.pack("<Q", len(content)) + content

    code = string(source.encode())
    end = blob.index(code) + len(code)
    kind = string(b"cuda")
    # kind, length of the rest, format: the format is the kind's name once more.
    begin = blob.rindex(kind, 0, blob.rindex(kind, 0, end - len(code)))
    body = begin + len(kind) + 8
    table = blob[body + len(kind) : end - len(code)]
    if struct.unpack("<Q", blob[body - 8 : body])[0] != end - body:
        raise ModelError(f"TVM {tvm.__version__} packs CUDA modules otherwise than 0.27 does; install that one")
    replaced = string(string(b"fatbin") + table + string(fatbin))
    modules = blob[8:begin] + kind + replaced + blob[end:]
    return struct.pack("<Q", len(modules)) + modules


def _cuda_module(executable: relax.VMExecutable) -> tvm.runtime.Module:
    pending = [executable.mod]
    while pending:
        module = pending.pop()
        if module.kind == "cuda":
            return module
        pending.extend(module.imports)
    raise ValueError("the executable has no GPU kernels")


@contextmanager
def _without_cuda_runtime() -> Iterator[None]:
    """Keep TVM from compiling for this machine's own GPU while it writes CUDA C++."""
    name = "TVM_COMPILE_FORCE_FALLBACK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _tir_pipeline() -> tuple[tvm.transform.Pass, object, object]:
    """TIR to host and device functions: our kernels place their own barriers, so the default passes are too many."""
    t = tirx.transform
    passes = [
        t.FlattenBuffer(),
        t.VectorizeLoop(True),
        t.StmtSimplify(),
        t.CommonSubexprElim(),
        t.VerifyMemory(),
        t.AnnotateEntryFunc(),
        t.SplitHostDevice(),
        t.MakePackedAPI(),
    ]
    finalize = compilation_pipeline
    return tvm.transform.Sequential(passes), finalize.finalize_host_passes, finalize.finalize_device_passes


compilation_pipeline.register_tir_pipeline(PIPELINE, _tir_pipeline)
