"""The golden counts: reference and every kernel still mean what the first release meant (tests/golden/make.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from intcert import targets
from intcert.compile.build import compile_artifact
from intcert.compile.graph import IntegerGraph
from intcert.compile.reference import ReferenceSession
from intcert.runtime.noise import noise_law
from intcert.runtime.session import Session, open_artifact

GOLDEN = Path(__file__).parents[1] / "golden"
RUNNABLE = [target.name for target in targets.runnable()]
DOCUMENT = json.loads((GOLDEN / "counts.json").read_text())
IMAGES = np.load(GOLDEN / "images.npz")["images"]


def load_graph(scheme: str) -> IntegerGraph:
    return IntegerGraph.from_bytes((GOLDEN / f"resnet20-{scheme}.graph").read_bytes())


def check(session: Session, scheme: str) -> None:
    for case in DOCUMENT["cases"]:
        if case["scheme"] == scheme:
            assert (session.graph_hash, session.noise_hash) == (case["graph"], case["noise"])
            rows = session.counts(IMAGES[case["image"]], int(case["key"], 16), case["first"], case["samples"])
            assert rows.tolist() == case["rows"]


@pytest.mark.parametrize("scheme", ["q15", "q31"])
def test_reference(scheme: str) -> None:
    check(ReferenceSession(load_graph(scheme), noise_law(DOCUMENT["sigma"])), scheme)


@pytest.mark.parametrize("scheme", ["q15", "q31"])
@pytest.mark.parametrize("target", RUNNABLE)
def test_kernels(target: str, scheme: str, tmp_path: Path) -> None:
    compile_artifact(load_graph(scheme), tmp_path / "a", target=target, sigma=DOCUMENT["sigma"])
    with open_artifact(tmp_path / "a", threads=2) as session:
        check(session, scheme)


def test_the_golden_counts_say_something() -> None:
    """Images that a broken network would give to one class would pass for anything."""
    for case in DOCUMENT["cases"]:
        assert np.sum(case["rows"]) == case["samples"]
    assert any(np.count_nonzero(np.sum(case["rows"], 0)) > 2 for case in DOCUMENT["cases"])
