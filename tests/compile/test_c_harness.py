"""The program of C computes what a session computes, row for row of a ledger, and refuses what a command refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from emulation import QEMU, require_board
from test_arm import CPU
from test_golden import DOCUMENT, IMAGES, load_graph
from test_networks import program as program_of

from intcert import targets
from intcert.compile.audit import x86
from intcert.compile.audit.disassemble import find_disassembler
from intcert.compile.build import compile_artifact
from intcert.compile.c_harness import build_harness, c_string
from intcert.compile.frontend import import_program
from intcert.compile.graph import IntegerGraph
from intcert.compile.linker import find_linker
from intcert.runtime import certify, open_artifact
from intcert.runtime.certificate import CertificateParameters, certificate_table
from intcert.runtime.datasets import open_dataset
from intcert.runtime.errors import ArtifactError, AuditError, MissingDependencyError
from intcert.runtime.keys import format_key, image_key
from intcert.runtime.ledger import HEADER, LedgerRow, image_sha
from intcert.runtime.smoothing import radius_string

C_FILES = Path(__file__).parents[2] / "compile" / "c"
KEY = "0123456789abcdef"
STRICT = "-O2 -Wall -Wextra -Wpedantic -Wconversion -Wno-sign-conversion -Werror"

needs_make = pytest.mark.skipif(not (shutil.which("make") and shutil.which("gcc")), reason="make or gcc is missing")


def run(program: Path, *words: object) -> subprocess.CompletedProcess:
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False, timeout=120)


def answer(program: Path, *words: object) -> str:
    done = run(program, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def make(folder: Path, *words: str) -> Path:
    """Run the folder's Makefile with the machine's gcc, which must not have anything to complain about."""
    done = subprocess.run(["make", "CC=gcc", f"CFLAGS={STRICT}", *words], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "intcert"


def pairs(counts: np.ndarray) -> str:
    return ",".join(f"{label}:{count}" for label, count in enumerate(counts) if count)


@pytest.fixture(scope="module")
def folder(colour_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of the colour classifier for the weakest x86, with a table for 1,000 samples."""
    path = tmp_path_factory.mktemp("harness") / "colours-c"
    build_harness(colour_model, path, sources=True, target="x86", n=1000)
    return path


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    return make(folder)


@pytest.fixture(scope="module")
def raw(colour_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The colour images as files of bytes, in the order of the data set."""
    place = tmp_path_factory.mktemp("raw")
    files = []
    for number, sample in enumerate(open_dataset(f"folder:{colour_folder}")):
        files.append(place / f"{number}.raw")
        files[-1].write_bytes(sample.image.tobytes())
    return files


@needs_make
@pytest.mark.parametrize("target", [target.name for target in targets.runnable()])
def test_golden_counts(target: str, tmp_path: Path) -> None:
    build_harness(load_graph("q15"), tmp_path / "c", sources=True, target=target, sigma="0.25")
    program = make(tmp_path / "c")
    for case in (case for case in DOCUMENT["cases"] if case["scheme"] == "q15"):
        (tmp_path / "x").write_bytes(IMAGES[case["image"]].tobytes())
        found = answer(program, tmp_path / "x", "--key", case["key"], "--first", case["first"], "--n", case["samples"])
        assert found == pairs(np.sum(case["rows"], axis=0)) + "\n"


@needs_make
@pytest.mark.parametrize("rule", ["cp1", "kt:0.25"])
def test_ledger_rows_are_those_of_certify(
    rule: str, colour_model: Path, colour_artifact: Path, colour_folder: Path, raw: list[Path], tmp_path: Path
) -> None:
    radius = rule.removeprefix("kt:") if rule != "cp1" else None
    build_harness(colour_model, tmp_path / "c", sources=True, n=1000, radius=radius)
    program, run_key = make(tmp_path / "c"), 2**64 - 12345
    dataset, predicted = open_dataset(f"folder:{colour_folder}"), set()
    with open_artifact(colour_artifact, threads=1) as session:
        parameters = CertificateParameters(session.sigma, 8 * 8 * 3, n=1000, rule=rule)
        table = certificate_table(parameters, session.artifact.law)
        for number, sample in enumerate(dataset):
            idx = number * 0x30000001  # beyond 32 bits for the last ones
            words = ("--run-key", format_key(run_key), "--idx", idx, "--label", sample.label, "--ledger")
            row = LedgerRow.from_line(answer(program, raw[number], *words).removesuffix("\n"))
            certificate = certify(session, sample.image, image_key(run_key, idx), table)
            expected = LedgerRow(
                idx=idx,
                label=sample.label,
                predict=certificate.predict,
                time=row.time,
                sqradius=certificate.sqradius,
                image_sha=image_sha(sample.image),
                samples=(100, certificate.samples),
                counts=tuple((c, int(certificate.counts[c])) for c in np.flatnonzero(certificate.counts)),
                rule=rule,
                alpha="0.001",
                sigma="0.25",
                key=image_key(run_key, idx),
                graph=session.graph_hash,
                noise=session.noise_hash,
                target=session.target,
                device=row.device,
            )
            assert row == expected
            assert row.device
            predicted.add(row.predict)
    assert predicted == {-1, 0, 1, 2}  # the grey image abstains


@needs_make
def test_text_for_people(program: Path, raw: list[Path]) -> None:
    lines = dict(line.split("\t") for line in answer(program, raw[0], "--key", KEY).splitlines())
    assert lines["predict"] == "0 blue"
    assert lines["counts"] == "0:1000"
    assert lines["radius"] == radius_string(int(lines["sqradius"]))
    assert (lines["samples"], lines["key"]) == ("100+1000", KEY)
    grey = dict(line.split("\t") for line in answer(program, raw[-1], "--key", KEY).splitlines())
    assert (grey["predict"], grey["sqradius"], grey["radius"]) == ("ABSTAIN", "-1", "0.000000")
    assert answer(program, "--header") == HEADER + "\n"
    assert "--run-key" in answer(program, "--help")


@needs_make
def test_without_a_key_the_program_draws_one(program: Path, raw: list[Path]) -> None:
    keys = {answer(program, raw[0]).split("key\t")[1] for _ in range(3)}
    assert len(keys) == 3


@needs_make
def test_ppm_files(program: Path, raw: list[Path], tmp_path: Path) -> None:
    pixels = raw[3].read_bytes()
    expected = answer(program, raw[3], "--key", KEY, "--first", 7, "--n", 100)
    good = (b"P6\n8 8\n255\n", b"P6 # a comment 9\n8\t8 255 ")
    for number, header in enumerate(good):
        (tmp_path / f"{number}.ppm").write_bytes(header + pixels)
        assert answer(program, tmp_path / f"{number}.ppm", "--key", KEY, "--first", 7, "--n", 100) == expected
    bad = (b"P5\n8 8\n255\n", b"P6\n8 9\n255\n", b"P6\n8 8\n65535\n", b"P6\n8 8\n", b"P6\n8 8 255\n\n", b"x", b"P6 #")
    for header in bad:
        (tmp_path / "bad.ppm").write_bytes(header + pixels)
        refused(program, tmp_path / "bad.ppm", "--key", KEY, saying=("bad.ppm", "192 bytes"))


def refused(program: Path, *words: object, saying: tuple[str, ...], code: int = 4) -> None:
    done = run(program, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    for word in saying:
        assert word in done.stderr


@needs_make
@pytest.mark.parametrize(
    ("words", "saying"),
    [
        ((), "no image"),
        (("IMAGE", "IMAGE"), "one image at a time"),
        (("IMAGE", "--keys", KEY), "--keys"),
        (("IMAGE", "--key"), "--key needs a value"),
        (("IMAGE", "--key", KEY[1:]), KEY[1:]),
        (("IMAGE", "--key", KEY + "0"), KEY + "0"),
        (("IMAGE", "--key", KEY.upper()), "lower case"),
        (("IMAGE", "--key", KEY, "--run-key", KEY, "--idx", "1"), "give one of them"),
        (("IMAGE", "--run-key", KEY), "--idx"),
        (("IMAGE", "--run-key", KEY, "--idx", "-1"), "-1"),
        (("IMAGE", "--run-key", KEY, "--idx", str(2**63)), str(2**63)),
        (("IMAGE", "--key", KEY, "--n", "5"), "--first"),
        (("IMAGE", "--first", "0", "--n", "5"), "--key"),
        (("IMAGE", "--key", KEY, "--first", "0", "--n", "0"), "--n 0"),
        (("IMAGE", "--key", KEY, "--first", "", "--n", "1"), "--first"),
        (("IMAGE", "--key", KEY, "--ledger", "--idx", "0"), "--label"),
        (("IMAGE", "--key", KEY, "--ledger", "--idx", "0", "--label", "3"), "--label 3"),
        (("NOWHERE",), "NOWHERE"),
        (("/",), "cannot be read"),
    ],
)
def test_refusals(words: tuple[str, ...], saying: str, program: Path, raw: list[Path]) -> None:
    refused(program, *(raw[0] if word == "IMAGE" else word for word in words), saying=(saying,))


@needs_make
def test_no_table_no_certificate(tmp_path: Path) -> None:
    build_harness(load_graph("q15"), tmp_path / "c", sources=True, target="x86", sigma="0.25")
    (tmp_path / "x").write_bytes(IMAGES[0].tobytes())
    refused(make(tmp_path / "c"), tmp_path / "x", saying=("--n",))


@needs_make
def test_a_processor_without_the_instructions(folder: Path, raw: list[Path], tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "c")
    header = tmp_path / "c" / "model.h"
    header.write_text(header.read_text().replace('{"avx2", 0}', '{"avx2", "avx3", 0}'))
    (tmp_path / "c" / "cpu.o").unlink(missing_ok=True)
    refused(make(tmp_path / "c"), raw[0], saying=("avx3", "x86"), code=3)


@needs_make
@pytest.mark.skipif(not shutil.which("qemu-x86_64-static"), reason="qemu-x86_64-static is missing")
def test_an_emulated_processor_without_avx2(program: Path, raw: list[Path]) -> None:
    done = subprocess.run(["qemu-x86_64-static", "-cpu", "Nehalem", program, raw[0]], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert "lacks avx2" in done.stderr


@pytest.fixture(scope="module")
def lenet_cases() -> tuple[IntegerGraph, list[tuple[np.ndarray, np.ndarray]]]:
    """A LeNet with random weights, and three images with what a session counts on this machine."""
    graph = import_program(program_of("lenet"), scheme="auto")
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, graph.input_shape).astype(np.uint8) // (1 + 3 * i) for i in range(3)]
    with tempfile.TemporaryDirectory() as place:
        compile_artifact(graph, Path(place, "a"), sigma="0.5")
        with open_artifact(Path(place, "a"), threads=1) as session:
            counts = [session.counts(image, int(KEY, 16), 50, 128).sum(axis=0) for image in images]
    assert np.count_nonzero(np.sum(counts, axis=0)) > 1
    return graph, list(zip(images, counts, strict=True))


@pytest.mark.slow  # ziglang compiles its C library once a machine
@pytest.mark.parametrize("name", ["arm-a7", "arm-a15", "arm-a72", "arm-a76"])
def test_boards(name: str, lenet_cases: tuple[IntegerGraph, list], tmp_path: Path) -> None:
    """Emulated processors count what x86 does, and say so where they lack an instruction."""
    require_board()
    target = targets.find(name)
    board = (QEMU[target.triple.partition("-")[0]], "-cpu", CPU[name])
    build_harness(load_graph("q15"), tmp_path / "resnet", target=target, sigma=DOCUMENT["sigma"])
    for case in (case for case in DOCUMENT["cases"] if case["scheme"] == "q15"):
        (tmp_path / "x").write_bytes(IMAGES[case["image"]].tobytes())
        words = ("x", "--key", case["key"], "--first", case["first"], "--n", 128)
        assert emulated(board, tmp_path, "resnet", *words) == (0, pairs(np.sum(case["rows"][:2], axis=0)) + "\n", "")
    graph, cases = lenet_cases
    build_harness(graph, tmp_path / "lenet", target=target, sigma="0.5")
    for image, counts in cases:
        (tmp_path / "x").write_bytes(image.tobytes())
        words = ("x", "--key", KEY, "--first", 50, "--n", 128)
        assert emulated(board, tmp_path, "lenet", *words) == (0, pairs(counts) + "\n", "")
    if "asimddp" in target.cpu_flags:
        code, output, error = emulated((board[0], "-cpu", "cortex-a72"), tmp_path, "lenet", *words)
        assert (code, output) == (3, "")
        assert "lacks asimddp" in error


def emulated(board: tuple[str, ...], folder: Path, program: str, *words: object) -> tuple[int, str, str]:
    command = [*board, f"./{program}", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_every_instruction_set_of_a_target_is_known_to_the_program() -> None:
    known = set(re.findall(r'\{"(\w+)",', (C_FILES / "cpu.c").read_text()))
    assert {flag for target in targets.TARGETS if target.kind == "llvm" for flag in target.cpu_flags} <= known


RADIUS_MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "intcert.h"
int main(int n, char **m)
{
    for (int i = 1; i < n; i++)
        printf("%u\\n", (unsigned)intcert_radius(atoi(m[i])));
}
"""


@needs_make
def test_the_library_in_a_program_of_ones_own(folder: Path, tmp_path: Path) -> None:
    make(folder, "libintcert.a")
    (tmp_path / "radius.c").write_text(RADIUS_MAIN)
    command = ["gcc", f"-I{folder}", tmp_path / "radius.c", folder / "libintcert.a", "-o", tmp_path / "radius"]
    subprocess.run(command, check=True)
    rng = np.random.default_rng(0)
    squares = [
        -1,
        0,
        1,
        2,
        65024,
        65025,
        65026,
        2**31 - 1,
        *map(int, rng.integers(0, 2**31, 300) >> rng.integers(0, 31, 300)),
    ]
    found = answer(tmp_path / "radius", *squares).split()
    assert found == [str(int(radius_string(m).replace(".", ""))) for m in squares]


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is missing")
def test_the_object_needs_nothing_of_tvm(folder: Path) -> None:
    names = subprocess.run(["nm", "--undefined-only", folder / "model.o"], capture_output=True, text=True, check=True)
    assert set(names.stdout.split()) - {"U"} <= {"memcpy", "memset"}


@pytest.mark.parametrize("name", ["x86", "x86-amx", "arm-a7", "arm-a76"])
def test_its_kernels_are_audited(name: str, colour_model: Path, tmp_path: Path) -> None:
    try:
        find_linker(targets.find(name))
        find_disassembler({"x86": "x86-64", "arm-a7": "arm"}.get(name.replace("-amx", ""), "aarch64"))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    audit = build_harness(colour_model, tmp_path / "c", sources=True, target=name, integer_only=True).audit
    assert audit["clean"] is True
    assert audit["codes"][0]["instructions"] > 1000


def test_a_finding_in_its_kernels(colour_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a list that lacks what every build needs."""
    monkeypatch.delitem(x86._KINDS, "vpmaddwd")
    with pytest.raises(AuditError, match="not integer-only"):
        build_harness(colour_model, tmp_path / "c", sources=True, target="x86", integer_only=True)
    assert build_harness(colour_model, tmp_path / "c", sources=True, target="x86").audit["clean"] is False


def test_the_same_build_gives_the_same_bytes(folder: Path, colour_model: Path, tmp_path: Path) -> None:
    build_harness(colour_model, tmp_path / "again", sources=True, target="x86", n=1000)
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name


def test_class_names_cannot_leave_their_strings() -> None:
    assert c_string('a"b\\??/\nü') == '"a\\042b\\134\\077\\077\\057\\012\\303\\274"'


def test_without_a_compiler(colour_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"x86_64-linux-gnu-gcc.*intcert\[cross\]"):
        build_harness(colour_model, tmp_path / "p", target="x86")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_leaves_nothing_behind(
    colour_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "x86_64-linux-gnu-gcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no space >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setenv("PATH", f"{broken.parent}:/bin:/usr/bin")
    with pytest.raises(ArtifactError, match="no space"):
        build_harness(colour_model, tmp_path / "p", target="x86")
    assert list(tmp_path.iterdir()) == [broken.parent]


def test_output_that_cannot_be_written(colour_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        build_harness(colour_model, tmp_path / "none" / "c", sources=True, target="x86")
    (tmp_path / "c").mkdir()
    with pytest.raises(ArtifactError, match="exists"):
        build_harness(colour_model, tmp_path / "c", sources=True, target="x86")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
