"""compile_artifact: what it writes, that it is reproducible, and what a chunk size may change (nothing)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from random_models import random_input, random_integer_graph
from torch.export import ExportedProgram

from intcert import targets
from intcert.compile.build import DUMPS, compile_artifact, load_model
from intcert.compile.graph import IntegerGraph
from intcert.compile.reference import ReferenceSession, run
from intcert.runtime.artifact import read_artifact
from intcert.runtime.certificate import CertificateParameters, CertificateTable
from intcert.runtime.errors import ModelError, SigmaError
from intcert.runtime.noise import noise_law
from intcert.runtime.session import open_artifact
from intcert.targets import UnknownTargetError


@pytest.fixture(scope="module")
def graph() -> IntegerGraph:
    return random_integer_graph(2, "q15")


def test_manifest(graph: IntegerGraph, tmp_path: Path) -> None:
    path = tmp_path / "a.intcert"
    written = compile_artifact(graph, path, target="x86", sigma="0.120", class_names=["x"] * graph.classes)
    artifact = read_artifact(path)
    manifest = artifact.manifest
    assert manifest == written
    assert manifest.graph_hash == graph.digest == IntegerGraph.from_bytes(artifact.graph).digest
    assert manifest.noise_hash == noise_law("0.12").digest == artifact.law.digest
    assert (manifest.sigma, manifest.sigma_steps) == ("0.12", "30.6")
    assert (manifest.target, manifest.cpu_flags) == ("x86", ("avx2",))
    assert (manifest.input_shape, manifest.classes) == (graph.input_shape, graph.classes)
    assert manifest.class_names == ("x",) * graph.classes
    assert manifest.audit is None or manifest.audit["clean"]
    assert manifest.tvm_version == tvm.__version__
    assert set(manifest.eta) == {"s", "kernel", "sampler"}
    assert 0 < float(manifest.eta["kernel"]) < 2**-39
    assert [layer["name"] for layer in manifest.layers] == list(graph.names)


def test_the_same_build_gives_the_same_bytes(graph: IntegerGraph, tmp_path: Path) -> None:
    for name in ("a", "b"):
        compile_artifact(graph, tmp_path / name, target="x86", sigma="0.25", n=1000)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("seed", [0, 4])
def test_chunk_and_threads_change_nothing(seed: int, tmp_path: Path) -> None:
    graph = random_integer_graph(seed, "q31")
    image = np.random.default_rng(1).integers(0, 256, graph.input_shape).astype(np.uint8)
    x = random_input(graph, 33, seed)
    expected = ReferenceSession(graph, noise_law("0.25")).counts(image, 2**64 - 1, 100, 300)
    for chunk in (None, 1, 5, 32):
        path = tmp_path / f"{chunk}.intcert"
        manifest = compile_artifact(graph, path, sigma="0.25", chunk=chunk)
        assert chunk is None or manifest.chunk == chunk
        for threads in (1, 3):
            with open_artifact(path, threads) as session:
                np.testing.assert_array_equal(session.counts(image, 2**64 - 1, 100, 300), expected)
                np.testing.assert_array_equal(session.logits(x), run(graph, x))


def test_embedded_certificates(graph: IntegerGraph, tmp_path: Path) -> None:
    path = tmp_path / "a.intcert"
    compile_artifact(graph, path, target="x86", sigma="0.25", n=2000, alpha="0.01")
    (table,) = map(CertificateTable.from_bytes, read_artifact(path).certificates.values())
    assert table.parameters == CertificateParameters("0.25", graph.dimension, alpha="0.01", n=2000)
    compile_artifact(graph, path, target="x86", sigma="0.25", n=2000, radius="0.5")
    (table,) = map(CertificateTable.from_bytes, read_artifact(path).certificates.values())
    assert table.parameters.rule == "kt:0.5"


def test_dumps(graph: IntegerGraph, tmp_path: Path) -> None:
    path = tmp_path / "a.intcert"
    compile_artifact(graph, path, target="x86", sigma="0.25", dump=DUMPS)
    texts = {kind: Path(f"{path}.{kind}.txt").read_text() for kind in DUMPS}
    assert "R.call_tir_inplace" in texts["relax"]
    assert "T.prim_func" in texts["tir"]
    assert "vpmaddwd" in texts["asm"]


def test_models_from_files(graph: IntegerGraph, tmp_path: Path) -> None:
    path = tmp_path / "m.graph"
    path.write_bytes(graph.to_bytes())
    model = load_model(path)
    assert model.graph.digest == graph.digest
    assert model.sigma is None
    assert len(model.digest) == 64


def test_sigma_as_a_number_is_refused(colour_program: ExportedProgram, tmp_path: Path) -> None:
    """A JSON number has been through a float; the law needs the exact decimal."""
    torch.export.save(colour_program, tmp_path / "m.pt2", extra_files={"intcert.json": json.dumps({"sigma": 0.25})})
    with pytest.raises(ModelError, match="as a number"):
        load_model(tmp_path / "m.pt2")


def test_refusals_leave_nothing_behind(graph: IntegerGraph, tmp_path: Path) -> None:
    path = tmp_path / "a.intcert"
    with pytest.raises(SigmaError, match=r"--sigma 0\.25"):
        compile_artifact(graph, path)
    with pytest.raises(SigmaError, match="255"):
        compile_artifact(graph, path, sigma="64")
    with pytest.raises(UnknownTargetError):
        compile_artifact(graph, path, sigma="0.25", target="x87")
    with pytest.raises(ModelError, match="cannot read the model"):
        compile_artifact(tmp_path / "none.pt2", path, sigma="0.25")
    (tmp_path / "bad.graph").write_bytes(b"{}\n")
    with pytest.raises(ModelError, match="not an integer graph"):
        compile_artifact(tmp_path / "bad.graph", path, sigma="0.25")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.graph"]


def test_target_facts_are_the_whole_target(graph: IntegerGraph, tmp_path: Path) -> None:
    manifest = compile_artifact(graph, tmp_path / "a", target="x86-vnni", sigma="0.25")
    assert json.loads(json.dumps(manifest.target_facts))["dot"]["name"] == targets.find("x86-vnni").dot.name
