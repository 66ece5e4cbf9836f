"""One image against the loop of Cohen et al.: both sides count all samples, on as many threads as there are cores."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from float_classifier import LAYOUTS, FloatClassifier
from single_image import main

from intcert.train.models import resnet20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_float_loop_counts_every_sample(layout):
    torch.manual_seed(0)
    classifier = FloatClassifier(resnet20(), np.full((32, 32, 3), 128, np.uint8), 0.25, layout)
    for n, batch in ((1, 4), (7, 3), (8, 8)):
        counts = classifier.count(n, batch)
        assert counts.shape == (10,)
        assert counts.sum() == n


def test_the_float_loop_agrees_with_the_network_without_noise():
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    network = resnet20().eval()
    counts = FloatClassifier(network, image, 0.0).count(5, 2)
    with torch.no_grad():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255).argmax()
    assert counts[expected] == 5


def test_more_threads_than_cores_are_refused():
    result = CliRunner().invoke(main, ["--threads", "4096"])
    assert result.exit_code == 4
    assert f"this process may use {len(os.sched_getaffinity(0))} cores" in result.output


@pytest.mark.slow
def test_the_command_prints_both_sides(monkeypatch):
    before = os.sched_getaffinity(0)
    monkeypatch.setattr("single_image.SAMPLES", 16)
    try:
        result = CliRunner().invoke(main, ["--n", "200", "--float-samples", "16", "--rounds", "1"])
    finally:
        os.sched_setaffinity(0, before)
    assert result.exit_code == 0, result.output
    assert "100 + 200 samples" in result.output
    assert re.search(r"ratio of the medians: \d+\.\d", result.output)
