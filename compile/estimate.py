"""Cycles of every layer on a named core, estimated without the core.

Every kernel is executed once under QEMU, which logs the straight runs of instructions between branches; LLVM's machine
model of the core (llvm-mca) tells how many cycles each run takes when it is repeated. The product, summed, is the
estimate. It knows the core's pipelines and latencies; of caches, branch prediction and memory it knows nothing: every
load hits the first-level cache.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from intcert.compile.build import Model, Sources
from intcert.compile.c_harness import c_compiler, link_program, write_sources
from intcert.compile.database import Database, LayerEntry
from intcert.compile.graph import IntegerGraph
from intcert.compile.layer import layers_of
from intcert.compile.plan import Plan, make_plan
from intcert.runtime.artifact import Artifact
from intcert.runtime.errors import MissingDependencyError, ModelError
from intcert.runtime.smoothing import smoothing_width
from intcert.targets import Target, find

_EMULATORS = {"aarch64": "qemu-aarch64-static", "arm": "qemu-arm-static"}
_NEWEST_LLVM, _OLDEST_LLVM = 40, 14
_ITERATIONS = 100  # of a run in the model: enough for its steady state

#: Products of one vector instruction, by name and the form of its result.
_PRODUCTS = (
    (re.compile(r"(?:s|u|us|su)dot\s+v\d+\.4s"), 16),
    (re.compile(r"(?:s|u|us)mmla\s+v\d+\.4s"), 32),
    (re.compile(r"[su]m(?:ul|la)l2?\s+v\d+\.8h|vm(?:ul|la)l\.[su]8\s"), 8),
    (re.compile(r"[su]adalp\s+v\d+\.4s|vpadal\.[su]16\s"), 0),  # sums of products: part of the work
)

Run = tuple[str, ...]  #: instructions up to a branch

_CONDITION = "eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le"
_BRANCH = re.compile(rf"(?:bl?x?|blr?|br|ret|cbn?z|tbn?z|b\.?(?:{_CONDITION})|(?:pop|ldm\w*|ldr).*pc\b.*)(?:\s|$)")
_LOGGED = re.compile(r"0x([0-9a-f]+):\s+[0-9a-f]+\s+(.*)")
_TRACED = re.compile(r"Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]+)/")
_DISASSEMBLED = re.compile(r"\s*([0-9a-f]+):\s+(.*)")


@dataclass(frozen=True)
class LayerEstimate:
    """One kernel. cycles: an image; products: multiplications that the dot instructions carry out for an image,
    padding included; inner_cycles, inner_limit: cycles of one turn of the loop that does most of them, and of its
    products alone where nothing but the number of multipliers limits them (0 where there are no products)."""

    name: str
    kernel: str
    cycles: float
    products: float
    inner_cycles: float = 0.0
    inner_limit: float = 0.0

    @property
    def inner_ratio(self) -> float:
        """How many times longer the inner loop takes than its products alone; 0 where there are none."""
        return self.inner_cycles / self.inner_limit if self.inner_limit else 0.0


@dataclass(frozen=True)
class Estimate:
    """What llvm-mca thinks of a network. llvm: the version of its model; layers: noise, the network, argmax."""

    core: str
    target: str
    llvm: str
    layers: tuple[LayerEstimate, ...]

    @property
    def cycles(self) -> float:
        """Cycles of one noisy image."""
        return sum(layer.cycles for layer in self.layers)


def estimate(artifact: Artifact, core: str) -> Estimate:
    """Estimate the kernels of an artifact for an ARM target on ``core``, as LLVM names it (``cortex-a55``).

    Raises:
        MissingDependencyError: llvm-mca, llvm-objdump, QEMU or a C compiler is missing.
        ModelError: the artifact is for no ARM processor, or LLVM has no model of the core.
    """
    manifest = artifact.manifest
    target = find(manifest.target)
    architecture = target.triple.partition("-")[0]
    if architecture not in _EMULATORS:
        raise ModelError(f"{artifact.path} is for {target.name}; estimates are for ARM targets, measure this one")
    emulator = shutil.which(_EMULATORS[architecture])
    if emulator is None:
        raise MissingDependencyError("estimates need QEMU's user mode; install it: apt install qemu-user-static")
    mca, objdump = _llvm_tools()
    _check_core(mca, target.triple, core)
    compiler = c_compiler(target)
    graph, law = IntegerGraph.from_bytes(artifact.graph), artifact.law
    plan = make_plan(graph, law, target, manifest.chunk, _schedules(artifact, graph, target))
    sources = Sources(Model(graph, graph.digest), law, smoothing_width(law.sigma_steps, graph.dimension), target, None)
    with tempfile.TemporaryDirectory(prefix="intcert-") as name:
        folder = Path(name)
        write_sources(folder, sources, plan)
        program = link_program(folder, compiler, target, symbols=True)
        calls = count_calls(_execute(program, emulator, plan, graph), _functions(objdump, program))
    names = ["noise", *(step.name for step in plan.steps), "argmax and count"]
    kernels = [plan.noise, *plan.steps, plan.count]
    if len(calls) != len(kernels):
        raise RuntimeError(f"{len(calls)} kernel calls were logged instead of {len(kernels)}")
    model = _Model(mca, target, core, calls)
    layers = tuple(
        model.layer(name, step.kernel.name, call, plan.batch)
        for name, step, call in zip(names, kernels, calls, strict=True)
    )
    return Estimate(core, target.name, model.version, layers)


def _schedules(artifact: Artifact, graph: IntegerGraph, target: Target) -> Database:
    """The schedules that the artifact was compiled with."""
    layers = zip(layers_of(graph, artifact.manifest.chunk, target), artifact.manifest.layers, strict=True)
    chosen = {layer.workload: facts.get("schedule") for layer, facts in layers}
    known = {workload: LayerEntry(0.0, 0.0, schedule) for workload, schedule in chosen.items() if schedule}
    return Database(target.name, {}, {}, known)


class _Model:
    """What llvm-mca says about all runs of instructions at once."""

    def __init__(self, mca: str, target: Target, core: str, calls: Sequence[Counter[Run]]) -> None:
        self._core = core
        features = [f"-mattr={','.join(target.mattr)}"] if target.mattr else []
        command = [mca, f"-mtriple={target.triple}", f"-mcpu={core}", *features]
        self._command = [*command, f"-iterations={_ITERATIONS}", "-json"]
        runs = {run for call in calls for run in call}
        self._cycles = dict(zip(runs, self._ask(runs, "TotalCycles"), strict=True))
        self.version = _version(mca)

    def layer(self, name: str, kernel: str, call: Counter[Run], batch: int) -> LayerEstimate:
        """One call, for ``batch`` images, as cycles of one image."""
        cycles = sum(count * self._cycles[run] / _ITERATIONS for run, count in call.items())
        done = {run: count * sum(products(line) or 0 for line in run) for run, count in call.items()}
        inner = max(done, key=done.__getitem__)
        found = LayerEstimate(name, kernel, cycles / batch, sum(done.values()) / batch)
        if not done[inner]:
            return found
        limit = self._ask([tuple(line for line in inner if products(line) is not None)], "BlockRThroughput")
        return replace(found, inner_cycles=self._cycles[inner] / _ITERATIONS, inner_limit=limit[0])

    def _ask(self, runs: Iterable[Run], figure: str) -> list[float]:
        lines = [line for run in runs for line in ("# LLVM-MCA-BEGIN", *run, "# LLVM-MCA-END")]
        done = subprocess.run(self._command, input="\n".join([*lines, ""]), capture_output=True, text=True)
        if done.returncode:
            reason = " ".join(done.stderr.split())[:120]
            raise ModelError(f"{self._command[0]} cannot model these kernels on {self._core}: {reason}")
        return [region["SummaryView"][figure] for region in json.loads(done.stdout)["CodeRegions"]]


def products(line: str) -> int | None:
    """Multiplications of an instruction; 0 for one that sums products, None for one that does neither."""
    return next((count for pattern, count in _PRODUCTS if pattern.match(line)), None)


def _execute(program: Path, emulator: str, plan: Plan, graph: IntegerGraph) -> Path:
    """Run one chunk of samples; the log of what was translated and executed."""
    log, image = program.with_suffix(".log"), program.with_suffix(".image")
    image.write_bytes(np.full(graph.dimension, 128, np.uint8).tobytes())
    logging = ["-cpu", "max", "-d", "in_asm,exec,nochain", "-D", str(log)]
    words = ["--key", "0" * 16, "--first", "0", "--n", str(plan.batch)]
    subprocess.run([emulator, *logging, program, image, *words], check=True, capture_output=True)
    return log


def count_calls(log: Path, functions: Mapping[str, Mapping[int, str]]) -> list[Counter[Run]]:
    """How often each run of instructions was executed, for each call of a kernel in turn.

    functions: the program's instructions by function and address. What a kernel calls belongs to it.

    Raises ModelError where an instruction is unknown to the disassembler.
    """
    text = {address: line for function in functions.values() for address, line in function.items()}
    entries = {min(function) for name, function in functions.items() if name.startswith("kernel_body")}
    caller = functions["intcert_counts"]
    calls: list[Counter[Run]] = []
    runs: dict[int, Run] = {}
    within, begin, so_far = False, None, []
    for block in _executed(log):
        if block[0] in entries:
            calls.append(Counter())
            within = True
        elif block[0] in caller:
            within = False
        if not within:
            continue
        if begin is None:
            begin = block[0]
        if begin not in runs:
            so_far += [text[address] for address in block]
        if _BRANCH.match(text[block[-1]]):
            if begin not in runs:
                if not all(so_far):
                    raise ModelError(f"llvm-objdump cannot decode the code at {begin:#x}; install a newer LLVM")
                runs[begin] = tuple(so_far)
            calls[-1][runs[begin]] += 1
            begin, so_far = None, []
    return calls


def _executed(log: Path) -> Iterator[Sequence[int]]:
    """The addresses of the instructions of each block of QEMU's, in the order of execution."""
    blocks: dict[int, list[int]] = {}
    fresh: list[int] = []
    with log.open() as lines:
        for line in lines:
            if found := _TRACED.match(line):
                yield blocks[int(found[1], 16)]
            elif line.startswith("IN:"):
                fresh = []
            elif found := _LOGGED.match(line):
                fresh.append(int(found[1], 16))
                blocks[fresh[0]] = fresh


def _functions(objdump: str, program: Path) -> dict[str, dict[int, str]]:
    """The program's instructions by function and address, as an assembler reads them."""
    command = [objdump, "--disassemble", "--no-show-raw-insn", "--mattr=+all", str(program)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    functions: dict[str, dict[int, str]] = {}
    for line in listing.splitlines():
        if found := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            functions[found[1]] = {}
        elif functions and (found := _DISASSEMBLED.match(line)):
            readable = re.sub(r"(#|=)?(0x)?[0-9a-f]+ <[^>]*>", ".Lelsewhere", found[2])
            functions[next(reversed(functions))][int(found[1], 16)] = re.split(r"//|@|<", readable)[0].strip()
    return {name: function for name, function in functions.items() if function}


def _llvm_tools() -> tuple[str, str]:
    """The newest llvm-mca and the llvm-objdump of the same release."""
    for version in (*(f"-{number}" for number in range(_NEWEST_LLVM, _OLDEST_LLVM - 1, -1)), ""):
        tools = [shutil.which(f"{tool}{version}") for tool in ("llvm-mca", "llvm-objdump")]
        if all(tools):
            return tools[0], tools[1]
    raise MissingDependencyError("estimates need llvm-mca and llvm-objdump; install LLVM's tools: apt install llvm")


def _check_core(mca: str, triple: str, core: str) -> None:
    command = [mca, f"-mtriple={triple}", f"-mcpu={core}"]
    probe = "mov r0, r1\n" if triple.startswith("arm") else "mov x0, x1\n"
    done = subprocess.run(command, input=probe, capture_output=True, text=True)
    if done.returncode or "not a recognized processor" in done.stderr:
        raise ModelError(f"{mca} has no machine model of {core!r}; name a core like cortex-a55 or cortex-a76")


def _version(tool: str) -> str:
    text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"LLVM version (\S+)", text)[1]
