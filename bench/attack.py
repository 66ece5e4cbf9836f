"""Clean and attacked accuracy of a float network and its 8-bit form (figure 1 of Lin et al. 2021).

    python bench/attack.py float.pt2 int8.intcert --data folder:DIR --images 100 -o RESULTS/figures

Projected gradient descent (Madry et al. 2018) inside an l-infinity ball attacks the float network; both networks,
without noise or smoothing, then classify the same images of 8-bit pixels. Writes attack.tsv and attack.png.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import matplotlib
import numpy as np
import torch
from results import wilson, write_table
from torch import Tensor
from torch.nn import functional

from intcert.cli.options import data_source
from intcert.runtime import open_artifact, open_dataset
from intcert.train.data import ImageSet, load_images, network_input
from intcert.train.program import image_shape, load_program

matplotlib.use("Agg")  # needs no screen; before pyplot is imported

import matplotlib.pyplot as plt

EPSILONS = (0, 1, 2, 4, 8, 16)  # pixel steps
STEPS = 20


def attack(network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, epsilon: int, steps: int) -> Tensor:
    """Images uint8 ``[N, H, W, C]`` moved by at most ``epsilon`` pixel steps a coordinate so that the loss rises.

    Starts at a random point of the ball, takes ``steps`` signed-gradient steps of 2.5 epsilon / steps, and rounds to
    the pixel grid at the end, which never leaves the ball.
    """
    low, high = (images.float() - epsilon).clamp(min=0), (images.float() + epsilon).clamp(max=255)
    moved = (images + (2 * torch.rand(images.shape) - 1) * epsilon).clamp(low, high)
    for _ in range(steps if epsilon else 0):
        moved.requires_grad_(True)
        loss = functional.cross_entropy(network(moved.permute(0, 3, 1, 2) / 255), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = (moved.detach() + 2.5 * epsilon / steps * gradient.sign()).clamp(low, high)
    return moved.detach().round().to(torch.uint8)


def choose(data: ImageSet, count: int) -> ImageSet:
    """``count`` images, evenly spread over the data set."""
    chosen = torch.linspace(0, len(data.labels) - 1, min(count, len(data.labels))).long()
    return ImageSet(data.images[chosen], data.labels[chosen], data.classes)


@click.command()
@click.argument("float_program", type=click.Path(path_type=Path, exists=True))
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--data", required=True, help="Test images: folder:DIR, cifar10:DIR, npz:FILE or demo.")
@click.option("--images", "count", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=STEPS, show_default=True, help="Of gradient descent.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
def main(float_program: Path, artifact: Path, data: str, count: int, steps: int, seed: int, output: Path) -> None:
    """Attack a float network and show what it does to that network and to its 8-bit form."""
    torch.manual_seed(seed)
    program, _ = load_program(float_program)
    network = program.module()
    chosen = choose(load_images(open_dataset(data_source(data), shape=image_shape(program))), count)
    rows = []
    with open_artifact(artifact) as session:
        for epsilon in EPSILONS:
            moved = attack(network, chosen.images, chosen.labels, epsilon, steps)
            with torch.no_grad():
                of_float = network(network_input(moved)).argmax(1)
            of_integers = session.logits(moved.numpy().astype(np.int16)).argmax(-1)
            for name, answers in (("float", of_float.numpy()), ("int8", of_integers)):
                right = int((answers == chosen.labels.numpy()).sum())
                rows.append((name, epsilon, len(answers), *wilson(right, len(answers))))
    write_table(output / "attack.tsv", ("network", "epsilon_pixel_steps", "images", "accuracy", "low", "high"), rows)
    picture, axes = plt.subplots(figsize=(4.5, 3.4))
    for name in ("float", "int8"):
        axes.plot(EPSILONS, [row[3] for row in rows if row[0] == name], marker="o", label=name)
    axes.set_xlabel("l-infinity radius in pixel steps")
    axes.set_ylabel("accuracy under attack")
    axes.set_ylim(0, 1)
    axes.legend()
    picture.tight_layout()
    picture.savefig(output / "attack.png", dpi=150)
    click.echo(f"wrote {output / 'attack.tsv'} and attack.png")


if __name__ == "__main__":
    main()
