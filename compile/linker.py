"""Who makes a shared library of object files: the machine's own compiler, or a cross linker for another machine."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from intcert.runtime.errors import MissingDependencyError
from intcert.targets import CudaTarget, Target

#: What platform.machine() calls the processors of a triple's first word.
_MACHINES = {"x86_64": ("x86_64", "amd64"), "aarch64": ("aarch64", "arm64"), "arm": ("armv7l", "armv8l")}


@dataclass(frozen=True)
class Linker:
    """A command that links objects for one machine. name: for people; arguments: all but objects and output."""

    name: str
    arguments: tuple[str, ...]

    def __call__(self, output: str, objects: Sequence[str], options: Sequence[str] | None = None) -> None:
        """Write the shared library ``output``; the signature is that of TVM's ``fcompile``. Raises RuntimeError."""
        command = [*self.arguments, "-o", output, *objects, *(options or ())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.name} cannot link: {done.stderr.strip()}")


def find_linker(target: Target | CudaTarget) -> Linker:
    """The linker for a target: gcc or ld of its triple, else the C compiler of the Python package ziglang.

    Raises MissingDependencyError.
    """
    for name, arguments in _candidates(target):
        if arguments:
            return Linker(name, arguments)
    raise MissingDependencyError(
        f"nothing here links for {target.name}; install {target.triple}-gcc, or run: pip install 'intcert[cross]'"
    )


def is_native(target: Target | CudaTarget) -> bool:
    """Whether this machine is of the target's architecture, so that its own compiler serves."""
    return platform.machine().lower() in _MACHINES[target.triple.partition("-")[0]]


def _candidates(target: Target | CudaTarget) -> list[tuple[str, tuple[str, ...]]]:
    """Names and commands, the preferred one first; no command where it is not installed."""

    def installed(name: str, *options: str) -> tuple[str, tuple[str, ...]]:
        path = shutil.which(name)
        return name, (path, "-shared", *options) if path else ()

    # Kernels need no start code, and the audit would have to trust it.
    gcc = ("-fPIC", "-nostartfiles")
    own = [installed(name, *gcc) for name in ("gcc", "cc")] if is_native(target) else []
    # The objects need nothing but memset and memcpy, which every process that loads them has.
    zig = (sys.executable, "-m", "ziglang", "cc", "-target", target.triple, "-shared", "-nostdlib")
    return [
        *own,
        installed(f"{target.triple}-gcc", *gcc),
        installed(f"{target.triple}-ld"),
        ("ziglang", zig if importlib.util.find_spec("ziglang") else ()),
    ]
