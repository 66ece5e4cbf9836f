"""The training loop: every method trains, runs repeat and resume exactly, senseless recipes are refused."""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from intcert.runtime.errors import DatasetError, IntcertError, ModelError, SigmaError
from intcert.runtime.noise import noise_law
from intcert.train.consistency import Consistency
from intcert.train.data import NoiseSampler
from intcert.train.log import COLUMNS, TrainingLog
from intcert.train.loop import accuracy, build, learning_rate, train
from intcert.train.models import MODELS
from intcert.train.program import is_quantized
from intcert.train.recipes import METHODS, Recipe


def weights_of(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    return dict(program.state_dict) | {k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)}


def same_weights(one: torch.export.ExportedProgram, two: torch.export.ExportedProgram) -> bool:
    a, b = weights_of(one), weights_of(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def recipe(small_networks):
    return Recipe(method="intrs", arch="small", sigma="0.25", epochs=2, qat_epochs=1, batch_size=4)


@pytest.fixture(scope="module")
def uninterrupted(recipe, random_images, tmp_path_factory):
    steps = []
    return train(recipe, random_images(), tmp_path_factory.mktemp("uninterrupted"), report=steps.append), steps


def test_each_phase_runs_its_steps(uninterrupted):
    _, steps = uninterrupted
    assert [(step.phase, step.done) for step in steps] == [(p, s) for p in ("float", "qat") for s in (1, 2, 3)]
    assert {step.total for step in steps} == {3}
    assert [step.epoch for step in steps] == [1 / 3, 2 / 3, 1.0] * 2
    assert all(np.isfinite(step.loss) and step.images == 4 for step in steps)


def test_same_seed_same_weights(uninterrupted, recipe, random_images, tmp_path):
    program, steps = uninterrupted
    again = []
    repeated = train(recipe, random_images(), tmp_path, report=again.append)
    assert [step.loss for step in again] == [step.loss for step in steps]
    assert same_weights(program, repeated)


def test_another_seed_gives_other_weights(uninterrupted, recipe, random_images, tmp_path):
    program, _ = uninterrupted
    assert not same_weights(program, train(replace(recipe, seed=1), random_images(), tmp_path))


def run_until(phase, done, recipe, data, folder, checkpoint_seconds=0.0):
    """A run that is killed after one step of one phase; by default with a checkpoint at every step."""

    def kill(step):
        if (step.phase, step.done) == (phase, done):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, folder, resume=True, checkpoint_seconds=checkpoint_seconds, report=kill)


def test_killed_and_resumed_ends_in_the_same_weights(uninterrupted, recipe, random_images, tmp_path):
    run_until("float", 2, recipe, random_images(), tmp_path)
    run_until("qat", 2, recipe, random_images(), tmp_path)
    steps = []
    program = train(recipe, random_images(), tmp_path, resume=True, report=steps.append)
    assert [(step.phase, step.done) for step in steps] == [("qat", 3)]
    assert same_weights(program, uninterrupted[0])


def test_resume_repeats_what_no_checkpoint_holds(uninterrupted, recipe, random_images, tmp_path):
    """Killed in the second phase before its first checkpoint: only the first phase's last one exists."""
    run_until("qat", 2, recipe, random_images(), tmp_path, checkpoint_seconds=3600)
    assert same_weights(train(recipe, random_images(), tmp_path, resume=True), uninterrupted[0])


@pytest.mark.parametrize("regularizer", [None, Consistency(strength=5.0, eta=0.5, noises=3)])
def test_float_networks_resume_exactly(recipe, random_images, tmp_path, regularizer):
    """With batch normalization, whose running statistics are part of the state."""
    recipe = replace(
        recipe, method="float", arch="small_bn", epochs=1, qat_epochs=0, bf16=True, regularizer=regularizer
    )
    whole = train(recipe, random_images(), tmp_path / "whole")
    run_until("float", 1, recipe, random_images(), tmp_path / "killed")
    assert same_weights(train(recipe, random_images(), tmp_path / "killed", resume=True), whole)
    assert any(name.endswith("running_var") for name in weights_of(whole))


@pytest.mark.slow
def test_batch_normalization_resumes_exactly_in_both_phases(recipe, random_images, tmp_path):
    recipe = replace(recipe, arch="small_bn")
    run_until("float", 2, recipe, random_images(), tmp_path / "killed")
    run_until("qat", 2, recipe, random_images(), tmp_path / "killed")
    resumed, whole = (
        train(recipe, random_images(), tmp_path / run, resume=run == "killed") for run in ("killed", "whole")
    )
    assert same_weights(resumed, whole)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_gives_its_kind_of_network(recipe, random_images, tmp_path, method):
    quantized = METHODS[method].quantized
    recipe = replace(recipe, method=method, epochs=1, qat_epochs=int(quantized), batch_size=12)
    losses = []
    program = train(recipe, random_images(), tmp_path, report=lambda step: losses.append(step.loss))
    assert len(losses) == 1
    assert is_quantized(program) == quantized
    for batch in (1, 5):
        assert program.module()(torch.rand(batch, 3, 8, 8)).shape == (batch, 3)


def test_the_regularizer_works_through_fake_quantization(recipe, random_images, tmp_path):
    recipe = replace(recipe, epochs=1, batch_size=12)
    losses = {}
    for regularizer in (None, Consistency(strength=0.0, eta=0.0), Consistency()):
        found = losses[regularizer] = []
        chosen = replace(recipe, regularizer=regularizer)
        program = train(
            chosen, random_images(), tmp_path / str(len(losses)), report=lambda s, f=found: f.append(s.loss)
        )
        assert is_quantized(program)
    without, silent, full = losses.values()
    assert without != silent  # two noise draws instead of one
    assert full[0] > silent[0]


def test_methods_differ_in_their_noise_alone(recipe, random_images, tmp_path):
    """Their first losses come from the same weights on the same images: with hardly any noise they are hardly apart."""
    losses = {}
    for method in ("intrs", "floatrs-quant"):
        chosen = replace(recipe, method=method, arch="small", epochs=1, qat_epochs=1, batch_size=12, sigma="0.004")
        with pytest.raises(KeyboardInterrupt):
            train(chosen, random_images(), tmp_path / method, report=partial(keep, losses, method))
    assert losses["intrs"] != losses["floatrs-quant"]
    assert losses["intrs"] == pytest.approx(losses["floatrs-quant"], abs=0.1)


def keep(losses, method, step):
    losses[method] = step.loss
    raise KeyboardInterrupt


def test_checkpoints_that_do_not_fit_are_refused(recipe, random_images, tmp_path):
    recipe, data = replace(recipe, epochs=1, batch_size=12), random_images()
    train(recipe, data, tmp_path)
    with pytest.raises(IntcertError, match=r"checkpoint\.pt exists; continue that run with --resume"):
        train(recipe, data, tmp_path)
    with pytest.raises(IntcertError, match="a run with another lr;"):
        train(replace(recipe, lr=1.0), data, tmp_path, resume=True)
    with pytest.raises(IntcertError, match="a run with another images;"):
        train(recipe, replace(data, images=255 - data.images), tmp_path, resume=True)
    with pytest.raises(IntcertError, match="a run with another first weights;"):
        train(recipe, data, tmp_path, resume=True, init=MODELS["small"](num_classes=3).state_dict())
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(IntcertError, match=r"cannot read .*checkpoint\.pt"):
        train(recipe, data, tmp_path, resume=True)


def test_input_that_does_not_fit_the_network(recipe, random_images, tmp_path):
    with pytest.raises(DatasetError, match=r"lenet takes \(C, H, W\) = \(1, 28, 28\), the images"):
        train(replace(recipe, arch="lenet"), random_images(), tmp_path)
    with pytest.raises(ModelError, match=r"do not fit small: .*features\.0\.weight"):
        train(recipe, random_images(), tmp_path, init={})
    with pytest.raises(DatasetError, match="12 training images do not fill a batch of 13"):
        train(replace(recipe, batch_size=13), random_images(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"arch": "resnet21"}, ModelError, "unknown architecture 'resnet21'; choose one of resnet20"),
        ({"method": "magic"}, IntcertError, "unknown method 'magic'; choose one of intrs, float"),
        ({"schedule": "sine"}, IntcertError, "unknown schedule 'sine'"),
        ({"ranges": "all"}, IntcertError, "unknown ranges 'all'"),
        ({"sigma": "63.75"}, SigmaError, "if 63.75 was meant in pixel steps"),
        ({"epochs": 0}, IntcertError, "0 epochs in batches of 4; give at least 1"),
        ({"qat_epochs": 0}, IntcertError, "0 of 2 epochs are quantization-aware; .* give 1 to 2"),
        ({"qat_epochs": 3}, IntcertError, "3 of 2 epochs are quantization-aware"),
        ({"method": "float"}, IntcertError, "a float network has no quantization-aware epochs"),
    ],
)
def test_recipes_that_make_no_sense(recipe, changes, error, message):
    with pytest.raises(error, match=message):
        replace(recipe, **changes)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_head_for_other_classes_starts_anew(small_networks, prefix):
    state = MODELS["small"](num_classes=7).state_dict()
    network = build("small", 3, {f"{prefix}{name}": value for name, value in state.items()})
    found = network.state_dict()
    assert found["classifier.1.weight"].shape == (3, 144)
    assert torch.equal(found["features.0.weight"], state["features.0.weight"])
    fresh = build("small", 3, None).state_dict()
    assert torch.equal(found["classifier.1.weight"], fresh["classifier.1.weight"])
    assert not torch.equal(found["features.0.weight"], fresh["features.0.weight"])


def test_the_recipe_spells_sigma_in_one_way(recipe):
    assert replace(recipe, sigma=".250").sigma == "0.25"


def test_learning_rates_follow_their_schedules():
    assert [learning_rate("step", 0.1, step, 9) for step in (0, 2, 3, 5, 6, 8)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-12
    )
    assert [learning_rate("cosine", 0.1, step, 4) for step in (0, 2)] == pytest.approx([0.1, 0.05], rel=1e-12)
    assert 0 < learning_rate("cosine", 0.1, 3, 4) < 0.02


def test_accuracy_counts_right_answers_and_repeats(random_images, small_networks):
    data = random_images(300)
    by_label = iter(data.labels.split(250))

    def first_batch_right(x):
        labels = next(by_label)
        return torch.nn.functional.one_hot(labels if len(labels) == 250 else (labels + 1) % 3, 3)

    assert accuracy(first_batch_right, data, None) == 250 / 300
    network = MODELS["small"](3).eval()
    sampler = NoiseSampler(noise_law("0.25"))
    assert accuracy(network, data, sampler) == accuracy(network, data, sampler)


def rows_of(folder):
    header, *rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    assert tuple(header) == COLUMNS
    return [(phase, int(step)) for phase, step, *_ in rows]


def test_the_log_holds_each_step_once_whatever_was_killed(recipe, random_images, tmp_path):
    def run(stop, resume):
        with TrainingLog(tmp_path, every=2) as log:

            def report(step):
                log(step)
                if (step.phase, step.done) == stop:
                    raise KeyboardInterrupt

            train(recipe, random_images(), tmp_path, resume=resume, checkpoint_seconds=3600, report=report)

    with pytest.raises(KeyboardInterrupt):
        run(("qat", 2), resume=False)
    with open(tmp_path / "log.csv", "a") as file:
        file.write("qat,3,1.0")  # as a kill tears a row
    run(None, resume=True)
    assert rows_of(tmp_path) == [("float", 2), ("float", 3), ("qat", 2), ("qat", 3)]


def test_event_files_where_tensorboard_is_installed(recipe, random_images, tmp_path):
    pytest.importorskip("tensorboard")
    with TrainingLog(tmp_path) as log:
        assert log.events
        train(replace(recipe, epochs=1, batch_size=12), random_images(), tmp_path, report=log)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_without_tensorboard_there_is_the_table_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with TrainingLog(tmp_path) as log:
        assert not log.events
