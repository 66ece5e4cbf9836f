"""Kernels of a foreign processor, executed here: a static program without Python or TVM, under QEMU's user mode."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import tirx

from intcert.compile.graph import IntegerGraph
from intcert.compile.library import tvm_target
from intcert.compile.lower import lower
from intcert.compile.plan import Plan
from intcert.targets import Target

SOURCE = Path(__file__).with_name("board.c")
QEMU = {"aarch64": "qemu-aarch64-static", "arm": "qemu-arm-static"}


def require_board() -> None:
    """Skip a test where this machine cannot execute ARM's kernels."""
    for emulator in QEMU.values():
        if not shutil.which(emulator):
            pytest.skip(f"{emulator} is not installed (package qemu-user-static)")
    pytest.importorskip("ziglang", reason="the Python package ziglang is not installed")


@dataclass(frozen=True)
class Board:
    """A program that holds one network. cpu: the processor that QEMU emulates, which refuses what it does not have."""

    program: Path
    graph: IntegerGraph
    plan: Plan
    emulator: tuple[str, ...]

    @classmethod
    def build(cls, graph: IntegerGraph, plan: Plan, target: Target, cpu: str, folder: Path) -> Board:
        """Compile and link. folder: an empty one for the program."""
        functions = {
            name: function
            for name, function in lower(graph, plan).functions.items()
            if isinstance(function, tirx.PrimFunc)
        }
        module = tvm.compile(tvm.IRModule(functions), tvm_target(target)).mod
        module.write_to_file(str(folder / "network.o"))
        architecture, triple = target.triple.partition("-")[0], target.triple.replace("gnu", "musl")
        baseline = {"aarch64": "generic", "arm": "cortex_a9"}[architecture]
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", triple, f"-mcpu={baseline}", "-O1", "-static"]
        subprocess.run([*compiler, SOURCE, folder / "network.o", "-o", folder / "board"], check=True)
        return cls(folder / "board", graph, plan, (QEMU[architecture], "-cpu", cpu))

    def logits(self, x: np.ndarray) -> np.ndarray:
        """x: int16[n, H, W, C]. Returns int32[n, classes]."""
        return self._run(x, "logits", len(x))

    def counts(self, image: np.ndarray, key: int, first: int, n: int) -> np.ndarray:
        """As ``Session.counts``."""
        return self._run(image, "counts", key, first, n)

    def _run(self, x: np.ndarray, *arguments: str | int) -> np.ndarray:
        sizes = [*self.graph.input_shape, self.graph.classes, len(self.plan.blob), self.plan.arena_bytes]
        content = np.array(sizes, np.int32).tobytes() + self.plan.blob.tobytes() + x.tobytes()
        done = subprocess.run([*self.emulator, self.program, *map(str, arguments)], input=content, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr.decode()}")
        return np.frombuffer(done.stdout, np.int32).reshape(-1, self.graph.classes)
