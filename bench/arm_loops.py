"""What ARM's inner loops are made of: the instructions that LLVM wrote for one convolution, without a board.

    python bench/arm_loops.py [TARGET]...

For each target, the busiest loop of a 3x3 convolution of 64 channels: its instructions, how many of them multiply, sum
pairs, load or arrange operands, how many touch the stack, and multiply-adds an instruction.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import numpy as np
import tvm
from tvm import tirx

from intcert.cli.output import console, table
from intcert.compile.graph import IntegerGraph
from intcert.compile.library import tvm_target
from intcert.compile.lower import lower
from intcert.compile.plan import make_plan
from intcert.runtime.noise import noise_law
from intcert.targets import Target, arm, find

#: What the products of each unit look like, and how many multiply-adds one has.
PRODUCTS = {
    "vmlal": (r"vm(ull|lal)\.s8\s", 8),
    "smlal": (r"sm(ull|lal)2?\s+v", 8),
    "sdot": (r"sdot\s", 16),
    "usdot": (r"(us|su)dot\s", 16),
    "usmmla": (r"usmmla\s", 32),
}
KINDS = {"sums": r"(sadalp|vpadal)", "loads": r"(ld|vld)", "arranged": r"(dup|vdup|zip|ext|mov\s+v)"}
STACK = re.compile(r"\bsp\b")
CALL = re.compile(r"(blx?|svc)\s")


def inner_loops(text: str) -> list[list[str]]:
    """Instructions of the loops that have no loop inside, from LLVM's assembly."""
    lines = [line.strip() for line in text.splitlines() if line.startswith(("\t", ".LBB"))]
    labels = {line.partition(":")[0]: i for i, line in enumerate(lines) if line.startswith(".LBB")}
    branch = re.compile(r"(?:b\.?\w\w|cbn?z|tbn?z)\s.*?(\.LBB\w+)$")
    found = [(labels[m[1]], i) for i, line in enumerate(lines) if (m := branch.match(line)) and m[1] in labels]
    loops = [(first, last) for first, last in found if first < last]
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[line for line in lines[first + 1 : last + 1] if line[0] not in ".@/"] for first, last in innermost]


def product_loops(graph: IntegerGraph, target: Target) -> list[list[str]]:
    """The inner loops of a graph's convolutions: those with products of the target's units."""
    plan = make_plan(graph, noise_law("0.25"), target, 1)
    kernels = {step.kernel.name.replace(".", "_") for step in plan.steps}
    functions = {
        name: function
        for name, function in lower(graph, plan).functions.items()
        if isinstance(function, tirx.PrimFunc) and name.name_hint.startswith((*kernels, "network", "layers"))
    }
    text = tvm.compile(tvm.IRModule(functions), tvm_target(target)).mod.inspect_source("asm")
    units = [unit.name for unit in (target.dot, target.matrix) if unit]
    pattern = re.compile("|".join(PRODUCTS[unit][0] for unit in units))
    return [loop for loop in inner_loops(text) if any(pattern.match(line) for line in loop)]


def example() -> IntegerGraph:
    """A 3x3 convolution of 64 channels on 8x8 pixels, with weights from -127 to 127."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "compile"))
    from random_models import convolution_graph

    graph = convolution_graph(5, "q15", (8, 8, 64), 64, (3, 3))
    np.maximum(graph.nodes[1].weight, -127, out=graph.nodes[1].weight)
    return graph


@click.command()
@click.argument("names", metavar="[TARGET]...", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Print the table for the targets named, or for all."""
    rows = []
    for target in [find(name) for name in names] or arm.TARGETS:
        unit = (target.matrix or target.dot).name
        pattern, multiply_adds = PRODUCTS[unit]

        def count(loop: list[str], expression: str) -> int:
            return sum(bool(re.match(expression, line)) for line in loop)

        # Of loops that LLVM unrolled differently, the tightest.
        loops = [loop for loop in product_loops(example(), target) if count(loop, pattern)]
        loop = max(loops, key=lambda loop: count(loop, pattern) / len(loop))
        products = count(loop, pattern)
        rows.append(
            (
                target.name,
                unit,
                len(loop),
                products,
                *(count(loop, expression) for expression in KINDS.values()),
                sum(bool(STACK.search(line)) for line in loop),
                f"{products * multiply_adds / len(loop):.1f}",
            )
        )
    columns = ("target", "unit", "instructions", "products", *KINDS, "stack", "MAC/instruction")
    console().print(table(columns, rows, right=range(2, len(columns))))


if __name__ == "__main__":
    main()
