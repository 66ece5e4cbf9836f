"""``intcert certify`` on the rivals' programs: the same loop and ledger, Cohen's certificate."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from intcert.runtime import CertificateParameters, read_ledger  # noqa: E402
from intcert.train.program import export_float, save_program  # noqa: E402
from intcert.train.session import TorchSession, cohen_table  # noqa: E402

COLOURS = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def rivals(colour_network, colour_program, tmp_path_factory):
    """The colour classifier as either rival, and as what is to be compiled."""
    folder = tmp_path_factory.mktemp("rivals")
    for method in ("float", "floatrs-quant", "intrs"):
        made = export_float(colour_network, torch.zeros(2, 3, 8, 8)) if method == "float" else colour_program
        save_program(made, folder / f"{method}.pt2", {"recipe": method, "sigma": "0.25", "class_names": COLOURS})
    return folder


@pytest.mark.parametrize("method", ["float", "floatrs-quant"])
def test_rivals_are_certified_by_the_same_command(intcert, rivals, colour_folder, tmp_path, method):
    path = tmp_path / "run.tsv"
    model = rivals / f"{method}.pt2"
    result = intcert("certify", model, "--data", f"folder:{colour_folder}", "--n", 500, "--seed", 1, "-o", path)
    assert result.exit_code == 0, result.output
    assert "certified at radius 0 " in result.stdout
    rows = read_ledger(path)
    table = cohen_table(CertificateParameters("0.25", 192, n=500))
    assert [row.idx for row in rows] == list(range(7))
    for row in rows[:6]:
        assert row.counts == ((row.label, 500),)
        assert row.sqradius == table.m(500)
    with TorchSession(model) as session:
        assert {(row.graph, row.noise, row.target) for row in rows} == {
            (session.graph_hash, session.noise_hash, session.target)
        }


def test_rivals_resume_and_take_another_sigma(intcert, refused, rivals, colour_folder, tmp_path):
    words = ("certify", rivals / "float.pt2", "--data", f"folder:{colour_folder}", "--n", 200, "-o", tmp_path / "r.tsv")
    assert intcert(*words, "--max", 2, "--sigma", "0.5", "--threads", 2, "--device", "auto").exit_code == 0
    assert intcert(*words, "--sigma", "0.50", "--resume").exit_code == 0
    rows = read_ledger(tmp_path / "r.tsv")
    assert len(rows) == 7
    assert {row.sigma for row in rows} == {"0.5"}
    refused(*words, "--resume", saying=("another noise, sigma",))
    assert json.loads((tmp_path / "r.json").read_text())["sigma"] == "0.5"


def test_what_is_no_rival_is_refused(refused, rivals, colour_artifact, colour_folder, tmp_path):
    words = ("--data", f"folder:{colour_folder}", "-o", tmp_path / "run.tsv")
    refused("certify", rivals / "intrs.pt2", *words, saying=("intrs.pt2", "intcert compile"))
    refused("certify", tmp_path / "m.graph", *words, saying=("m.graph is a model; compile it first",))
    refused("certify", tmp_path / "missing.pt2", *words, saying=("missing.pt2",))
    refused("certify", rivals / "float.pt2", *words, "--rule", "cp2", saying=("rule cp2 is not for rivals",))
    refused("certify", rivals / "float.pt2", *words, "--radius", "0.5", saying=("rule kt:0.5 is not for rivals",))
    refused("certify", rivals / "float.pt2", *words, "--sigma", "64", saying=("'64'",))
    refused("certify", colour_artifact, *words, "--sigma", "0.5", saying=("--sigma is for rivals",))
    refused("certify", colour_artifact, *words, "--device", "cuda", saying=("not for cuda", "--target cuda-sm80"))
    np.savez(tmp_path / "large.npz", images=np.zeros((1, 9, 8, 3), np.uint8), labels=np.zeros(1, np.int64))
    refused(
        "certify", rivals / "float.pt2", "--data", f"npz:{tmp_path / 'large.npz'}", *words[2:], saying=("9 x 8 x 3",)
    )
    assert not (tmp_path / "run.tsv").exists()
