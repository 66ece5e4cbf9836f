"""The audit of CUDA machine code, compiled here; no GPU is needed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from machine_code import embedding, packed

from intcert.compile.audit import TENSOR_CORE, audit_code, audit_images, audit_library, functions_with
from intcert.compile.audit.device import find_cuobjdump
from intcert.runtime.errors import ArtifactError, MissingDependencyError

INTEGERS = r"""
extern "C" __global__ void scale(const int *a, int *b) { int i = threadIdx.x; b[i] = a[i] * 3 + (b[i] >> 2); }
extern "C" __global__ void constant(float *b) { b[threadIdx.x] = 3.25f; b[threadIdx.x + 32] = 0.1f; }
#include <mma.h>
using namespace nvcuda;
extern "C" __global__ void product(const signed char *a, const signed char *b, int *c) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, signed char, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, signed char, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 16, int> z;
    wmma::fill_fragment(z, 0);
    wmma::load_matrix_sync(x, a, 16);
    wmma::load_matrix_sync(y, b, 16);
    wmma::mma_sync(z, x, y, z);
    wmma::store_matrix_sync(c, z, 16, wmma::mem_row_major);
}
"""


# A kernel body, and how a hit in it begins; of several, one.
CONTROLS = {
    "b[i] = a[i] * 3 + b[i];": "FFMA",
    "b[i] = a[i] + b[i];": "FADD",
    "b[i] = sqrtf(a[i]);": "MUFU",
    "c[i] = (int)a[i];": "F2I",
    "b[i] = c[i];": "I2F",
    "c[i] = a[i] > b[i];": "FSETP",
    "b[i] = fmaxf(a[i], b[i]);": "FMNMX",
    "((double *)b)[i] *= ((double *)b)[i + 32];": "DMUL",
    "((half2 *)b)[i] = __hfma2(((half2 *)b)[i], ((half2 *)a)[i], ((half2 *)a)[i + 32]);": "HFMA2",
    "((half2 *)b)[i] = __hadd2(((half2 *)b)[i], ((half2 *)a)[i]);": (
        "HADD2",
        "HFMA2",
    ),  # a sum is a product with 1, at times
    "c[i] = c[i] / c[i + 32];": "I2F",  # the assembler divides integers in floats
}


def kernels(bodies: Iterable[str]) -> str:
    """CUDA source with a kernel k0, k1, ... for each body."""
    form = 'extern "C" __global__ void k{}(float *b, const float *a, int *c) {{ int i = threadIdx.x; {} }}'
    return "\n".join(["#include <cuda_fp16.h>", *(form.format(*pair) for pair in enumerate(bodies))])


def nvcc(source: str, folder: Path, *options: str) -> bytes:
    """Device code. Skips where nvcc or cuobjdump is missing."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    try:
        find_cuobjdump()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    (folder / "k.cu").write_text(source)
    command = ["nvcc", "-O3", *options, "-o", str(folder / "k.out"), str(folder / "k.cu")]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "k.out").read_bytes()


@pytest.mark.parametrize(
    "architecture", ["sm_75", "sm_90", *(pytest.param(f"sm_{n}", marks=pytest.mark.slow) for n in (80, 86, 89))]
)
def test_integers_are_clean_and_tensor_cores_are_found(architecture: str, tmp_path: Path) -> None:
    cubin = nvcc(INTEGERS, tmp_path, "-cubin", f"-arch={architecture}")
    (code,) = audit_images(cubin)
    assert code.architecture == architecture
    assert code.findings == ()
    assert {f.name for f in code.functions} == {"scale", "constant", "product"}
    assert functions_with(code.functions, *TENSOR_CORE) == {"product"}
    assert audit_code(cubin, "k.cubin").clean


@pytest.mark.parametrize("architecture", ["sm_80", pytest.param("sm_90", marks=pytest.mark.slow)])
def test_controls(architecture: str, tmp_path: Path) -> None:
    (code,) = audit_images(nvcc(kernels(CONTROLS), tmp_path, "-cubin", f"-arch={architecture}"))
    for number, (body, mnemonic) in enumerate(CONTROLS.items()):
        hits = [finding.instruction for finding in code.findings if finding.function == f"k{number}"]
        assert any(hit.startswith(mnemonic) for hit in hits), (body, hits)


def test_fat_binaries(tmp_path: Path) -> None:
    """Each image is read; PTX beside them is not, and is a finding."""
    images = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    audit = audit_code(nvcc(INTEGERS, tmp_path, "-fatbin", *images), "k.fatbin")
    assert [code.architecture for code in audit.codes] == ["sm_80", "sm_90"]
    assert audit.clean
    mixed = nvcc(INTEGERS, tmp_path, "-fatbin", *images, "-gencode=arch=compute_90,code=compute_90")
    (finding,) = audit_code(mixed, "k.fatbin").findings
    assert finding.instruction == "PTX"
    ptx = nvcc(INTEGERS, tmp_path, "-fatbin", "-gencode=arch=compute_90,code=compute_90")
    with pytest.raises(ArtifactError, match=r"k\.fatbin: .*(no function|PTX|cannot)"):
        audit_code(ptx, "k.fatbin")


def test_images_inside_a_library(tmp_path: Path) -> None:
    """As TVM embeds them, between other bytes; its host code may launch kernels then."""
    options = ("-fatbin", "-gencode=arch=compute_80,code=sm_80")
    good, bad = (nvcc(source, tmp_path, *options) for source in (INTEGERS, kernels(["b[i] *= a[i];"])))
    audit = audit_library(embedding(packed(("cuda", b"fatbin....names" + good + b"..tail")), tmp_path))
    assert [code.architecture for code in audit.codes] == ["x86-64", "sm_80"]
    assert audit.clean
    audit = audit_library(embedding(packed(("cuda", good + bad)), tmp_path))
    assert [code.architecture for code in audit.codes] == ["x86-64", "sm_80", "sm_80"]
    assert {finding.function for finding in audit.findings} == {"k0"}


def test_no_cuobjdump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr("intcert.compile.audit.device._PACKAGE", "no-such-package-is-installed")
    with pytest.raises(MissingDependencyError, match=r"pip install 'intcert\[sass\]'"):
        find_cuobjdump()
