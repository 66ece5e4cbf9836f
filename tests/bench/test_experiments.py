"""The driver: its chains, what it skips and resumes, and one real network from training to ledger."""

import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from experiments import Plan, Runner, Step
from results import find_runs


@pytest.fixture
def plan(tmp_path):
    return Plan(
        folder=tmp_path / "results",
        data="folder:x",
        init=None,
        sigmas=("0.25",),
        methods=("intrs", "float", "floatrs-quant", "intrs-consistency"),
        mismatches=("0.25", "0.5"),
        epochs=6,
        qat_epochs=2,
        n=100,
        skip=5,
        limit=50,
        threads=1,
        device="cpu",
    )


def test_chains_cover_every_method(plan):
    chains = {chain[0].name: [step.name for step in chain] for chain in plan.matching()}
    assert chains["train_intrs_0.25"] == ["train_intrs_0.25", "compile_intrs_0.25", "certify_intrs_0.25"]
    assert chains["train_floatrs-quant_0.25"] == ["train_floatrs-quant_0.25", "certify_floatrs-quant_0.25"]
    assert len(chains) == 4
    others = [[step.name for step in chain] for chain in plan.mismatching()]
    assert others == [["compile_intrs_0.25_at_0.5", "certify_intrs_0.25_at_0.5"], ["certify_float_0.25_at_0.5"]]


def test_all_methods_train_alike(plan):
    words = {chain[0].name: chain[0].words for chain in plan.matching()}
    for name, found in words.items():
        assert found[found.index("--epochs") + 1] == "6"
        assert found[found.index("--seed") + 1] == "0"
        assert ("--qat-epochs" in found) == (name != "train_float_0.25")
        assert ("--regularizer" in found) == (name == "train_intrs-consistency_0.25")
    recipes = {name: found[found.index("--recipe") + 1] for name, found in words.items()}
    assert recipes["train_intrs-consistency_0.25"] == "intrs"
    initial = next(replace(plan, init=plan.folder / "w.th").matching())[0].words
    assert str(plan.folder / "w.th") in initial


def test_done_steps_are_not_run_again(plan, capsys):
    runner = Runner(plan.folder, time.monotonic() + 60)
    step = Step("targets", ("targets",))
    assert runner.run([step])
    assert "targets: done" in capsys.readouterr().out
    assert runner.run([step])
    assert capsys.readouterr().out == ""
    assert runner.run([replace(step, words=("targets", "--help"))])
    assert "targets: done" in capsys.readouterr().out


def test_a_failed_step_ends_its_chain_and_is_tried_again(plan, capsys):
    runner = Runner(plan.folder, time.monotonic() + 60)
    steps = [Step("bad", ("frobnicate",)), Step("after", ("targets",))]
    assert not runner.run(steps)
    assert "bad: failed with 4, see logs/bad.txt" in capsys.readouterr().out
    assert not (plan.folder / "logs" / "after.txt").exists()
    assert "No such command" in (plan.folder / "logs" / "bad.txt").read_text()
    assert not runner.run(steps)


def test_nothing_starts_after_the_deadline(plan, capsys):
    assert not Runner(plan.folder, time.monotonic() - 1).run([Step("late", ("targets",))])
    assert "late: no time left" in capsys.readouterr().out


def test_a_network_from_training_to_ledger(plan, tmp_path):
    """LeNet instead of ResNet-20, on images of its size; the run is cut off once and resumed."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "d.npz", images=rng.integers(256, size=(140, 28, 28, 1), dtype=np.uint8), labels=np.arange(140) % 3
    )
    small = replace(plan, data=f"npz:{tmp_path / 'd.npz'}", epochs=2, qat_epochs=1, methods=("intrs", "floatrs-quant"))
    chains = []
    for chain in small.matching():
        training, *rest = chain
        words = tuple("lenet" if word == "resnet20" else word for word in training.words)
        chains.append([replace(training, words=words), *rest])
    assert not Runner(plan.folder, time.monotonic() + 0.5).run(chains[0])
    runner = Runner(plan.folder, time.monotonic() + 120)
    assert all([runner.run(chain) for chain in chains])
    runs = find_runs(plan.folder / "ledgers")
    assert [run.method for run in runs] == ["intrs", "floatrs-quant"]
    for run in runs:
        assert [row.idx for row in run.rows] == list(range(0, 50, 5))
        assert {row.samples for row in run.rows} == {(100, 100)}
