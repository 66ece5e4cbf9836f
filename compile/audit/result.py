"""What an audit found, as values: for the terminal, for JSON, and for an artifact's manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Finding:
    """One thing that an integer-only library must not hold, or that could not be judged.

    function, address, instruction: where it is; reason: what is wrong with it.
    """

    function: str
    address: int
    instruction: str
    reason: str

    def __str__(self) -> str:
        return f"{self.function} at {self.address:#x}: {self.instruction}: {self.reason}"


@dataclass(frozen=True)
class FunctionAudit:
    """One function. role: what it is for; reachable: from the entry points; kinds, mnemonics: instruction counts."""

    name: str
    role: str
    address: int
    reachable: bool
    kinds: Mapping[str, int]
    mnemonics: Mapping[str, int]

    @property
    def instructions(self) -> int:
        return sum(self.mnemonics.values())


@dataclass(frozen=True)
class CodeAudit:
    """All code of one processor: a library's, or one device image's.

    architecture: ``x86-64``, ``aarch64``, ``arm`` or ``sm_80`` and the like; disassembler: the program that is trusted,
    with its version; imports: functions of other libraries; vm_calls: functions that the library's VM code names.
    """

    architecture: str
    disassembler: str
    functions: tuple[FunctionAudit, ...]
    findings: tuple[Finding, ...]
    imports: tuple[str, ...] = ()
    vm_calls: tuple[str, ...] = ()

    @property
    def kinds(self) -> dict[str, int]:
        """Instructions by class, all functions together."""
        return dict(sorted(sum((Counter(function.kinds) for function in self.functions), Counter()).items()))

    @property
    def instructions(self) -> int:
        return sum(function.instructions for function in self.functions)


@dataclass(frozen=True)
class Audit:
    """A whole artifact: its library first, then the device images inside. findings: also those of no single code."""

    codes: tuple[CodeAudit, ...]
    other_findings: tuple[Finding, ...] = field(default=())

    @property
    def findings(self) -> tuple[Finding, ...]:
        return (*self.other_findings, *(finding for code in self.codes for finding in code.findings))

    @property
    def clean(self) -> bool:
        """Whether every instruction was read, and none of them computes with floats."""
        return not self.findings

    def to_json(self) -> dict[str, object]:
        """Everything, as JSON values."""
        return {
            "clean": self.clean,
            "findings": [asdict(finding) for finding in self.findings],
            "codes": [
                {
                    "architecture": code.architecture,
                    "disassembler": code.disassembler,
                    "instructions": code.instructions,
                    "kinds": code.kinds,
                    "imports": list(code.imports),
                    "vm_calls": list(code.vm_calls),
                    "functions": [{**asdict(f), "instructions": f.instructions} for f in code.functions],
                }
                for code in self.codes
            ],
        }

    def summary(self) -> dict[str, object]:
        """What a manifest records: the same library and disassembler give the same summary."""
        return {
            "clean": self.clean,
            "findings": len(self.findings),
            "first": str(self.findings[0]) if self.findings else None,
            "codes": [
                {
                    "architecture": code.architecture,
                    "disassembler": code.disassembler,
                    "functions": len(code.functions),
                    "instructions": code.instructions,
                    "kinds": code.kinds,
                }
                for code in self.codes
            ],
        }


def functions_with(functions: Iterable[FunctionAudit], *mnemonics: str) -> frozenset[str]:
    """Names of the functions that hold any of the given instructions, ``IMMA`` and ``IGMMA`` for tensor cores."""
    return frozenset(f.name for f in functions if any(name in f.mnemonics for name in mnemonics))
