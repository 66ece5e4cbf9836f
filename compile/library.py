"""From a Relax module to the bytes of a shared library."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tvm
from tvm import relax

from intcert.compile.linker import Linker
from intcert.compile.lower import ENTRY_POINTS
from intcert.targets import Target


def tvm_target(target: Target) -> tvm.target.Target:
    """What LLVM is told about a target."""
    facts = {"kind": target.kind, "mtriple": target.triple, "mcpu": target.mcpu, "mattr": list(target.mattr)}
    return tvm.target.Target(facts | ({"mfloat-abi": target.float_abi} if target.float_abi else {}))


@tvm.transform.module_pass(opt_level=0, name="HidePrivateFunctions")
def _hide_private(module: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
    """Take the exported names off kernels again: AttachGlobalSymbol gives one to every function."""
    public = {*ENTRY_POINTS, *(f"{name}_host" for name in ENTRY_POINTS)}
    functions = {
        name: function
        if name.name_hint in public or "global_symbol" not in (function.attrs or {})
        else function.without_attr("global_symbol")
        for name, function in module.functions.items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)


def relax_pipeline() -> tvm.transform.Pass:
    """Relax to VM code, pass by pass: the default pipeline's dataflow rewrites crash on kernels like ours."""
    t = relax.transform
    return tvm.transform.Sequential(
        [
            t.ToNonDataflow(),
            t.RemovePurityChecking(),
            t.CallTIRRewrite(),
            t.StaticPlanBlockMemory(),
            t.LowerAllocTensor(),
            t.KillAfterLastUse(),
            t.LowerRuntimeBuiltin(),
            t.ComputePrimValue(),
            t.VMShapeLower(),
            t.AttachGlobalSymbol(),
            _hide_private,
        ]
    )


def compile_module(module: tvm.IRModule, target: Target) -> relax.VMExecutable:
    """Machine code of a lowered module."""
    return relax.build(module, target=tvm_target(target), relax_pipeline=relax_pipeline())


def link(executable: relax.VMExecutable, linker: Linker) -> bytes:
    """The executable as a shared library."""
    with tempfile.TemporaryDirectory(prefix="intcert-") as folder:
        path = Path(folder) / "lib.so"
        executable.export_library(str(path), fcompile=linker)
        return path.read_bytes()


def compile_object(module: tvm.IRModule, target: Target) -> bytes:
    """A module of ``lower_for_c`` as a relocatable object file."""
    with tempfile.TemporaryDirectory(prefix="intcert-") as folder:
        path = Path(folder) / "model.o"
        tvm.tirx.build(module, target=tvm_target(target)).write_to_file(str(path), "o")
        return path.read_bytes()


def assembly(executable: relax.VMExecutable) -> str:
    """The machine code as LLVM prints it."""
    parts = [executable.mod, *executable.mod.imports]
    return "\n".join(part.inspect_source("asm") for part in parts if part.kind == "llvm")
