"""``intcert compile`` and ``intcert inspect``."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile

import pytest

from intcert.compile.build import load_model
from intcert.runtime import read_artifact
from intcert.runtime.datasets import open_dataset


def test_compile_writes_an_artifact_and_says_what_it_is(intcert, colour_model, tmp_path):
    output = tmp_path / "m.intcert"
    result = intcert("compile", colour_model, "--target", "x86", "--scheme", "q31", "--n", 1000, "-o", output)
    assert result.exit_code == 0, result.output
    manifest = read_artifact(output).manifest
    assert manifest.target == "x86"
    assert manifest.scheme == "q31"
    assert manifest.certificates == ("cp1",)
    assert manifest.class_names == ("blue", "green", "red")
    for text in (output, manifest.graph_hash, manifest.noise_hash, "0.25 on the [0, 1] scale = 63.75 pixel steps"):
        assert str(text) in result.stdout


def test_default_output_is_in_the_working_folder(intcert, colour_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert intcert("compile", colour_model, "--sigma", ".250").exit_code == 0
    assert os.listdir(tmp_path) == ["colours.intcert"]
    assert read_artifact("colours.intcert").manifest.sigma == "0.25"


def test_dumps_lie_beside_the_artifact(intcert, colour_model, tmp_path):
    output = tmp_path / "m.intcert"
    result = intcert("compile", colour_model, "-o", output, "--dump", "relax, tir,asm")
    assert result.exit_code == 0, result.output
    assert "R.call_tir" in (tmp_path / "m.intcert.relax.txt").read_text()
    assert "prim_func" in (tmp_path / "m.intcert.tir.txt").read_text()
    assert ".text" in (tmp_path / "m.intcert.asm.txt").read_text()


def test_sources_of_a_program_of_c(intcert, refused, colour_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = intcert("compile", colour_model, "--target", "x86", "--emit", "c-sources", "--n", 1000)
    assert result.exit_code == 0, result.output
    assert os.listdir(tmp_path) == ["colours-c"]
    assert {"model.o", "model.h", "main.c", "Makefile"} <= set(os.listdir("colours-c"))
    assert "cp1, 100+1,000 samples, alpha 0.001" in result.stdout
    refused("compile", colour_model, "--emit", "c-sources", saying=("colours-c exists",))
    refused("compile", colour_model, "--emit", "c-sources", "-o", "d", "--dump", "asm", saying=("--dump",))
    assert os.listdir(tmp_path) == ["colours-c"]


@pytest.mark.slow  # ziglang compiles its C library once a machine
def test_a_program_that_runs_alone_and_whose_ledger_is_counted_again(
    intcert, colour_model, colour_artifact, colour_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = intcert("compile", colour_model, "--target", "x86", "--emit", "c-harness", "--n", 1000)
    assert result.exit_code == 0, result.output
    assert os.listdir(tmp_path) == ["colours"]

    def run(*words):
        return subprocess.run(["./colours", *map(str, words)], env={}, capture_output=True, check=True).stdout

    rows = [run("--header")]
    for number, sample in enumerate(open_dataset(f"folder:{colour_folder}")):
        (tmp_path / "x").write_bytes(sample.image.tobytes())
        rows.append(run("x", "--run-key", "0" * 16, "--idx", number, "--label", sample.label, "--ledger"))
    (tmp_path / "run.tsv").write_bytes(b"".join(rows))
    result = intcert("replay", "run.tsv", colour_artifact, "--data", f"folder:{colour_folder}")
    assert result.exit_code == 0, result.output
    assert "7 rows, 7,700 samples: counts and certificates are equal" in result.stdout


def test_a_graph_file_compiles_to_the_same_graph(intcert, colour_model, tmp_path):
    graph = load_model(colour_model).graph
    source, output = tmp_path / "m.graph", tmp_path / "m.intcert"
    source.write_bytes(graph.to_bytes())
    assert intcert("compile", source, "--sigma", "0.25", "-o", output).exit_code == 0
    assert read_artifact(output).manifest.graph_hash == graph.digest
    assert intcert("compile", source, "--dry-run").exit_code == 0


def test_dry_run_shows_the_graph_and_writes_nothing(intcert, colour_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = intcert("compile", colour_model, "--dry-run")
    assert result.exit_code == 0
    assert "Conv2d" in result.stdout
    assert "5,184" in result.stdout  # 8 * 8 pixels, 3 * 3 window, 3 * 3 channels
    assert os.listdir(tmp_path) == []


def test_dry_run_lists_every_problem(intcert, tmp_path):
    torch = pytest.importorskip("torch")
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the quantize operators

    code = (1 / 127, 0, -128, 127, torch.int8)

    class Unsupported(torch.nn.Module):
        def forward(self, x):
            stored = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, *code)
            y = torch.ops.quantized_decomposed.dequantize_per_tensor.default(stored, *code)
            return torch.flatten(torch.sin(y) + torch.nn.functional.gelu(y), 1)

    path = tmp_path / "unsupported.pt2"
    torch.export.save(torch.export.export(Unsupported(), (torch.rand(1, 3, 8, 8),)), path)
    result = intcert("compile", path, "--dry-run")
    assert result.exit_code == 4
    sine, gelu = result.stdout.splitlines()
    assert "sin" in sine
    assert "gelu" in gelu
    assert result.stderr == f"error: {path} cannot be compiled: 2 problems, listed above\n"


def test_a_file_that_is_no_program_is_refused(refused, tmp_path):
    path = tmp_path / "notes.pt2"
    path.write_text("not a program")
    refused("compile", path, "--sigma", "0.25", saying=(path, ".pt2"))
    refused("inspect", path, saying=(path,))
    refused("compile", tmp_path / "notes.txt", saying=("notes.txt", ".pt2"))
    refused("compile", tmp_path / "missing.pt2", "--sigma", "0.25", saying=("missing.pt2",))


def test_an_archive_of_something_else_is_refused_in_one_line(tmp_path):
    """In a process of its own: torch logs its own traceback of this to the real standard error."""
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "no program")
    done = subprocess.run(
        [sys.executable, "-c", "from intcert.cli.main import main; main()", "compile", path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: '{path}'")


def test_models_and_artifacts_are_told_apart(refused, colour_model, colour_artifact, colour_folder, tmp_path):
    refused("compile", colour_artifact, saying=(colour_artifact, "not a model"))
    data = ("--data", f"folder:{colour_folder}")
    refused("predict", colour_model, *data, saying=(f"intcert compile {colour_model}",))
    refused("certify", colour_model, *data, "-o", tmp_path / "run.tsv", saying=("intcert compile",))


def test_a_float_model_is_refused(refused, colour_network, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "float.pt2"
    torch.export.save(torch.export.export(colour_network, (torch.rand(1, 3, 8, 8),)), path)
    refused("compile", path, "--sigma", "0.25", "-o", tmp_path / "m.intcert", saying=("quantize",))
    assert not (tmp_path / "m.intcert").exists()


def test_a_missing_sigma_is_refused(refused, colour_program, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "plain.pt2"
    torch.export.save(colour_program, path)
    refused("compile", path, "-o", tmp_path / "m.intcert", saying=("sigma", "[0, 1]", "0.25"))
    assert os.listdir(tmp_path) == ["plain.pt2"]


@pytest.mark.parametrize(
    ("sigma", "words"),
    [
        ("63.75", ("'63.75'", "63.75 / 255 = 0.25")),
        ("4.01", ("[0, 1]", "/ 255")),
        ("0", ("not positive",)),
        ("0.25f", ("'0.25f'", "decimal")),
        ("1/4", ("'1/4'", "decimal")),
    ],
)
def test_a_sigma_on_the_wrong_scale_is_refused(refused, colour_model, tmp_path, sigma, words):
    refused("compile", colour_model, "--sigma", sigma, "-o", tmp_path / "m.intcert", saying=words)
    assert os.listdir(tmp_path) == []


def test_an_unknown_target_is_refused(refused, colour_model, tmp_path):
    refused("compile", colour_model, "--target", "x86-vni", "-o", tmp_path / "m.intcert", saying=("x86-vnni",))


def test_an_unwritable_output_is_refused(refused, colour_model, tmp_path):
    refused("compile", colour_model, "-o", tmp_path / "nowhere" / "m.intcert", saying=("nowhere", "no folder"))
    refused("compile", colour_model, "-o", tmp_path, saying=(tmp_path, "is a folder"))
    refused("compile", colour_model, "-o", "/proc/m.intcert", saying=("/proc/m.intcert",))


def test_inspect_shows_models_and_artifacts(intcert, colour_model, colour_artifact):
    manifest = read_artifact(colour_artifact).manifest
    for file in (colour_model, colour_artifact):
        result = intcert("inspect", file)
        assert result.exit_code == 0, result.output
        for text in (file, manifest.model_hash, manifest.graph_hash, "63.75", "InputQuantize", "8 x 8 x 3", "blue"):
            assert str(text) in result.stdout
    for layer in manifest.layers:
        assert layer["kernel"] in result.stdout


def test_inspect_does_not_load_the_library(intcert, colour_artifact, tmp_path):
    """So that an artifact for another machine, or from elsewhere, can be looked at."""
    from dataclasses import replace

    from intcert.runtime import write_artifact

    artifact = read_artifact(colour_artifact)
    path = tmp_path / "other.intcert"
    write_artifact(path, artifact.manifest, dict(artifact.members) | {"lib.so": b"no library"})
    assert intcert("inspect", path).exit_code == 0
    other = replace(artifact.manifest, target_facts={"cpu_flags": ["warp_drive"]})
    write_artifact(path, other, artifact.members)
    assert "warp_drive" in intcert("inspect", path).stdout


def test_a_damaged_artifact_is_refused_by_every_command(refused, colour_artifact, colour_folder, tmp_path):
    content = colour_artifact.read_bytes()
    path = tmp_path / "damaged.intcert"
    for damaged in (b"", content[:100], content[: len(content) // 2], content[:-1], b"no zip at all"):
        path.write_bytes(damaged)
        refused("inspect", path, saying=(path,))
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(flipped)
    data = ("--data", f"folder:{colour_folder}")
    for words in (
        ("inspect", path),
        ("certify", path, *data, "-o", tmp_path / "run.tsv"),
        ("predict", path, *data),
        ("eval", path, *data),
    ):
        refused(*words, saying=(path,))
    assert not (tmp_path / "run.tsv").exists()


def test_an_artifact_of_an_unknown_version_is_refused(refused, colour_artifact, tmp_path):
    path = tmp_path / "future.intcert"
    with zipfile.ZipFile(colour_artifact) as source, zipfile.ZipFile(path, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            if name == "manifest.json":
                content = json.dumps(json.loads(content) | {"format_version": 99}).encode()
            copy.writestr(name, content)
    refused("inspect", path, saying=("version", "99"))
