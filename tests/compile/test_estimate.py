"""Estimated cycles: how often which instructions were executed, which of them multiply, and what comes out."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from emulation import require_board
from test_golden import load_graph

from intcert.compile import estimate as module
from intcert.compile.build import compile_artifact
from intcert.compile.estimate import count_calls, estimate, products
from intcert.runtime.artifact import read_artifact
from intcert.runtime.errors import MissingDependencyError, ModelError

LOG = """----------------
IN: intcert_counts
0x00001000:  94000001  bl       #0x2000

Trace 0: 0x7f [00/0000000000001000/00/00] intcert_counts
----------------
IN: kernel_body
0x00002000:  91000400  add      x0, x0, #1
0x00002004:  54000001  b.ne     #0x2004

Trace 0: 0x7f [00/0000000000002000/00/00] kernel_body
----------------
IN: kernel_body
0x00002004:  54000001  b.ne     #0x2004

Trace 0: 0x7f [00/0000000000002004/00/00] kernel_body
Trace 0: 0x7f [00/0000000000002004/00/00] kernel_body
----------------
IN: kernel_body
0x00002008:  d503201f  nop

Trace 0: 0x7f [00/0000000000002008/00/00] kernel_body
----------------
IN: kernel_body
0x0000200c:  d65f03c0  ret

Trace 0: 0x7f [00/000000000000200c/00/00] kernel_body
----------------
IN: intcert_counts
0x00001004:  94000001  bl       #0x2000

Trace 0: 0x7f [00/0000000000001004/00/00] intcert_counts
Trace 0: 0x7f [00/0000000000002000/00/00] kernel_body
Trace 0: 0x7f [00/0000000000002008/00/00] kernel_body
Trace 0: 0x7f [00/000000000000200c/00/00] kernel_body
"""
FUNCTIONS = {
    "intcert_counts": {0x1000: "bl .Lelsewhere", 0x1004: "bl .Lelsewhere"},
    "kernel_body": {0x2000: "add x0, x0, #1", 0x2004: "b.ne .Lelsewhere", 0x2008: "nop", 0x200C: "ret"},
}


def test_runs_are_counted_call_by_call(tmp_path: Path) -> None:
    """A run goes on where QEMU ended a block without a branch (here after the nop)."""
    (tmp_path / "log").write_text(LOG)
    whole, turn, end = ("add x0, x0, #1", "b.ne .Lelsewhere"), ("b.ne .Lelsewhere",), ("nop", "ret")
    expected = [Counter({whole: 1, turn: 2, end: 1}), Counter({whole: 1, end: 1})]
    assert count_calls(tmp_path / "log", FUNCTIONS) == expected


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("sdot\tv1.4s, v2.16b, v3.4b[1]", 16),
        ("udot\tv1.4s, v2.16b, v3.16b", 16),
        ("usdot\tv1.4s, v2.16b, v3.16b", 16),
        ("sudot\tv0.4s, v24.16b, v7.4b[0]", 16),
        ("smmla\tv0.4s, v1.16b, v2.16b", 32),
        ("smull\tv0.8h, v1.8b, v2.8b", 8),
        ("smlal2\tv0.8h, v1.16b, v2.16b", 8),
        ("sadalp\tv0.4s, v1.8h", 0),
        ("vmlal.s8\tq0, d2, d3", 8),
        ("vmull.u8\tq0, d2, d3", 8),
        ("vpadal.s16\tq0, q1", 0),
        ("smull\tx0, w1, w2", None),
        ("smlal\tv0.4s, v1.4h, v2.4h", None),
        ("vmull.s16\tq0, d2, d3", None),
        ("ldr\tq0, [x1]", None),
    ],
)
def test_products_of_an_instruction(line: str, count: int | None) -> None:
    assert products(line) == count


@pytest.fixture
def artifact(colour_model: Path, tmp_path: Path):
    require_board()
    compile_artifact(colour_model, tmp_path / "a55", target="arm-a55")
    return read_artifact(tmp_path / "a55")


def require_llvm() -> None:
    try:
        module._llvm_tools()
    except MissingDependencyError as missing:
        pytest.skip(str(missing))


def test_refusals(artifact, colour_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if read_artifact(colour_artifact).manifest.target.startswith("x86"):
        with pytest.raises(ModelError, match="estimates are for ARM"):
            estimate(read_artifact(colour_artifact), "cortex-a55")
    require_llvm()
    with pytest.raises(ModelError, match="'cortex-a5500'"):
        estimate(artifact, "cortex-a5500")
    emulator = shutil.which("qemu-aarch64-static")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="qemu-user-static"):
        estimate(artifact, "cortex-a55")
    (tmp_path / "qemu-aarch64-static").symlink_to(emulator)
    with pytest.raises(MissingDependencyError, match="llvm-mca") as caught:
        estimate(artifact, "cortex-a55")
    assert caught.value.exit_code == 5


@pytest.mark.slow
@pytest.mark.parametrize("core", ["cortex-a55", "cortex-a76"])
def test_resnet20(core: str, tmp_path: Path) -> None:
    require_board()
    require_llvm()
    found = {}
    for name, target, scheme in (("sdot", f"arm-{core[7:]}", "q15"), ("none", "arm-a53", "q15")):
        compile_artifact(load_graph(scheme), tmp_path / name, target=target, sigma="0.25")
        found[name] = estimate(read_artifact(tmp_path / name), core)
    layers = {layer.name: layer for layer in found["sdot"].layers}
    assert layers["relu_1"].products == 32 * 32 * 16 * 9 * 16
    assert layers["relu_7"].products == 16 * 16 * 32 * 9 * 16
    assert layers["noise"].products == 0 < layers["noise"].cycles
    # The sums alone bound a layer from below; padding and the rest of the kernel come on top.
    for name, layer in layers.items():
        if layer.products > 10**6:
            assert layer.inner_ratio < 1.5, name
            assert layer.cycles > layer.products / 16 * (0.5 if core == "cortex-a76" else 1)
    assert found["none"].cycles > 2 * found["sdot"].cycles
