"""The GPU's benchmark, with a processor in the place of the GPU."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import gpu
import numpy as np
import pytest
from peer_models import ModelFiles

from intcert.cli.failure import Failure
from intcert.runtime.session import cpu_flags, open_artifact


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
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    work = gpu.sampling_loop(network, pixels, torch.channels_last, 4, 10)
    assert sum(work()) == 12
    rate = gpu.rate("resnet20", "PyTorch float32", 4, 10, 2, work)
    assert len(rate.seconds) == 2
    gpu.write(tmp_path / "cuda.json", {"rates": [rate.images_per_second]}, [rate])
    with (tmp_path / "cuda.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert row["implementation"] == "PyTorch float32"
    assert json.loads((tmp_path / "cuda.json").read_text())["rates"][0] == pytest.approx(
        float(row["images_per_second"]), abs=0.1
    )
