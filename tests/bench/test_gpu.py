"""The GPU's benchmark, with a processor in the place of the GPU."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import gpu
import gpu_ceilings
import gpu_peers
import numpy as np
import pytest
from gpu_ceilings import Ceilings, LayerShare
from peer_models import ModelFiles

from intcert.cli.failure import Failure
from intcert.cli.options import DEMO, model_path
from intcert.compile.build import load_model
from intcert.runtime.benchmark import LayerTime
from intcert.runtime.session import cpu_flags, open_artifact
from intcert.targets import find


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> ModelFiles:
    return ModelFiles("resnet20", tmp_path_factory.mktemp("models"))


@pytest.mark.skipif("avx2" not in cpu_flags(), reason="compiles for x86 with AVX2")
def test_counts_are_checked_before_anything_is_timed(files: ModelFiles) -> None:
    path = gpu.build(files, "x86", 70)
    assert gpu.build(files, "x86", 70) == path
    expected = dict(np.load(gpu.expected_path(path)))
    with open_artifact(path, threads=1) as session:
        gpu.check(session, expected)
        expected["rows"][1, 1] += 1
        with pytest.raises(Failure, match=r"sample 4294967226, row 1") as caught:
            gpu.check(session, expected)
        assert caught.value.exit_code == 1
        assert gpu.certification_seconds(session, expected["image"], 100) > 0


def test_rates_of_torch(files: ModelFiles, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    files.build("float.pth")
    image = np.full((32, 32, 3), 90, np.uint8)
    network = files.network()
    pixels = gpu_peers.pixels_of(image, "cpu", torch.float32)
    work = gpu_peers.sampling_loop(network, pixels, torch.channels_last, 4, 10)
    assert sum(work()) == 12
    rate = gpu_peers.rate("resnet20", "PyTorch float32", 4, 10, 2, work)
    assert len(rate.seconds) == 2
    share = LayerShare("relu", "conv2d", "32x32x16", 1.5, 0.25, 1.25)
    gpu.write(tmp_path / "cuda.json", {"rates": [rate.images_per_second]}, [rate], {"resnet20": [share]})
    with (tmp_path / "cuda.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert row["implementation"] == "PyTorch float32"
    assert json.loads((tmp_path / "cuda.json").read_text())["rates"][0] == pytest.approx(
        float(row["images_per_second"]), abs=0.1
    )
    with (tmp_path / "cuda.layers.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert row == {
        "network": "resnet20", "name": "relu", "kernel": "conv2d", "shape": "32x32x16", "us": "1.5000",
        "of_products": "0.2500", "of_bytes": "1.2500",
    }  # fmt: skip


def test_shares_of_the_ceilings() -> None:
    """A convolution of 16 by 16 channels on 32 x 32 pixels takes a microsecond: 2.36 million products, 32 KiB."""
    graph = load_model(model_path(DEMO)).graph
    nodes = zip(graph.names, graph.info, strict=True)
    times = [LayerTime(name, "conv2d", "", info.shape, 1e-6, 0.1) for name, info in nodes]
    shares = list(gpu_ceilings.layer_shares(graph, find("cuda-sm80"), times, Ceilings(1e15, 1e12)))
    share = shares[graph.names.index("relu_1")]
    assert share.of_products == pytest.approx(32 * 32 * 16 * 9 * 16 / 1e9)
    assert share.of_bytes == pytest.approx(2 * 32 * 32 * 16 / 1e6)
    assert shares[0].of_products == 0
    assert shares[0].of_bytes == pytest.approx(32 * 32 * (3 * 2 + 16) / 1e6)


def test_ceilings_are_measured() -> None:
    pytest.importorskip("torch")
    ceilings = gpu_ceilings.measure_ceilings("cpu", side=64, copied=1 << 16)
    assert ceilings.multiply_adds > 0
    assert ceilings.bytes > 0


def test_tensorrt_gets_symmetric_int8(files: ModelFiles) -> None:
    """What its parser asks for: int8 with zero point 0 everywhere, and no quantized biases; the network is the same."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    files.build("tensorrt.onnx")
    graph = onnx.load(files.path("tensorrt.onnx")).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) > 40
    for node in nodes:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    (images,) = files.inputs(1, 4)
    logits = [
        onnxruntime.InferenceSession(files.path(name), providers=["CPUExecutionProvider"]).run(None, {"x": images})[0]
        for name in ("float.onnx", "tensorrt.onnx")
    ]
    assert np.abs(logits[0] - logits[1]).max() < 0.25 * np.ptp(logits[0])


def test_what_compute_sanitizer_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.sanitized("memcheck", ["true"]) == "compute-sanitizer is not installed"
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "===== $*"\necho "========= ERROR SUMMARY: 0 errors"\nexit 3\n')
    program.chmod(0o755)
    assert gpu.sanitized("memcheck", ["true"]) == "exit code 3, ERROR SUMMARY: 0 errors"
