"""``intcert bench``."""

from __future__ import annotations

import json
import shutil

import pytest

from intcert.runtime.artifact import read_artifact


def test_bench_prints_rates_latency_and_layers(intcert, colour_artifact):
    result = intcert("bench", colour_artifact, "--n", 100, "--rounds", 3, "--threads", 1)
    assert result.exit_code == 0, result.output
    for word in ("images/s", "samples/s", "p50", "p99", "100 samples (3 calls)", "peak memory", "threads: 1"):
        assert word in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line[:2].strip().isdecimal()]
    layers = read_artifact(colour_artifact).manifest.layers
    assert [row[1] for row in rows] == [layer["name"] for layer in layers]
    for row, layer in zip(rows, layers, strict=True):
        assert ".".join(row[2:4]).startswith(layer["kernel"])


def test_bench_writes_all_measurements(intcert, colour_artifact, tmp_path):
    path = tmp_path / "bench.json"
    assert intcert("bench", colour_artifact, "--n", 70, "--rounds", 5, "--threads", 2, "--json", path).exit_code == 0
    found = json.loads(path.read_text())
    assert (found["format_version"], found["n"], found["threads"], found["dimension"]) == (1, 70, 2, 192)
    assert len(found["counts"]) == len(found["network"]) == 5
    assert found["images_per_second"] == pytest.approx(70 / sorted(found["counts"])[2])
    assert found["draws_per_second"] == pytest.approx(192 * found["images_per_second"])
    assert found["latency"]["p50"] == sorted(found["counts"])[2]
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)
    assert found["peak_memory"] > 1 << 20
    assert {"cpu", "cpu_flags", "versions"} <= found["machine"].keys()


def test_bench_refuses_what_it_cannot_measure(intcert, refused, colour_artifact, tmp_path):
    refused("bench", tmp_path / "missing.intcert", saying=("missing.intcert",))
    refused("bench", tmp_path / "model.pt2", saying=("intcert compile",))
    refused("bench", colour_artifact, "--n", 0, saying=("--n",))
    refused("bench", colour_artifact, "--rounds", 0, saying=("--rounds",))
    nowhere = tmp_path / "folder" / "bench.json"
    refused("bench", colour_artifact, "--json", nowhere, saying=(nowhere.parent,))
    assert not nowhere.parent.exists()


def test_estimates_are_for_arm(refused, colour_artifact):
    if not read_artifact(colour_artifact).manifest.target.startswith("x86"):
        pytest.skip("this machine's own artifact can be estimated")
    refused("bench", colour_artifact, "--estimate", "cortex-a55", saying=("estimates are for ARM targets",))


@pytest.mark.slow  # ziglang compiles its C library once a machine
def test_an_estimate_says_that_it_is_one(intcert, colour_model, tmp_path):
    for tool in ("qemu-aarch64-static", "llvm-mca", "llvm-objdump"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    pytest.importorskip("ziglang")
    assert intcert("compile", colour_model, "--target", "arm-a55", "-o", tmp_path / "m").exit_code == 0
    result = intcert("bench", tmp_path / "m", "--estimate", "cortex-a55", "--json", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    assert "an estimate, not a measurement" in result.stdout
    found = json.loads((tmp_path / "m.json").read_text())
    names = [layer["name"] for layer in read_artifact(tmp_path / "m").manifest.layers]
    assert [layer["name"] for layer in found["layers"]] == ["noise", *names, "argmax and count"]
    assert found["cycles"] == pytest.approx(sum(layer["cycles"] for layer in found["layers"]))
