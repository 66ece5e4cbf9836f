"""The rooms of the repository and who may import whom (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("targets", "runtime", "compile", "train", "cli")

#: Prefixes of intcert modules that the modules of a room may import.
ALLOWED = {
    "targets": ("targets",),
    "runtime": ("runtime",),
    "compile": ("compile", "runtime", "targets"),
    "train": ("train", "runtime", "compile.quantizer"),
    "cli": ROOMS,
}

#: Packages that a room must not touch, not even inside a function.
FORBIDDEN = {
    "targets": ("torch", "torchao", "tvm"),
    "runtime": ("torch", "torchao"),
    "compile/reference": ("torch", "torchao", "tvm"),
}

MODULES = [(room, path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]

#: Files of the command line that others import only inside functions.
LOADED_LATE = ("output.py", "graph_table.py")
COMMANDS = [path for room, path in MODULES if room == "cli" and path.name not in LOADED_LATE]


def imported(path: Path, tree: ast.AST | None = None) -> set[str]:
    """Full names of everything a file imports, wherever in it; of ``from a import b`` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize(("room", "path"), MODULES, ids=[str(path.relative_to(ROOT)) for _, path in MODULES])
def test_a_module_imports_only_what_its_room_may(room, path):
    names = imported(path)
    ours = {name.removeprefix("intcert.") for name in names if name.startswith("intcert.")}
    assert {name for name in ours if not within(name, ALLOWED[room])} == set()
    for place, packages in FORBIDDEN.items():
        if path.is_relative_to(ROOT / place):
            assert {name for name in names if within(name, packages)} == set()


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_commands_import_inside_themselves(path):
    """So that the help is quick."""
    tree = ast.parse(path.read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = imported(path, ast.Module(body=top, type_ignores=[]))
    heavy = {name for name in names if within(name, ("torch", "tvm", "scipy", "rich", "PIL"))}
    light = ("intcert.cli.options", "intcert.cli.failure")
    assert heavy | {name for name in names if within(name, ("intcert",)) and not within(name, light)} == set()


def test_the_list_of_rooms_is_complete():
    with_code = {path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"}
    assert with_code == set(ROOMS)


def test_the_runtime_needs_neither_torch_nor_the_compiler():
    """A board installs the runtime alone: every module of it, imported in a fresh process."""
    modules = [
        ".".join(("intcert", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted((ROOT / "runtime").rglob("*.py"))
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(*sorted(m for m in sys.modules if m.partition('.')[0] in ('torch', 'torchao', 'tvm')"
        " or m.startswith('intcert.') and not m.startswith('intcert.runtime')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
