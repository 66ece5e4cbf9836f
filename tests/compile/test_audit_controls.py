"""Libraries that are not integer-only, each in one way, on each machine: the audit has to catch them all."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_code import MACHINES, audit_c, shared_library

from intcert.compile.audit import audit_library
from intcert.compile.audit.elf import read_binary
from intcert.runtime.errors import ArtifactError

INTEGERS = """
    int dot(const signed char *a, const signed char *b, int n) { int s = 0; for (int i = 0; i < n; i++) s += a[i] * b[i]; return s; }
    long long wide(long long a, long long b) { return (a * b + 5) >> 3; }
    unsigned word(unsigned a) { return (a ^ 0x12345678) * 2654435761u; }
"""  # noqa: E501

FLOATS = "float f(float a, float b) { return a * b + 1; }"


def asm(text: str) -> str:
    return f'int f(void) {{ __asm__ volatile("{text}"); return 1; }}'


# machine, C source, how the first hit begins, what is wrong with it
UNLISTED, INSIDE = "not on the list of integer", "into the middle of an instruction"
CONTROLS = {
    "x86-sse": ("x86-64", FLOATS, "mulss", UNLISTED),
    "x86-one-conversion": ("x86-64", asm("cvtdq2ps %xmm0, %xmm0"), "cvtdq2ps", UNLISTED),
    "x86-one-conversion-back": ("x86-64", asm("cvttsd2si %xmm0, %eax"), "cvttsd2si", UNLISTED),
    "x86-minimum": ("x86-64", asm("minps %xmm0, %xmm0"), "minps", UNLISTED),
    "x86-avx512-half": ("x86-64", asm("vaddph %zmm0, %zmm0, %zmm0"), "vaddph", UNLISTED),
    "x86-amx-bf16": ("x86-64", asm("tdpbf16ps %tmm0, %tmm1, %tmm2"), "tdpbf16ps", UNLISTED),
    "x86-bf16-dot": ("x86-64", asm("vdpbf16ps %zmm0, %zmm0, %zmm0"), "vdpbf16ps", UNLISTED),
    "x86-x87": ("x86-64", asm("fld1; fstp %st(0)"), "fld1", UNLISTED),
    "x86-unknown-bytes": ("x86-64", asm(".byte 0x06"), "bytes that are no instruction", "not decoded"),
    "x86-jump-into-the-middle": ("x86-64", asm("jmp 1f+1; 1: movl $0xc0580f, %eax"), "jmp", INSIDE),
    "x86-call-into-the-middle": ("x86-64", asm("call 1f+1; 1: movl $0xc0580f, %eax"), "call", INSIDE),
    "x86-indirect-jump": ("x86-64", asm("jmp *%rdi"), "jmp", "cannot follow"),
    "x86-indirect-call": ("x86-64", asm("call *8(%rdi)"), "call", "cannot follow"),
    "x86-runs-out-of-the-code": ("x86-64", asm("jmp 0x7000"), "jmp", "outside the code"),
    "a64-multiply-add": ("aarch64", FLOATS, "fm", UNLISTED),
    "a64-one-conversion": ("aarch64", asm("scvtf s0, w0"), "scvtf", UNLISTED),
    "a64-one-conversion-back": ("aarch64", asm("fcvtzs w0, s0"), "fcvtzs", UNLISTED),
    "a64-bf16-matrix": ("aarch64", asm(".arch armv8.6-a+bf16; bfmmla v0.4s, v1.8h, v2.8h"), "bfmmla", UNLISTED),
    "a64-estimate": ("aarch64", asm("frecpe v0.4s, v0.4s"), "frecpe", UNLISTED),
    "a64-unknown-bytes": ("aarch64", asm(".inst 0xffffffff"), "bytes that are no instruction", "not decoded"),
    "a64-into-data": ("aarch64", asm("b 1f; 1: .word 0x1e212800"), "b ", "goes into data"),
    "a64-runs-into-data": ("aarch64", asm(".word 0x1e212800"), "", "runs into data"),
    "a64-indirect-jump": ("aarch64", asm("br x0"), "br", "cannot follow"),
    "arm-multiply-add": ("arm", asm("vmla.f32 q0, q1, q2"), "vmla.f32", UNLISTED),
    "arm-conditional-add": ("arm", asm("vaddeq.f32 s0, s1, s2"), "vaddeq.f32", UNLISTED),
    "arm-conversion": ("arm", asm("vcvt.s32.f32 s0, s0"), "vcvt.s32.f32", UNLISTED),
    "arm-compare": ("arm", asm("vcmp.f64 d0, d1"), "vcmp.f64", UNLISTED),
    "arm-soft-float": ("arm", FLOATS, "__aeabi_f", "computes with floats"),
    "arm-unknown-bytes": ("arm", asm(".inst 0xffffffff"), "bytes that are no instruction", "not decoded"),
    "arm-into-data": ("arm", asm("b 1f; 1: .word 0x0"), "b ", "goes into data"),
    "arm-indirect-jump": ("arm", asm("bx r0"), "bx", "cannot follow"),
    "arm-loads-pc": ("arm", asm("ldr pc, [r0]"), "ldr pc", "cannot follow"),
    "arm-thumb": ("arm", asm("vadd.f32 s0, s0, s0"), "vadd.f32", UNLISTED),
}
OPTIONS = {
    "x86-runs-out-of-the-code": ["-Wl,--unresolved-symbols=ignore-all"],
    "a64-multiply-add": [],
    "arm-soft-float": ["-mfloat-abi=soft"],
    "arm-thumb": ["-target", "thumb-linux-gnueabihf"],
}


@pytest.mark.parametrize("name", CONTROLS)
def test_control(name: str, tmp_path: Path) -> None:
    machine, source, instruction, reason = CONTROLS[name]
    _, findings = audit_c(machine, source, tmp_path, *OPTIONS.get(name, ()))
    assert findings
    assert findings[0].instruction.startswith(instruction), findings
    assert reason in findings[0].reason, findings


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("options", [(), ("-O0",), ("-O3",)], ids=" ".join)
def test_integers_are_clean(machine: str, options: tuple[str, ...], tmp_path: Path) -> None:
    code, findings = audit_c(machine, INTEGERS, tmp_path, *options)
    assert findings == ()
    assert {"dot", "wide", "word"} <= {f.name for f in code.functions if f.reachable}
    assert code.instructions == sum(code.kinds.values()) > 20


def test_thumb_is_clean(tmp_path: Path) -> None:
    library = shared_library("arm", INTEGERS, tmp_path, "-target", "thumb-linux-gnueabihf")
    assert b"\0$t\0" in library
    assert audit_library(library).findings == ()


def test_constants_between_functions_are_no_instructions(tmp_path: Path) -> None:
    """An old core cannot build a 32-bit constant from halves, so it lies in the code."""
    library = shared_library("arm", INTEGERS, tmp_path, "-mcpu=arm1176jzf_s")
    binary, audit = read_binary(library, "lib.so"), audit_library(library)
    assert sum(end - start for start, end in binary.data) >= 4
    assert audit.findings == ()


@pytest.mark.parametrize(
    ("machine", "routine"),
    [
        ("x86-64", "sqrt"),
        ("x86-64", "__addtf3"),
        ("aarch64", "roundf"),
        ("aarch64", "__extendhfsf2"),
        ("arm", "expf"),
        ("arm", "__aeabi_fadd"),
    ],
)
def test_float_routines(machine: str, routine: str, tmp_path: Path) -> None:
    """From another library or from this one: refused where they are called, whatever instructions they consist of."""
    calls = f"int {routine}(int); int f(int x) {{ return {routine}(x) + 1; }}"
    _, findings = audit_c(machine, calls, tmp_path, "-fno-builtin")
    assert [(f.function, f.instruction) for f in findings] == [("imports", routine)]

    hidden = f'__attribute__((visibility("hidden"), noinline)) int {routine}(int x) {{ return x ^ 5; }}'
    code, findings = audit_c(machine, f"{hidden} {calls}", tmp_path, "-fno-builtin")
    (finding,) = findings
    assert (finding.function, finding.reason) == ("f", f"calls {routine}, which computes with floats")
    (inside,) = (f for f in code.functions if f.name == routine)
    assert (inside.role, inside.reachable) == ("float routine", True)

    unused = f"int {routine}(int x) {{ return x ^ 5; }} int f(int x) {{ return x + 1; }}"
    code, findings = audit_c(machine, unused, tmp_path, "-fno-builtin")
    assert findings == ()
    assert [f.name for f in code.functions if not f.reachable] == [routine]


def test_unknown_imports(tmp_path: Path) -> None:
    _, findings = audit_c("x86-64", "int puts(const char *); int f(void) { return puts(0); }", tmp_path)
    assert [(f.instruction, f.reason) for f in findings] == [("puts", "not on the list of allowed functions")]
    source = (
        "void *memcpy(void *, const void *, unsigned long); void *f(void *a, void *b) { return memcpy(a, b, 99999); }"
    )
    code, findings = audit_c("x86-64", source, tmp_path)
    assert (code.imports, findings) == (("memcpy",), ())


def test_addresses_in_data_are_entry_points(tmp_path: Path) -> None:
    source = """
        static int __aeabi_fadd(int x) { return x ^ 5; }
        int (*table[])(int) = {__aeabi_fadd};
    """
    _, findings = audit_c("x86-64", source, tmp_path)
    assert [f.function for f in findings] == ["__aeabi_fadd"]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_library_without_names_is_not_proven(machine: str, tmp_path: Path) -> None:
    _, findings = audit_c(machine, INTEGERS, tmp_path, "-s")
    assert "no symbol table" in {finding.instruction for finding in findings}


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"lib\.so is not an ELF file"):
        audit_library(b"int main;")
    library = shared_library("x86-64", INTEGERS, tmp_path)
    with pytest.raises(ArtifactError, match=r"here is not an ELF file|here has no section"):
        audit_library(library[:100], "here")
    with pytest.raises(ArtifactError, match=r"EM_386"):
        audit_library(library[:18] + b"\x03\x00" + library[20:])
    with pytest.raises(ArtifactError, match="is not linked"):
        audit_library(shared_library("x86-64", INTEGERS, tmp_path, "-c"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_judged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A damaged library gives findings, an error that says so, or is clean by luck; never another error."""
    library = bytearray(_integers(tmp_path_factory))
    for _ in range(data.draw(st.integers(1, 8))):
        library[data.draw(st.integers(0, len(library) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ArtifactError):
        audit_library(bytes(library))


_BUILT: list[bytes] = []


def _integers(factory: pytest.TempPathFactory) -> bytes:
    if not _BUILT:
        _BUILT.append(shared_library("x86-64", INTEGERS, factory.mktemp("integers")))
    return _BUILT[0]
