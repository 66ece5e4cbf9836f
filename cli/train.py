"""``intcert train``: a classifier for certification, or one of the rivals it is compared with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intcert.cli import options
from intcert.cli.failure import Interrupted

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from intcert.train.data import ImageSet
    from intcert.train.recipes import Recipe

# Listed here, not imported: the help must not load torch. tests/cli/test_train.py compares them with train/.
RECIPES = ("intrs", "float", "floatrs-quant")
ARCHITECTURES = ("resnet20", "resnet110", "resnet50", "mobilenetv2", "lenet", "vgg", "mlp")


@click.command("train")
@click.option(
    "--recipe",
    type=click.Choice(RECIPES),
    default="intrs",
    show_default=True,
    help="intrs: discrete noise and quantization-aware; float: Cohen et al.; floatrs-quant: continuous noise, then "
    "quantized.",
)
@click.option("--arch", type=click.Choice(ARCHITECTURES), default="resnet20", show_default=True)
@options.data_option
@click.option("--split", metavar="NAME", default="train", show_default=True, help="Part of the data set to train on.")
@click.option("--test-data", metavar="SPEC", help="Test images: prints the accuracy on them at the end.")
@click.option("--dataset", metavar="NAME", help="Data set's name to record.  [default: that of its folder or file]")
@click.option("--sigma", metavar="S", required=True, help="Noise level on the [0, 1] scale, an exact decimal.")
@click.option("--epochs", type=int, default=90, show_default=True, help="Epochs of the whole run.")
@click.option(
    "--qat-epochs",
    type=int,
    help="How many of them, the last ones, are quantization-aware.  [default: a sixth, at least 1; float: 0]",
)
@click.option(
    "--init",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Float state dict to start from; a last layer of another number of classes starts anew.",
)
@click.option("--batch-size", type=int, help="Images a step.  [default: 256; resnet50: 64]")
@click.option("--lr", type=float, default=0.1, show_default=True, help="First learning rate in float.")
@click.option("--qat-lr", type=float, help="First learning rate with fake quantization.  [default: a tenth of --lr]")
@click.option(
    "--schedule",
    type=click.Choice(["step", "cosine"]),
    default="step",
    show_default=True,
    help="A tenth of the rate after each third of a phase, or half a cosine down to 0.",
)
@click.option("--flip/--no-flip", default=True, show_default=True, help="Mirror half of the images.")
@click.option(
    "--ranges",
    type=click.Choice(["clipped", "minmax"]),
    default="clipped",
    show_default=True,
    help="What an activation's 8 bits cover: all but the outermost values of a batch, or all.",
)
@click.option("--regularizer", type=click.Choice(["consistency"]), help="Jeong and Shin, NeurIPS 2020.")
@click.option("--lambda", "strength", type=float, default=20.0, show_default=True, help="Its weight.")
@click.option("--eta", type=float, default=0.5, show_default=True, help="Its weight of the mean prediction's entropy.")
@click.option("--m", "noises", type=int, default=2, show_default=True, help="Its noise draws an image.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every random choice.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--bf16/--no-bf16",
    default=None,
    help="Float epochs in bfloat16 autocast.  [default: where the CPU has AMX, and on a GPU]",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; the weights depend on their number.")
@click.option(
    "--workdir", type=click.Path(path_type=Path), help="Folder of checkpoints and logs.  [default: OUTPUT's name .run]"
)
@click.option("--resume", is_flag=True, help="Continue the run whose checkpoint is in --workdir.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Program to write, like model.pt2."
)
def command(
    data: str,
    split: str,
    test_data: str | None,
    dataset: str | None,
    init: Path | None,
    device: str,
    threads: int | None,
    workdir: Path | None,
    resume: bool,
    output: Path,
    **choices: Any,
) -> None:
    """Train a classifier on noisy images.

    Writes a program (.pt2) that `intcert compile` takes; a rival's is certified as it is. A checkpoint is written every
    10 minutes; the same seed gives the same weights, killed and resumed or not.
    """
    options.check_writable(output)

    from intcert.cli.output import both_scales, byte_size, facts
    from intcert.runtime.datasets import open_dataset
    from intcert.train.data import load_images
    from intcert.train.devices import choose_device, has_fast_bf16, limit_threads
    from intcert.train.models import MODELS
    from intcert.train.program import read_weights, save_program

    limit_threads(threads)
    place = choose_device(device)
    if choices["bf16"] is None:
        choices["bf16"] = has_fast_bf16(place)
    recipe = _recipe(choices)
    click.echo(f"sigma {both_scales(recipe.sigma)}")
    entry = MODELS[recipe.arch]
    channels, *size = entry.input_shape
    shape = (*size, channels)
    images = load_images(open_dataset(options.data_source(data), split, shape=shape))
    tests = None
    if test_data is not None:
        source = options.data_source(test_data)
        tests = load_images(open_dataset(source, "test", shape=shape, classes=len(images.classes)))
    weights = None if init is None else read_weights(init)
    workdir = workdir or output.with_suffix(".run")

    program = _train(recipe, images, workdir, init=weights, device=place, resume=resume)

    normalize = entry().normalize
    metadata = {
        "recipe": recipe.method,
        "arch": recipe.arch,
        "sigma": recipe.sigma,
        "mean": normalize.mean.flatten().tolist(),
        "std": normalize.std.flatten().tolist(),
        "class_names": list(images.classes),
        "dataset": dataset or Path(data.partition(":")[2] or data).name,
        "training": asdict(recipe),
    }
    save_program(program, output, metadata)
    size_on_disk = byte_size(output.stat().st_size)
    lines: list[tuple[str, object]] = [("program", f"{output} ({size_on_disk})"), ("log", workdir / "log.csv")]
    click.echo(facts(lines + ([] if tests is None else _accuracies(program, tests, recipe))))


def _recipe(choices: dict[str, Any]) -> Recipe:
    """The recipe that the options describe, defaults filled in."""
    from intcert.train.consistency import Consistency
    from intcert.train.recipes import BATCH_SIZE, BATCH_SIZES, METHODS, Recipe

    values = dict(choices)
    numbers = {name: values.pop(name) for name in ("strength", "eta", "noises")}
    values["regularizer"] = Consistency(**numbers) if values["regularizer"] else None
    values["method"] = values.pop("recipe")
    if values["qat_epochs"] is None:
        values["qat_epochs"] = max(1, values["epochs"] // 6) if METHODS[values["method"]].quantized else 0
    if values["qat_lr"] is None:
        values["qat_lr"] = values["lr"] / 10
    if values["batch_size"] is None:
        values["batch_size"] = BATCH_SIZES.get(values["arch"], BATCH_SIZE)
    return Recipe(**values)


def _train(recipe: Recipe, images: ImageSet, workdir: Path, **settings: Any) -> ExportedProgram:
    """Run the loop with its log and under a progress bar. settings: as ``loop.train``'s."""
    from intcert.cli.output import progress_bar
    from intcert.train.log import TrainingLog
    from intcert.train.loop import Step, train

    with TrainingLog(workdir) as log, progress_bar() as bar:
        if not log.events:
            click.echo(
                f"tensorboard is not installed, so the log is {workdir / 'log.csv'} alone; "
                "for event files too: pip install 'intcert[train]'"
            )
        tasks = {phase.name: bar.add_task(f"{phase.name} steps", total=None, note="") for phase in recipe.phases}

        def show(step: Step) -> None:
            log(step)
            bar.update(tasks[step.phase], total=step.total, completed=step.done, note=f"loss {step.loss:.3f}")

        try:
            return train(recipe, images, workdir, report=show, **settings)
        except KeyboardInterrupt:
            raise Interrupted(
                f"checkpoints are in {workdir}, one every 10 minutes; go on with the same command and --resume"
            ) from None


def _accuracies(program: ExportedProgram, tests: ImageSet, recipe: Recipe) -> list[tuple[str, object]]:
    """What a program achieves on test images, without noise and with that of its training."""
    from intcert.train.data import make_sampler
    from intcert.train.loop import accuracy
    from intcert.train.recipes import METHODS

    network = program.module()
    sampler = make_sampler(recipe.sigma, METHODS[recipe.method].discrete)
    return [
        ("clean accuracy", f"{accuracy(network, tests, None):.4f} on {len(tests.labels)} images"),
        ("noisy accuracy", f"{accuracy(network, tests, sampler):.4f}, one draw an image"),
    ]
