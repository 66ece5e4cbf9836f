"""A model as a program of C: image in, counts and certificate out, with neither Python nor a TVM library.

The kernels are those of an artifact, under two functions with a C signature (``lower_for_c``). Around them stands the C
of compile/c, and between them a generated header. docs/c-harness.md shows how to use it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intcert.compile.build import Model, Sources, audit_summary, prepare
from intcert.compile.database import SHIPPED, open_database
from intcert.compile.library import compile_object
from intcert.compile.linker import find_linker, is_native
from intcert.compile.lower import lower_for_c
from intcert.compile.plan import Plan, make_plan
from intcert.runtime.certificate import CertificateTable, OneClassTable, SequentialTable
from intcert.runtime.errors import ArtifactError, MissingDependencyError
from intcert.targets import CudaTarget, Target, UnknownTargetError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from intcert.compile.graph import IntegerGraph

PROGRAM = "intcert"  # what the Makefile makes
_C_FILES = ("intcert.h", "intcert.c", "sha256.c", "cpu.c", "main.c", "data.S", "Makefile")


@dataclass(frozen=True)
class Harness:
    """What was built: the program, or the folder of its sources.

    chunk: samples at once, in so many bytes of memory; audit: of model.o, as in an artifact's manifest.
    """

    path: Path
    sources: Sources
    chunk: int
    arena_bytes: int
    audit: dict[str, object] | None


def build_harness(
    model: str | os.PathLike[str] | ExportedProgram | IntegerGraph | Model,
    output: str | os.PathLike[str],
    *,
    sources: bool = False,
    target: str | Target = "host",
    sigma: str | None = None,
    scheme: str = "auto",
    chunk: int | None = None,
    n: int | None = None,
    alpha: str | None = None,
    radius: str | None = None,
    database: str | os.PathLike[str] = SHIPPED,
    integer_only: bool = False,
) -> Harness:
    """Compile a model to a statically linked program, or to a folder with everything that it is made of.

    sources: write the folder, with model.o, instead of linking; no C compiler is needed then. The other arguments are
    those of ``compile_artifact``; without n, alpha or radius there is no certificate table inside, and the program
    only counts.

    Raises what ``compile_artifact`` raises, and MissingDependencyError where no C compiler for the target is found;
    nothing is left behind then.
    """
    output = Path(output)
    prepared = prepare(model, target=target, sigma=sigma, scheme=scheme, n=n, alpha=alpha, radius=radius)
    if isinstance(prepared.target, CudaTarget):
        raise UnknownTargetError(f"a C program runs on a processor, not on {prepared.target.name}; try --target x86")
    compiler = () if sources else c_compiler(prepared.target)
    plan = make_plan(
        prepared.model.graph, prepared.law, prepared.target, chunk, open_database(database, prepared.target)
    )
    try:
        # Beside the output, so that what is finished takes its place by a rename.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            finished = Path(folder, "sources")
            finished.mkdir()
            write_sources(finished, prepared, plan)
            audit = _audit(finished / "model.o", prepared.target, integer_only)
            if not sources:
                finished = link_program(finished, compiler, prepared.target)
            elif os.path.lexists(output):
                raise ArtifactError(f"{output} exists; give another name for the folder of sources")
            os.replace(finished, output)
    except OSError as error:
        raise ArtifactError(f"{output} cannot be written ({error.strerror}); give another output name") from error
    return Harness(output, prepared, plan.batch, plan.arena_bytes, audit)


def c_compiler(target: Target) -> tuple[str, ...]:
    """The command that compiles C for a target and links it statically: ziglang with musl, or a GNU compiler.

    Raises MissingDependencyError where there is neither.
    """
    if util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc", "-target", target.triple.replace("gnu", "musl"))
    for name in (f"{target.triple}-gcc", *(["gcc"] if is_native(target) else [])):
        if shutil.which(name) is not None:
            return (name,)
    raise MissingDependencyError(
        f"a program for {target.name} needs a C compiler; install {target.triple}-gcc, or run: "
        "pip install 'intcert[cross]'"
    )


def write_sources(folder: Path, sources: Sources, plan: Plan) -> None:
    """Write everything that the program is made of; the same build gives the same bytes."""
    graph = sources.model.graph
    for name in _C_FILES:
        (folder / name).write_bytes(resources.files("intcert.compile").joinpath("c", name).read_bytes())
    (folder / "model.h").write_text(_header(sources, plan))
    (folder / "model.o").write_bytes(compile_object(lower_for_c(graph, plan), sources.target))
    (folder / "constants.bin").write_bytes(plan.blob.tobytes())
    (folder / "table.bin").write_bytes(_table(sources.table).astype("<i4").tobytes())


def _audit(kernels: Path, target: Target, required: bool) -> dict[str, object] | None:
    """``audit_summary`` of an object file: what a linker makes of it can be read from its first byte to its last."""
    try:
        linker = find_linker(target)
    except MissingDependencyError:
        if required:
            raise
        return None
    with tempfile.TemporaryDirectory(prefix="intcert-") as folder:
        library = Path(folder, "model.so")
        linker(str(library), [str(kernels)])
        return audit_summary(library.read_bytes(), required)


def _table(table: CertificateTable | None) -> np.ndarray:
    """The numbers that intcert.c decides by."""
    if isinstance(table, OneClassTable):
        return table.claims
    if isinstance(table, SequentialTable):
        return np.concatenate([table.check_points, table.accept, table.reject])
    return np.zeros(0, np.int32)


def _header(sources: Sources, plan: Plan) -> str:
    graph, table, target = sources.model.graph, sources.table, sources.target
    names = sources.model.class_names
    parameters = table.parameters if table is not None else None
    height, width, channels = graph.input_shape
    sequential = isinstance(table, SequentialTable)
    values = {
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "SHAPE": c_string(f"{height} {width} {channels}"),
        "CLASSES": graph.classes,
        "CLASS_NAMES": _initializer([c_string(name) for name in names] if len(names) == graph.classes else []),
        "CHUNK": plan.batch,
        "LAYERS": len(plan.steps),
        "ARENA_BYTES": plan.arena_bytes,
        "SIGMA": c_string(sources.law.sigma),
        "GRAPH": c_string(graph.digest),
        "NOISE": c_string(sources.law.digest),
        "TARGET": c_string(target.name),
        "CPU_FLAGS": _initializer([c_string(flag) for flag in target.cpu_flags]),
        "PERMISSION": _initializer([str(number) for number in plan.permission]),
        "RULE": c_string(parameters.rule if parameters else ""),
        "RADIUS": c_string(parameters.radius or "" if parameters else ""),
        "ALPHA": c_string(parameters.alpha if parameters else ""),
        "N0": parameters.n0 if parameters else 0,
        "N": parameters.n if parameters else 0,
        "CLAIMS": len(table.claims) if isinstance(table, OneClassTable) else 0,
        "LOOKS": len(table.check_points) if sequential else 0,
        "CLAIM": table.claim if sequential else 0,
    }
    lines = [f"#define INTCERT_{name} {value}" for name, value in values.items()]
    return "\n".join(
        ["/* Made by intcert compile: one model, with its noise and its certificate table. */", *lines, ""]
    )


def c_string(text: str) -> str:
    """A C string literal; every byte that means something to a C compiler is written in octal."""
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 _-.:,"
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _initializer(items: list[str]) -> str:
    """A C initializer that ends with a zero."""
    return f"{{{', '.join([*items, '0'])}}}"


def link_program(folder: Path, compiler: tuple[str, ...], target: Target, *, symbols: bool = False) -> Path:
    """Compile and link the sources in a folder; the path of the program, with the names of its functions if wanted."""
    files = [name for name in _C_FILES if name.endswith((".c", ".S"))]
    flags = ["-std=c11", "-O2", "-static", "-no-pie", "-Wl,--gc-sections", *([] if symbols else ["-s"])]
    if not target.triple.startswith("arm"):  # there, compilers do not know this option
        flags.append("-mgeneral-regs-only")  # the compiler itself then refuses floating point in the C files
    command = [*compiler, *flags, "-o", PROGRAM, *files, "model.o"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ArtifactError(f"{' '.join(compiler)} cannot link the program ({reason}); write --emit c-sources instead")
    return folder / PROGRAM
