"""Where execution can go: every branch is followed, so that what is read as code is what runs.

A linear disassembly proves nothing about code that is entered in the middle of an instruction, or data that is run
into. So every direct branch must end at the start of a decoded instruction, no path may run into data, and every
indirect branch must be explained: by an import's slot that the loader fills, or as a linkage stub.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from intcert.compile.audit.elf import Binary
from intcert.compile.audit.instructions import Flow, Instruction
from intcert.compile.audit.result import Finding

_INDIRECT = "goes to an address that the audit cannot follow"
_SLOT = re.compile(r"\[rip\s*([+-])\s*(0x[0-9a-f]+|\d+)\]")


class ControlFlow:
    """The instructions of a binary, and where each can go.

    instructions: all of them in one section after another, by ascending address; flows: of each, by address.
    """

    def __init__(self, binary: Binary, instructions: Sequence[Instruction], flows: Mapping[int, Flow]) -> None:
        self.binary, self.flows = binary, flows
        self.instructions = {instruction.address: instruction for instruction in instructions}
        self._before = {later.address: earlier for earlier, later in itertools.pairwise(instructions)}

    def findings(self, reachable: frozenset[int]) -> Iterator[Finding]:
        """Branches that go where no instruction begins, or nobody knows where, and paths that run into data.

        Only what can be executed counts: linkers pad with branches that trap.
        """
        for address in sorted(reachable):
            instruction, flow = self.instructions[address], self.flows[address]
            reason = None
            if flow.target is not None:
                reason = self._bad_target(flow.target)
            elif flow.indirect and not self._explained(instruction):
                reason = _INDIRECT
            elif flow.falls:
                after = self._bad_target(instruction.end)
                reason = after and f"runs {after.removeprefix('goes ')}"
            if reason is not None:
                yield Finding(self._name(address), address, str(instruction), reason)

    def reachable(self, entries: Iterator[int]) -> frozenset[int]:
        """Addresses of all instructions that can be executed, given where the library is entered."""
        seen: set[int] = set()
        waiting = [entry for entry in entries if entry in self.instructions]
        while waiting:
            address = waiting.pop()
            if address in seen or address not in self.instructions:
                continue
            seen.add(address)
            flow = self.flows[address]
            if flow.target is not None:
                waiting.append(flow.target)
            if flow.falls:
                waiting.append(self.instructions[address].end)
        return frozenset(seen)

    def callers(self, start: int, end: int, reachable: frozenset[int]) -> Iterator[Instruction]:
        """Reachable instructions outside a range that go into it."""
        for address in sorted(reachable):
            target = self.flows[address].target
            if target is not None and start <= target < end and not start <= address < end:
                yield self.instructions[address]

    def _bad_target(self, target: int) -> str | None:
        if target in self.instructions and not self.binary.is_data(target):
            return None
        if not self.binary.is_code(target):
            return f"goes to {target:#x}, outside the code"
        where = "data" if self.binary.is_data(target) else "the middle of an instruction"
        return f"goes into {where} at {target:#x}"

    def _explained(self, branch: Instruction) -> bool:
        """Whether an indirect branch goes to an import, by a slot that only the loader writes."""
        if self._name_of_section(branch.address).startswith((".plt", ".iplt")) and self.binary.machine != "x86-64":
            return True  # these compute the slot's address in registers
        if _SLOT.search(branch.operands):
            return self._slot(branch) in self.binary.slots
        # The C runtime loads a weak import, tests it, and calls it.
        register, earlier = branch.operands, self._before.get(branch.address)
        while earlier is not None and earlier.mnemonic in ("test", "je", "push", "pop", "nop"):
            earlier = self._before.get(earlier.address)
        return (
            earlier is not None
            and earlier.mnemonic == "mov"
            and earlier.operands.split(",")[0] == register
            and self._slot(earlier) in self.binary.slots
        )

    def _slot(self, instruction: Instruction) -> int | None:
        """The address of an operand relative to rip."""
        match = _SLOT.search(instruction.operands)
        if match is None:
            return None
        return instruction.end + int(match[1] + match[2], 0)

    def _name(self, address: int) -> str:
        function = self.binary.function_at(address)
        return function.name if function is not None else "?"

    def _name_of_section(self, address: int) -> str:
        return next((section.name for section in self.binary.code if address in section), "")
