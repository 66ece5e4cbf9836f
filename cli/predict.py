"""``intcert predict``: the smoothed classifier's class of single images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from intcert.cli import options

if TYPE_CHECKING:
    from intcert.runtime.datasets import Dataset, Sample
    from intcert.runtime.session import Session

Answer = TypeVar("Answer")


@click.command("predict")
@options.artifact_argument()
@click.argument("files", metavar="[FILE...]", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--images",
    metavar="FILE...",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Image files, or folders of them.",
)
@click.option("--data", metavar="SPEC", help="Images with labels, as for certify: folder:DIR, cifar10:DIR, ..., demo.")
@options.split_option
@click.option("--n", type=click.IntRange(min=1), default=1000, show_default=True, help="Samples an image.")
@options.alpha_option
@click.option("--skip", type=click.IntRange(min=1), default=1, show_default=True, help="Take every SKIP-th image.")
@click.option(
    "--max", "limit", metavar="INDEX", type=click.IntRange(min=0), help="Stop before the image of this index."
)
@options.device_option
@options.threads_option
@options.board_options
@options.seed_option
def command(
    artifact: Path,
    files: tuple[Path, ...],
    images: tuple[Path, ...],
    data: str | None,
    split: str,
    n: int,
    alpha: str,
    skip: int,
    limit: int | None,
    device: str | None,
    threads: int | None,
    boards: options.Boards | None,
    seed: str | None,
) -> None:
    """Predict the class of images under noise.

    Prints ABSTAIN where the samples do not decide. Each answer is wrong with probability alpha at most. For a
    radius use certify.
    """
    paths = [*images, *files]
    if (data is None) == (not paths):
        raise click.UsageError("give either image files (--images FILE...) or a data set (--data SPEC)")
    key = options.run_key(seed)

    from intcert.cli.networks import open_network
    from intcert.runtime import ABSTAIN, image_key, predict

    tally = dict.fromkeys(("correct", "wrong", "abstained"), 0)
    with open_network(artifact, threads, None, device, boards) as opened:
        session = opened.session
        if data is None:
            dataset, names = _open_files(paths, session)
        else:
            dataset = options.open_data(data, split, session, opened.class_names)
            names = [f"{data}[{index}]" for index in range(len(dataset))]
        labels = opened.class_names or dataset.class_names or tuple(map(str, range(session.classes)))
        indices = range(0, len(dataset) if limit is None else min(limit, len(dataset)), skip)

        def predict_index(place: Session, index: int) -> tuple[Sample, int]:
            sample = dataset[index]
            return sample, predict(place, sample.image, image_key(key, index), n, alpha)

        for index, (sample, found) in _in_order(indices, opened.each(predict_index, indices)):
            answer = "ABSTAIN" if found == ABSTAIN else labels[found]
            truth = "" if data is None else f"\t{labels[sample.label]}"
            click.echo(f"{names[index]}\t{answer}{truth}")
            tally["abstained" if found == ABSTAIN else "correct" if found == sample.label else "wrong"] += 1
    if data is not None:
        click.echo(", ".join(f"{count} {what}" for what, count in tally.items()), err=True)


def _in_order(indices: Iterable[int], found: Iterable[tuple[int, Answer]]) -> Iterator[tuple[int, Answer]]:
    """What several boards find, in the order of the images."""
    waiting: dict[int, Answer] = {}
    results = iter(found)
    for index in indices:
        while index not in waiting:
            waiting.update([next(results)])
        yield index, waiting.pop(index)


def _open_files(paths: Sequence[Path], session: Session) -> tuple[Dataset, list[str]]:
    """Single image files as a data set without labels, and their names; folders give every image below them."""
    from PIL import Image

    from intcert.runtime.datasets.folder import FolderDataset
    from intcert.runtime.errors import DatasetError

    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    names: list[str] = []
    for path in paths:
        if path.is_dir():
            found = sorted((str(p) for p in path.rglob("*") if p.suffix.lower() in readable), key=os.fsencode)
            if not found:
                raise DatasetError(f"{path} has no images; give image files, or a folder of them")
            names += found
        elif path.is_file():
            names.append(str(path))
        else:
            raise DatasetError(f"{path} does not exist; give image files, or a folder of them")
    return FolderDataset("--images", Path(), "", (), [(name, -1) for name in names], session.input_shape), names
