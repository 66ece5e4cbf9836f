"""``intcert quantize``: post-training quantization of a float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intcert.cli import options
from intcert.cli.failure import Failure

if TYPE_CHECKING:
    from torch.nn import Module


@click.command("quantize")
@click.argument("model", type=click.Path(path_type=Path))
@options.data_option
@click.option("--split", metavar="NAME", default="train", show_default=True, help="Part of the data set to look at.")
@click.option("--arch", metavar="NAME", help="Network of a state dict: resnet20, resnet110, resnet50, mobilenetv2, ...")
@click.option(
    "--sigma", metavar="S", help="Noise level on the [0, 1] scale; by default the one that the model carries."
)
@click.option("--images", type=click.IntRange(min=1), default=1024, show_default=True, help="Calibration images.")
@click.option(
    "--ranges",
    type=click.Choice(["clipped", "minmax"]),
    default="clipped",
    show_default=True,
    help="What an activation's 8 bits cover: all but the outermost values of a batch, or all.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of images and noise.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Program to write, like model.pt2."
)
def command(
    model: Path,
    data: str,
    split: str,
    arch: str | None,
    sigma: str | None,
    images: int,
    ranges: str,
    seed: int,
    threads: int | None,
    output: Path,
) -> None:
    """Quantize a float model to 8 bits without training.

    MODEL is a float program (.pt2), or a state dict that torch.save wrote, with --arch. Activations are observed on
    images with the noise that certification will add.
    """
    options.check_writable(output)

    from intcert.cli.output import both_scales, byte_size, facts, progress_bar
    from intcert.runtime.datasets import open_dataset
    from intcert.runtime.decimals import canonical_decimal
    from intcert.train.calibrate import quantize
    from intcert.train.data import load_images
    from intcert.train.devices import limit_threads
    from intcert.train.program import save_program

    limit_threads(threads)
    network, shape, metadata = _network(model, arch)
    sigma = sigma or metadata.get("sigma")
    if sigma is None:
        raise Failure(f"{model} does not carry its sigma; give the noise level on the [0, 1] scale, like --sigma 0.25")
    calibration = load_images(open_dataset(options.data_source(data), split, shape=shape))
    if network is None:
        network = _load_arch(model, arch, len(calibration.classes))
    with progress_bar() as bar:
        task = bar.add_task("batches", total=None, note="")
        program = quantize(
            network,
            calibration,
            sigma,
            images=images,
            ranges=ranges,
            seed=seed,
            progress=lambda done, total: bar.update(task, total=total, completed=done),
        )
    sigma = canonical_decimal(sigma)
    names = metadata.get("class_names", list(calibration.classes))
    calibrated = {"data": data, "images": images, "ranges": ranges, "seed": seed}
    kept = {name: metadata[name] for name in ("arch", "mean", "std", "dataset", "training") if name in metadata}
    fresh = {"recipe": "post-training", "sigma": sigma, "class_names": names, "calibration": calibrated}
    save_program(program, output, {**({} if arch is None else {"arch": arch}), **kept, **fresh})
    click.echo(facts([("program", f"{output} ({byte_size(output.stat().st_size)})"), ("sigma", both_scales(sigma))]))


def _network(model: Path, arch: str | None) -> tuple[Module | None, tuple[int, int, int], dict[str, Any]]:
    """A program's network, image shape (H, W, C) and metadata.

    A state dict's network is not built yet: the calibration images tell the number of classes.
    """
    from intcert.train.calibrate import ExportedNetwork
    from intcert.train.models import MODELS
    from intcert.train.program import image_shape, load_program

    if model.suffix == ".pt2":
        if arch is not None:
            raise Failure(f"{model} is a program and knows its network; leave --arch out")
        program, metadata = load_program(model)
        return ExportedNetwork(program), image_shape(program), metadata
    if arch not in MODELS:
        raise Failure(f"{model} is no .pt2, so its network must be named: --arch {', '.join(MODELS)}; not {arch}")
    channels, height, width = MODELS[arch].input_shape
    return None, (height, width, channels), {}


def _load_arch(model: Path, arch: str, classes: int) -> Module:
    from intcert.train.loop import build
    from intcert.train.program import read_weights

    return build(arch, classes, read_weights(model))
