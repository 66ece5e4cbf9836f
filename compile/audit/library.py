"""The audit of one shared library, and of what it carries."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from intcert.compile.audit import aarch64, arm, x86
from intcert.compile.audit.device import DeviceCodeError, audit_images, is_image
from intcert.compile.audit.disassemble import find_disassembler
from intcert.compile.audit.elf import Binary, Function, read_binary
from intcert.compile.audit.flow import ControlFlow
from intcert.compile.audit.instructions import Instruction
from intcert.compile.audit.names import (
    ALLOWED_IMPORTS,
    ALLOWED_VM_CALLS,
    C_RUNTIME_IMPORTS,
    LAUNCH_IMPORTS,
    is_float_routine,
    role,
)
from intcert.compile.audit.result import Audit, CodeAudit, Finding, FunctionAudit
from intcert.compile.audit.vm import BLOB, VM_KIND, carried_modules, vm_calls
from intcert.runtime.errors import ArtifactError

INSTRUCTION_SETS = {"x86-64": x86.INSTRUCTIONS, "aarch64": aarch64.INSTRUCTIONS, "arm": arm.INSTRUCTIONS}
DEVICE_KINDS = ("cuda",)

_UNKNOWN = "not on the list of integer, move and control instructions"
_UNDECODED = "not decoded by the disassembler"
_EXPORT_PREFIX = "__tvm_ffi_"


def audit_library(content: bytes, label: str = "lib.so") -> Audit:
    """Read every instruction of a linked library and of the device code that it carries. Runs none of it.

    label: what an error calls the file. Raises ArtifactError where it is no such library, MissingDependencyError where
    a disassembler is missing.
    """
    binary = read_binary(content, label)
    modules, findings = _modules(binary)
    images = [module for kind, module in modules if kind in DEVICE_KINDS]
    called, vm_findings = _vm(modules, binary)
    code = _audit_code(content, binary, tuple(called), bool(images))
    codes = [code]
    for image in images:
        try:
            codes.extend(audit_images(image))
        except DeviceCodeError as error:
            findings.append(Finding(label, 0, "device code", str(error)))
    return Audit(tuple(codes), (*findings, *vm_findings))


def audit_code(content: bytes, label: str) -> Audit:
    """Like ``audit_library``, of any machine code: a linked ELF file, a cubin or a fat binary."""
    if not is_image(content):
        return audit_library(content, label)
    try:
        return Audit(audit_images(content))
    except DeviceCodeError as error:
        raise ArtifactError(f"{label}: {error}") from None


def _modules(binary: Binary) -> tuple[list[tuple[str, bytes]], list[Finding]]:
    blob = binary.objects.get(BLOB)
    if blob is None:
        return [], []
    try:
        modules = list(carried_modules(blob))
    except ValueError as error:
        return [], [Finding(BLOB, 0, "embedded modules", f"not as this TVM writes them: {error}")]
    known = (VM_KIND, *DEVICE_KINDS)
    return modules, [
        Finding(BLOB, 0, f"module of kind {kind}", "not one that the audit can read")
        for kind, _ in modules
        if kind not in known
    ]


def _vm(modules: list[tuple[str, bytes]], binary: Binary) -> tuple[list[str], list[Finding]]:
    """What VM code calls, and findings about it."""
    called: list[str] = []
    try:
        for kind, module in modules:
            called.extend(vm_calls(module) if kind == VM_KIND else ())
    except ValueError as error:
        return [], [Finding(BLOB, 0, "VM code", f"not as this TVM writes it: {error}")]
    return called, [
        Finding(BLOB, 0, f"VM call of {name}", "not on the list of allowed functions")
        for name in called
        if name not in ALLOWED_VM_CALLS and _EXPORT_PREFIX + name not in binary.exports
    ]


def _audit_code(content: bytes, binary: Binary, called: tuple[str, ...], launches: bool) -> CodeAudit:
    tool = find_disassembler(binary.machine)
    isa = INSTRUCTION_SETS[binary.machine]
    instructions = [
        instruction
        for _, decoded in tool.decode(content, binary)
        for instruction in decoded
        if not binary.is_data(instruction.address)
    ]
    findings = []
    counted: dict[Function, list[Counter[str]]] = defaultdict(lambda: [Counter(), Counter()])
    for instruction in instructions:
        function = binary.function_at(instruction.address)
        kind = isa.classify(instruction)
        kinds, mnemonics = counted[function]
        mnemonics[instruction.mnemonic or "?"] += 1
        if kind is not None:
            kinds[kind.value] += 1
        else:
            reason = _UNKNOWN if instruction.mnemonic else _UNDECODED
            findings.append(Finding(function.name, instruction.address, str(instruction), reason))

    graph = ControlFlow(binary, instructions, {i.address: isa.flow(i) for i in instructions})
    exported = (address for name, address in binary.exports.items() if not is_float_routine(name))
    reachable = graph.reachable(iter([*exported, *binary.entries]))
    findings.extend(graph.findings(reachable))
    findings.extend(_float_routines(binary, graph, reachable))
    findings.extend(_imports(binary, launches))
    reached = {binary.function_at(address) for address in reachable}
    functions = tuple(
        FunctionAudit(
            name=function.name,
            role=role(function.name, function.section),
            address=function.start,
            reachable=function in reached,
            kinds=dict(sorted(counted[function][0].items())),
            mnemonics=dict(sorted(counted[function][1].items())),
        )
        for function in binary.functions
    )
    return CodeAudit(
        architecture=binary.machine,
        disassembler=tool.name,
        functions=functions,
        findings=tuple(findings),
        imports=binary.imports,
        vm_calls=called,
    )


def _float_routines(binary: Binary, graph: ControlFlow, reachable: frozenset[int]) -> Iterator[Finding]:
    """Routines that compute with floats in integer instructions: known by name, and no path may lead to one."""
    if not binary.named:
        yield Finding("?", 0, "no symbol table", "soft-float routines cannot be told from integer code without names")
    for function in binary.functions:
        name = next(filter(is_float_routine, function.names), None)
        if name is None:
            continue
        for caller in graph.callers(function.start, function.end, reachable):
            yield _finding_at(binary, caller, f"calls {name}, which computes with floats")
        if function.start in binary.entries:
            yield Finding(name, function.start, "entry point", "its address is taken, and it computes with floats")


def _finding_at(binary: Binary, instruction: Instruction, reason: str) -> Finding:
    function = binary.function_at(instruction.address)
    return Finding(function.name if function else "?", instruction.address, str(instruction), reason)


def _imports(binary: Binary, launches: bool) -> Iterator[Finding]:
    allowed = ALLOWED_IMPORTS | C_RUNTIME_IMPORTS | (LAUNCH_IMPORTS if launches else frozenset())
    for name in binary.imports:
        if is_float_routine(name):
            yield Finding("imports", 0, name, "computes with floats")
        elif name not in allowed:
            yield Finding("imports", 0, name, "not on the list of allowed functions")
