"""From nothing to counts: a few steps on the shipped images, imported with no further flag, equal to the reference."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from intcert.cli.options import demo_folder
from intcert.compile.graph import IntegerGraph
from intcert.compile.reference import ReferenceSession
from intcert.runtime import open_artifact, open_dataset
from intcert.runtime.artifact import GRAPH


def test_a_smoke_trained_model_counts_like_its_reference(intcert, tmp_path):
    model, artifact = tmp_path / "m.pt2", tmp_path / "m.intcert"
    words = ("--recipe", "intrs", "--arch", "resnet20", "--data", "demo", "--split", "test", "--sigma", "0.25")
    more = ("--epochs", 3, "--batch-size", 10, "--lr", 0.01, "--threads", 1, "--device", "cpu", "-o", model)
    assert intcert("train", *words, *more).exit_code == 0
    assert intcert("compile", model, "-o", artifact).exit_code == 0
    images = open_dataset(f"folder:{demo_folder() / 'images'}")
    with open_artifact(artifact, threads=1) as session:
        reference = ReferenceSession(IntegerGraph.from_bytes(session.artifact.members[GRAPH]), session.artifact.law)
        assert session.artifact.manifest.class_names == images.class_names
        for index in (0, 7, 19):
            image = images[index].image
            counts = session.counts(image, 11 + index, 100, 70)
            assert np.array_equal(counts, reference.counts(image, 11 + index, 100, 70))
