"""Arguments and options that several commands share, and what their values name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from intcert.cli.failure import Failure

if TYPE_CHECKING:
    from intcert.runtime.datasets import Dataset

DEMO = "demo"
MODEL_SUFFIXES = (".pt2", ".graph")


class Network(Protocol):
    """What takes images of one shape (H, W, C) and knows so many classes: a session, or an integer graph."""

    input_shape: tuple[int, int, int]
    classes: int


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

data_option = click.option(
    "--data",
    metavar="SPEC",
    required=True,
    help="Images: folder:DIR (a folder for each class), cifar10:DIR, mnist:DIR, caltech101:DIR, npz:FILE, or demo.",
)
split_option = click.option(
    "--split", metavar="NAME", default="test", show_default=True, help="Part of the data set: test or train."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads, by default all cores; results do not depend on it."
)
seed_option = click.option(
    "--seed",
    metavar="INTEGER",
    help="Key of the noise, 0..2^64-1, to repeat a run; by default a fresh secret one. A certificate whose key the "
    "adversary could know is worth nothing.",
)
alpha_option = click.option(
    "--alpha", metavar="P", default="0.001", show_default=True, help="Probability of a wrong answer, an exact decimal."
)


def _refuse_model(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    if is_model(value):
        raise Failure(f"{value} is a model; compile it first, and give the artifact: intcert compile {value}")
    return value


def artifact_argument() -> Decorator:
    """The compiled artifact a command works on, as a Path."""
    return click.argument("artifact", metavar="ARTIFACT", type=click.Path(path_type=Path), callback=_refuse_model)


def demo_folder() -> Path:
    """Folder of the shipped model and images."""
    return Path(str(resources.files("intcert.cli").joinpath("demo")))


def model_path(name: str) -> Path:
    """The model file that an argument names: a path, or the word ``demo`` for the shipped model."""
    return demo_folder() / "resnet20.pt2" if name == DEMO else Path(name)


def is_model(path: Path) -> bool:
    """Whether an argument names a model; anything else is taken for an artifact."""
    return path.suffix in MODEL_SUFFIXES


def check_writable(path: Path) -> None:
    """Refuse an output file that cannot be created, before the work whose result it would take.

    Raises:
        Failure: its folder does not exist or may not be written, or a folder is in its place.
    """
    folder = path.parent
    if path.is_dir():
        raise Failure(f"{path} is a folder; give the name of a file to write")
    if not folder.is_dir():
        raise Failure(f"{path} cannot be written: there is no folder {folder}; make it, or give another --output")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise Failure(f"{path} cannot be written: permission denied; give another --output")


def data_source(spec: str) -> str:
    """The data source that ``--data`` names, ``demo`` replaced by the shipped images."""
    return f"folder:{demo_folder() / 'images'}" if spec == DEMO else spec


def open_data(spec: str, split: str, network: Network, class_names: Sequence[str] = ()) -> Dataset:
    """The data set of ``--data`` and ``--split`` for a network; class_names: the network's, where they are known.

    Raises:
        DatasetError: it cannot be used.
    """
    from intcert.runtime.datasets import open_dataset

    dataset = open_dataset(data_source(spec), split, shape=network.input_shape, classes=network.classes)
    if class_names and dataset.class_names and tuple(class_names) != dataset.class_names:
        click.echo(
            f"warning: the classes of {spec} ({', '.join(dataset.class_names)}) are not the model's "
            f"({', '.join(class_names)}); labels are compared by their numbers",
            err=True,
        )
    return dataset


def run_key(seed: str | None) -> int:
    """The run key of ``--seed``, or a fresh one. CertificateError: the seed is no 64-bit number."""
    from intcert.runtime.keys import new_run_key, parse_seed

    return new_run_key() if seed is None else parse_seed(seed)
