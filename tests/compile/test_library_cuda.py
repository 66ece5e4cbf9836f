"""Libraries for GPUs, built where there is none: what nvcc makes of every kernel, and how it is packed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from random_models import convolution_graph, random_integer_graph

from intcert.compile import library_cuda
from intcert.compile.audit import audit_library
from intcert.compile.audit.device import find_cuobjdump
from intcert.compile.audit.result import Audit
from intcert.compile.build import compile_artifact, load_model
from intcert.compile.cuda_toolkit import find_program
from intcert.compile.graph import IntegerGraph
from intcert.compile.library_cuda import compile_cuda, cuda_source, device_target
from intcert.compile.lower_cuda import lower_cuda
from intcert.compile.nodes import Conv2d, Linear
from intcert.compile.plan import make_plan
from intcert.runtime.artifact import read_artifact
from intcert.runtime.errors import MissingDependencyError, ModelError
from intcert.runtime.noise import noise_law
from intcert.targets import GPU_TARGETS, find

DEMO = Path(__file__).parents[2] / "cli" / "demo" / "resnet20.pt2"
ALL = ",".join(target.name for target in GPU_TARGETS)


def _missing() -> str | None:
    try:
        library_cuda.nvcc()
        find_cuobjdump()
    except MissingDependencyError as error:
        return str(error)
    return None


needs_cuda_tools = pytest.mark.skipif(_missing() is not None, reason=_missing() or "")


def audited(graph: IntegerGraph, target: str, folder: Path) -> tuple[Path, Audit]:
    """An artifact, whose machine code is proven integer-only, and what the audit found."""
    path = folder / "model.intcert"
    compile_artifact(graph, path, target=target, sigma="0.25", integer_only=True)
    return path, audit_library(read_artifact(path).library)


def require_matrix_units(graph: IntegerGraph, target: str, audit: Audit) -> None:
    """Every ungrouped convolution and linear layer is a kernel in which Tensor Cores work, on every architecture."""
    plan = make_plan(graph, noise_law("0.25"), find(target))
    for step, node in zip(plan.steps, graph.nodes, strict=True):
        if isinstance(node, Conv2d | Linear):
            assert (".mma." in step.kernel.name) is (getattr(node, "groups", 1) == 1), step.name
    devices = [code for code in audit.codes if code.architecture.startswith("sm_")]
    assert [code.architecture for code in devices] == list(find(target).architectures)
    for code in devices:
        for function in code.functions:
            assert ("IMMA" in function.mnemonics) is ("_mma_" in function.name), (code.architecture, function.name)
            assert not {"LDL", "STL"} & function.mnemonics.keys(), f"{function.name} spills registers"


@needs_cuda_tools
@pytest.mark.parametrize("target", ["cuda-sm75", "cuda-sm80,cuda-sm86,cuda-sm89,cuda-sm90"])
def test_every_target_compiles_to_integer_code(target: str, tmp_path: Path) -> None:
    graph = convolution_graph(7, "q31", (7, 7, 16), 32, (3, 3), residual=1)
    _, audit = audited(graph, target, tmp_path)
    require_matrix_units(graph, target, audit)


@needs_cuda_tools
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 5, 8])
def test_all_node_kinds_compile_to_integer_code(seed: int, tmp_path: Path) -> None:
    graph = random_integer_graph(seed, ("q15", "q31")[seed % 2])
    _, audit = audited(graph, ALL, tmp_path)
    require_matrix_units(graph, ALL, audit)


@needs_cuda_tools
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["q15", "q31"])
def test_demo_compiles_to_integer_code(scheme: str, tmp_path: Path) -> None:
    graph = load_model(DEMO, scheme).graph
    _, audit = audited(graph, ALL, tmp_path)
    require_matrix_units(graph, ALL, audit)


# What the driver does without a GPU: every call fails.
STUB = """
int cuGetErrorName(int e, const char **s) { *s = "none"; return 0; }
int cuGetErrorString(int e, const char **s) { *s = "none"; return 0; }
int cuDeviceGetName(void) { return 100; }
int cuFuncSetAttribute(void) { return 100; }
int cuLaunchKernelEx(void) { return 100; }
int cuModuleGetFunction(void) { return 100; }
int cuModuleLoadData(void) { return 100; }
int cuModuleUnload(void) { return 100; }
int cuTensorMapEncodeTiled(void) { return 100; }
"""
READ = """
import sys
import tvm
module = tvm.runtime.load_module(sys.argv[1])
assert module.implements_function("vm_load_executable")
print([part.kind for library in module.imports for part in library.imports])
"""


@needs_cuda_tools
def test_tvm_reads_the_packed_machine_code(tmp_path: Path) -> None:
    """TVM's own CUDA runtime, on a driver that knows no GPU, finds the kernels as a CUDA module of the library."""
    path, _ = audited(convolution_graph(7, "q15", (5, 5, 3), 16, (3, 3)), "cuda-sm80", tmp_path)
    library, driver = tmp_path / "lib.so", tmp_path / "libcuda.so.1"
    library.write_bytes(read_artifact(path).library)
    (tmp_path / "stub.c").write_text(STUB)
    command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{driver.name}", "-o", str(driver), tmp_path / "stub.c"]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(library)],
        capture_output=True,
        text=True,
        env={"LD_LIBRARY_PATH": str(tmp_path)},
    )
    if "libcudart" in done.stderr or "loader of that name is not registered" in done.stderr:
        pytest.skip("the CUDA runtime library is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['cuda']\n"


@needs_cuda_tools
def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = convolution_graph(7, "q15", (5, 5, 3), 16, (3, 3))
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        contents.append(audited(graph, "cuda-sm80", tmp_path / name)[0].read_bytes())
    assert contents[0] == contents[1]


def test_kernels_have_no_float_and_no_division_by_what_is_unknown() -> None:
    graph, target = random_integer_graph(11, "q15"), find("cuda-sm90")
    module = lower_cuda(graph, make_plan(graph, noise_law("0.25"), target), device_target(target))
    assert "float" not in module.script()
    assert "__launch_bounds__(128)" in cuda_source(compile_cuda(module, target))


def test_without_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDACXX", str(tmp_path / "nvcc"))
    path = tmp_path / "model.intcert"
    with pytest.raises(MissingDependencyError, match="CUDACXX") as caught:
        compile_artifact(random_integer_graph(3, "q15"), path, target="cuda-sm80", sigma="0.25")
    assert "\n" not in str(caught.value)
    assert not path.exists()


def test_the_toolkit_is_found_in_its_folder_and_in_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    assert find_program("RECORD", "no-such-package-is-installed") is None
    assert Path(find_program("RECORD", "apache-tvm-ffi")).is_file()
    program = tmp_path / "bin" / "RECORD"
    program.touch(0o755)
    assert find_program("RECORD", "apache-tvm-ffi") == str(program)


def test_an_nvcc_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\necho 'nvcc fatal: error: unsupported gpu architecture' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(compiler))
    path = tmp_path / "model.intcert"
    with pytest.raises(ModelError, match="unsupported gpu architecture") as caught:
        compile_artifact(random_integer_graph(3, "q15"), path, target="cuda-sm80", sigma="0.25")
    assert "\n" not in str(caught.value)
    assert not path.exists()
