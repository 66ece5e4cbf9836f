"""The audit of artifacts: everything that intcert compiles is integer-only, and the same code with floats is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import tvm
from machine_code import embedding, packed, shared_library
from random_models import random_integer_graph
from tvm import te

from intcert.compile.audit import audit_library
from intcert.compile.audit.disassemble import find_disassembler
from intcert.compile.audit.elf import MACHINES
from intcert.compile.build import compile_artifact, load_model
from intcert.compile.library import tvm_target
from intcert.compile.linker import find_linker
from intcert.runtime.artifact import read_artifact
from intcert.runtime.errors import ArtifactError, AuditError, MissingDependencyError
from intcert.targets import TARGETS, Target, find

DEMO = Path(__file__).resolve().parents[2] / "cli" / "demo" / "resnet20.pt2"
QUICK = ("x86", "x86-amx", "arm-a9", "arm-v8.6")
by_name = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
mostly_slow = pytest.mark.parametrize(
    "target", [pytest.param(t, id=t.name, marks=() if t.name in QUICK else pytest.mark.slow) for t in TARGETS]
)


def library(model: object, target: Target, folder: Path, scheme: str = "auto") -> bytes:
    """The machine code of a model. Skips where nothing links or disassembles for the target."""
    try:
        compile_artifact(model, folder / "a.intcert", target=target, sigma="0.25", scheme=scheme, integer_only=True)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    return read_artifact(folder / "a.intcert").library


@mostly_slow
def test_compiled_graphs_are_integer_only(target: Target, tmp_path: Path) -> None:
    graph = random_integer_graph(1, "q31" if target.name.startswith("x86") else "q15")
    code = audit_library(library(graph, target, tmp_path)).codes[0]
    assert {f.name for f in code.functions if not f.reachable} <= {"__truncsfhf2", "__extendhfsf2"}
    assert {f.role for f in code.functions} <= {"entry point", "host", "kernel", "linkage", "float routine"}
    assert {"counts_host", "logits_host", "layers_host"} <= set(code.vm_calls)


@pytest.mark.slow
@by_name
@pytest.mark.parametrize("scheme", ["q15", "q31"])
def test_more_graphs_are_integer_only(target: Target, scheme: str, tmp_path: Path) -> None:
    library(random_integer_graph(20 + TARGETS.index(target), scheme), target, tmp_path)


@pytest.mark.slow
@by_name
def test_the_demo_is_integer_only(target: Target, tmp_path: Path) -> None:
    code = audit_library(library(load_model(DEMO, "q15"), target, tmp_path)).codes[0]
    assert code.kinds.get("dot", 0) > 100 or target.dot.pairs


@mostly_slow
def test_two_disassemblers_read_the_same(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, machine = GNU_TOOLS[target.triple.partition("-")[0]]
    path = shutil.which(tool)
    if path is None or not find_disassembler(machine).name.startswith("llvm"):
        pytest.skip(f"llvm-objdump and {tool} are not both installed")
    content = library(random_integer_graph(3, "q31"), target, tmp_path)
    code = audit_library(content).codes[0]
    (tmp_path / "gnu").mkdir()
    (tmp_path / "gnu" / tool).symlink_to(path)
    monkeypatch.setenv("PATH", str(tmp_path / "gnu"))
    again = audit_library(content).codes[0]
    assert again.disassembler.startswith("GNU objdump")
    assert [(f.name, f.kinds) for f in again.functions] == [(f.name, f.kinds) for f in code.functions]


GNU_TOOLS = {
    "x86_64": ("objdump", "x86-64"),
    "aarch64": ("aarch64-linux-gnu-objdump", "aarch64"),
    "arm": ("arm-linux-gnueabihf-objdump", "arm"),
}


@mostly_slow
def test_a_float_kernel_is_caught(target: Target, tmp_path: Path) -> None:
    """Compiled and linked as every kernel is."""
    x = te.placeholder((64,), "float32", "x")
    y = te.compute((64,), lambda i: x[i] * x[i] + tvm.tirx.const(0.5, "float32"), "y")
    module = tvm.compile(te.create_prim_func([x, y]).with_attr("global_symbol", "main"), tvm_target(target))
    try:
        module.export_library(str(tmp_path / "f.so"), fcompile=find_linker(target))
        audit = audit_library((tmp_path / "f.so").read_bytes())
    except MissingDependencyError as error:
        pytest.skip(str(error))
    hits = {finding.instruction.split()[0].split(".")[0] for finding in audit.findings}
    assert hits & {"vfmadd213ps", "vmulps", "vaddps", "fmla", "fmul", "fadd", "vmla", "vfma", "vmul", "vadd"}, hits


def test_the_manifest_records_the_audit(tmp_path: Path) -> None:
    graph = random_integer_graph(1, "q15")
    manifest = compile_artifact(graph, tmp_path / "a", target="x86", sigma="0.25")
    artifact = read_artifact(tmp_path / "a")
    summary = audit_library(artifact.library).summary()
    assert manifest.audit == artifact.manifest.audit == json.loads(json.dumps(summary))
    assert summary["clean"] is True
    assert (summary["findings"], summary["first"]) == (0, None)
    (code,) = summary["codes"]
    assert code["instructions"] == sum(code["kinds"].values())


def test_without_a_disassembler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The artifact is written, and says that nobody looked; or nothing is written, where integers are required."""
    graph = random_integer_graph(1, "q15")
    (tmp_path / "bin").mkdir()
    for tool in ("gcc", "ld", "as"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert compile_artifact(graph, tmp_path / "a", target="x86", sigma="0.25").audit is None
    with pytest.raises(MissingDependencyError, match="apt install llvm") as caught:
        compile_artifact(graph, tmp_path / "b", target="x86", sigma="0.25", integer_only=True)
    assert caught.value.exit_code == 5
    assert sorted(os.listdir(tmp_path)) == ["a", "bin"]


@pytest.mark.parametrize("machine", MACHINES.values())
def test_which_package_to_install(machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"install llvm-objdump \(apt install llvm\) or objdump"):
        find_disassembler(machine)


def test_a_versioned_name_and_a_broken_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = shared_library("x86-64", "int f(int x) { return x; }", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for version in (9, 15):
        tool = tmp_path / f"llvm-objdump-{version}"
        tool.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "  LLVM version {version}.0.1" && exit 0\nexit 1\n')
        tool.chmod(0o755)
    assert find_disassembler("arm").name == "llvm-objdump 15.0.1"
    with pytest.raises(ArtifactError, match="exit code 1"):
        audit_library(content)


def test_a_finding_stops_an_integer_only_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a list that lacks what every build needs, as if LLVM had come up with a new instruction."""
    from intcert.compile.audit import x86

    for name in ("vpmaddwd", "vpmulld"):
        monkeypatch.delitem(x86._KINDS, name)
    graph = random_integer_graph(1, "q15")
    with pytest.raises(AuditError, match=r"not integer-only: \S+ at 0x\w+: vpm\w+ .*; nothing was written") as caught:
        compile_artifact(graph, tmp_path / "a", target="x86", sigma="0.25", integer_only=True)
    assert caught.value.exit_code == 1
    assert os.listdir(tmp_path) == []
    manifest = compile_artifact(graph, tmp_path / "a", target="x86", sigma="0.25")
    assert manifest.audit["clean"] is False
    assert manifest.audit["findings"] > 0


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"\1\2\3", "not as this TVM writes them"),
        (packed(("relax.VMExecutable", b"\0" * 40)), "is no VM code"),
        (packed(("opencl", b"kernel")), "module of kind opencl: not one that the audit can read"),
        (packed(("cuda", b"__global__ void f() {}")), "there is no machine code in it"),
    ],
)
def test_embedded_modules_that_cannot_be_read(blob: bytes, words: str, tmp_path: Path) -> None:
    (finding,) = audit_library(embedding(blob, tmp_path)).findings
    assert words in str(finding)


def test_vm_calls_are_checked(tmp_path: Path) -> None:
    content = library(random_integer_graph(1, "q15"), find("x86"), tmp_path)
    renamed = content.replace(b"vm.builtin.alloc_tensor", b"vm.builtin.float_tensor")
    assert renamed != content
    (finding,) = audit_library(renamed).findings
    assert "vm.builtin.float_tensor: not on the list" in str(finding)
