"""The attack stays in its ball on the pixel grid, raises the loss, and the command compares two networks."""

import csv

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

pytest.importorskip("matplotlib")

from attack import EPSILONS, attack, choose, main

from intcert.train.data import ImageSet, network_input
from intcert.train.program import export_float, save_program


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))


@pytest.mark.parametrize("epsilon", [0, 1, 8])
def test_the_attack_stays_in_its_ball_and_raises_the_loss(network, epsilon):
    torch.manual_seed(1)
    images, labels = torch.randint(256, (16, 8, 8, 3), dtype=torch.uint8), torch.arange(16) % 3
    images[0], images[1] = 0, 255
    moved = attack(network, images, labels, epsilon, 10)
    assert moved.dtype == torch.uint8
    assert int((moved.int() - images.int()).abs().max()) == epsilon
    before, after = (functional.cross_entropy(network(network_input(x)), labels) for x in (images, moved))
    assert after > before if epsilon else torch.equal(moved, images)


def test_images_are_spread_over_the_data_set():
    data = ImageSet(torch.zeros(10, 8, 8, 3, dtype=torch.uint8), torch.arange(10), ())
    assert choose(data, 4).labels.tolist() == [0, 3, 6, 9]
    assert choose(data, 99).labels.tolist() == list(range(10))


def test_the_command_compares_float_and_integers(colour_network, colour_artifact, colour_folder, tmp_path):
    program = export_float(colour_network, torch.zeros(2, 3, 8, 8))
    save_program(program, tmp_path / "float.pt2", {})
    words = [tmp_path / "float.pt2", colour_artifact, "--data", f"folder:{colour_folder}", "-o", tmp_path / "out"]
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with open(tmp_path / "out" / "attack.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["network"], int(row["epsilon_pixel_steps"])) for row in rows] == [
        (name, epsilon) for epsilon in EPSILONS for name in ("float", "int8")
    ]
    assert float(rows[0]["accuracy"]) >= 6 / 7 - 1e-4
    assert rows[0]["images"] == "7"
    assert (tmp_path / "out" / "attack.png").read_bytes()[:4] == b"\x89PNG"
