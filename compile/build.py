"""From a model to an artifact: import, plan, lower, compile, and write the file with everything that certifies it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Context, Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import tvm

from intcert.compile.audit import audit_library
from intcert.compile.database import SHIPPED, open_database
from intcert.compile.graph import IntegerGraph
from intcert.compile.library import assembly, compile_module, link
from intcert.compile.library_cuda import compile_cuda, cuda_source, device_target, link_cuda
from intcert.compile.linker import Linker, find_linker
from intcert.compile.lower import ENTRY_POINTS, lower
from intcert.compile.lower_cuda import lower_cuda
from intcert.compile.plan import Plan, make_plan
from intcert.runtime.artifact import GRAPH, LIBRARY, NOISE, Manifest, write_artifact
from intcert.runtime.certificate import CertificateParameters, CertificateTable, certificate_table
from intcert.runtime.decimals import MAX_LENGTH, canonical_decimal
from intcert.runtime.errors import ArtifactError, AuditError, MissingDependencyError, ModelError, SigmaError
from intcert.runtime.noise import PIXEL_STEPS, NoiseLaw, noise_law
from intcert.runtime.smoothing import kernel_distance, sampler_distance, smoothing_width
from intcert.targets import CudaTarget, Target, find

if TYPE_CHECKING:
    from torch.export import ExportedProgram

DUMPS = ("relax", "tir", "asm")
_EXACT = Context(prec=2 * MAX_LENGTH)


@dataclass(frozen=True)
class Model:
    """A network and what is known about it. digest: SHA-256 in hex of its file, or the graph's where there is none."""

    graph: IntegerGraph
    digest: str
    sigma: str | None = None
    class_names: tuple[str, ...] = ()


def load_model(source: str | os.PathLike[str] | ExportedProgram | IntegerGraph, scheme: str = "auto") -> Model:
    """A model from a .pt2 file (torch.export.save), a .graph file (IntegerGraph.to_bytes), or from memory.

    scheme applies where a torch program is imported. Raises ModelError.
    """
    if isinstance(source, IntegerGraph):
        return Model(source, source.digest)
    if not isinstance(source, str | os.PathLike):
        from intcert.compile.frontend import import_program

        graph = import_program(source, scheme=scheme)
        return Model(graph, graph.digest)
    path = Path(source)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model {str(path)!r}: {error.strerror}; give a .pt2 file") from None
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix == ".graph":
        return Model(IntegerGraph.from_bytes(content), digest)
    from intcert.compile.frontend import import_program, read_metadata

    graph = import_program(path, scheme=scheme)
    metadata = read_metadata(path)
    sigma = metadata.get("sigma")
    if not isinstance(sigma, str | None):
        raise ModelError(
            f'{str(path)!r} carries sigma {sigma!r} as a number; save it as text, like "0.25", to keep it exact'
        )
    return Model(graph, digest, sigma, tuple(metadata.get("class_names", ())))


@dataclass(frozen=True)
class Sources:
    """What any build starts from. width: s of docs/certificate.md, in pixel steps; table: to be embedded, if any is."""

    model: Model
    law: NoiseLaw
    width: Fraction
    target: Target | CudaTarget
    table: CertificateTable | None


def prepare(
    model: str | os.PathLike[str] | ExportedProgram | IntegerGraph | Model,
    *,
    target: str | Target | CudaTarget,
    sigma: str | None,
    scheme: str,
    n: int | None,
    alpha: str | None,
    radius: str | None,
) -> Sources:
    """Look up and check everything that a build needs; the arguments are those of ``compile_artifact``.

    Raises ModelError, SigmaError, CertificateError or UnknownTargetError.
    """
    device = find(target) if isinstance(target, str) else target
    source = model if isinstance(model, Model) else load_model(model, scheme)
    sigma = sigma if sigma is not None else source.sigma
    if sigma is None:
        raise SigmaError(
            "the model does not carry its sigma; give the noise level on the [0, 1] scale, like --sigma 0.25"
        )
    law, table = noise_law(sigma), None
    width = smoothing_width(law.sigma_steps, source.graph.dimension)
    if n is not None or alpha is not None or radius is not None:
        chosen = {"alpha": alpha, "n": n, "rule": None if radius is None else f"kt:{radius}"}
        given = {name: value for name, value in chosen.items() if value is not None}
        table = certificate_table(CertificateParameters(law.sigma, source.graph.dimension, **given), law)
    return Sources(source, law, width, device, table)


def compile_artifact(
    model: str | os.PathLike[str] | ExportedProgram | IntegerGraph | Model,
    output: str | os.PathLike[str],
    *,
    target: str | Target | CudaTarget = "host",
    sigma: str | None = None,
    scheme: str = "auto",
    chunk: int | None = None,
    n: int | None = None,
    alpha: str | None = None,
    radius: str | None = None,
    dump: Sequence[str] = (),
    class_names: Sequence[str] = (),
    database: str | os.PathLike[str] = SHIPPED,
    integer_only: bool = False,
) -> Manifest:
    """Compile a model for a target and write the artifact.

    sigma: noise level on the [0, 1] scale as an exact decimal; may be left out where the .pt2 carries one. chunk:
    samples that the kernels work on at once, chosen by the target's cache where left out; on a GPU the session chooses.
    With n or alpha, the fixed-N certificate table is embedded; with radius (on the [0, 1] scale), the sequential one.
    dump: any of "relax", "tir", "asm" (for a GPU the kernels as CUDA C++), written beside the output as
    OUTPUT.relax.txt and so on. database: a tuning database, "shipped" for the one that comes with intcert for this
    target, or "none"; it decides times, never counts. The machine code is audited (docs/audit.md) where a disassembler
    is installed, and the manifest says what was found; with integer_only, a hit is an AuditError and a missing
    disassembler a MissingDependencyError.

    Raises ModelError, SigmaError, CertificateError, ArtifactError, DatabaseError, UnknownTargetError, or
    MissingDependencyError where nothing links for the target or compiles for its GPU; nothing is left behind then.
    """
    sources = prepare(model, target=target, sigma=sigma, scheme=scheme, n=n, alpha=alpha, radius=radius)
    source, graph, law, device = sources.model, sources.model.graph, sources.law, sources.target
    linker = find_linker(device)
    tables = {}
    if sources.table is not None:
        tables[sources.table.parameters.rule.replace(":", "-")] = sources.table.to_bytes()
    plan = make_plan(graph, law, device, chunk, open_database(database, device))
    built = _build(graph, plan, device, linker)
    library = built.library
    names = tuple(class_names or source.class_names)
    manifest = Manifest(
        model_hash=source.digest,
        graph_hash=graph.digest,
        noise_hash=law.digest,
        target=device.name,
        target_facts=asdict(device),
        scheme=graph.scheme,
        input_shape=graph.input_shape,
        classes=graph.classes,
        class_names=names if len(names) == graph.classes else (),
        sigma=law.sigma,
        sigma_steps=canonical_decimal(format(_EXACT.multiply(PIXEL_STEPS, Decimal(law.sigma)), "f")),
        eta={
            "s": str(float(sources.width)),
            "kernel": f"{float(kernel_distance(law.sigma_steps, sources.width, graph.dimension)):.17g}",
            "sampler": f"{float(sampler_distance(law.tv, graph.dimension)):.17g}",
        },
        chunk=plan.batch,
        entry_points=ENTRY_POINTS,
        tvm_version=tvm.__version__,
        arena_bytes=plan.arena_bytes,
        layers=tuple(_layers(graph, plan)),
        certificates=tuple(sorted(tables)),
        audit=audit_summary(library, integer_only),
    )
    members = {LIBRARY: library, GRAPH: graph.to_bytes(), NOISE: law.to_bytes()}
    members |= {f"certificate/{name}.bin": table for name, table in tables.items()}
    written = write_artifact(output, manifest, members)
    texts = {"relax": built.module.script, "tir": lambda: _tir(built.module), "asm": built.assembly}
    for kind in dump:
        Path(f"{os.fspath(output)}.{kind}.txt").write_text(texts[kind]())
    return written


@dataclass(frozen=True)
class _Built:
    """A compiled module. assembly: writes its machine code as text."""

    module: tvm.IRModule
    library: bytes
    assembly: Callable[[], str]


def _build(graph: IntegerGraph, plan: Plan, device: Target | CudaTarget, linker: Linker) -> _Built:
    if isinstance(device, CudaTarget):
        module = lower_cuda(graph, plan, device_target(device))
        executable = compile_cuda(module, device)
        return _Built(module, link_cuda(executable, device, linker), lambda: cuda_source(executable))
    module = lower(graph, plan)
    executable = compile_module(module, device)
    return _Built(module, link(executable, linker), lambda: assembly(executable))


def audit_summary(library: bytes, required: bool) -> dict[str, object] | None:
    """What the manifest says of the machine code; None where no disassembler reads it and none is required to.

    Raises AuditError for a finding, and what ``audit_library`` raises, where it is required.
    """
    try:
        audit = audit_library(library)
    except (MissingDependencyError, ArtifactError):
        if required:
            raise
        return None
    if required and not audit.clean:
        raise AuditError(f"not integer-only: {audit.findings[0]}; nothing was written")
    return audit.summary()


def _layers(graph: IntegerGraph, plan: Plan) -> list[dict[str, object]]:
    """What the per-layer view knows: arena offsets of every kernel's operands and result, and the result's form."""
    return [
        {
            "name": step.name,
            "node": type(node).__name__,
            "kernel": step.kernel.name,
            "schedule": step.kernel.schedule and asdict(step.kernel.schedule),
            "operands": list(step.operands),
            "offset": step.result,
            "shape": list(info.shape),
            "dtype": info.dtype,
            "stride": step.layout.stride,
        }
        for step, node, info in zip(plan.steps, graph.nodes, graph.info, strict=True)
    ]


def _tir(module: tvm.IRModule) -> str:
    return "\n".join(f.script() for f in module.functions.values() if isinstance(f, tvm.tirx.PrimFunc))
