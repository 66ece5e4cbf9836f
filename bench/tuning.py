"""What a tuning database is worth: counts of one model, compiled without and with it, in turns on one core.

    python bench/tuning.py [MODEL] [--target x86] [--db shipped] [--samples 2000] [--rounds 21]

Prints images a second of both, medians over the rounds, the median of the ratios of a round, and in how many rounds the
tuned one was faster. Both count the same image with the same key; other counts are an error.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import click
import numpy as np

from intcert.cli.options import DEMO, model_path
from intcert.compile.build import compile_artifact
from intcert.compile.database import NONE, SHIPPED
from intcert.runtime.session import LocalSession, open_artifact

SIGMA = "0.25"
KEY = 1


def seconds(session: LocalSession, image: np.ndarray, samples: int) -> float:
    """CPU seconds of this process for some samples, on one thread."""
    begin = time.process_time()
    session.counts(image, KEY, 0, samples)
    return time.process_time() - begin


@click.command()
@click.argument("model", default=DEMO)
@click.option("--target", default="host", show_default=True)
@click.option("--db", "database", default=SHIPPED, show_default=True)
@click.option("--samples", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=21, show_default=True)
def main(model: str, target: str, database: str, samples: int, rounds: int) -> None:
    """Compare MODEL (a .pt2 or .graph file, or the word demo) without and with a tuning database."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("default.intcert", "tuned.intcert")]
        for path, choice in zip(paths, (NONE, database), strict=True):
            compile_artifact(model_path(model), path, target=target, sigma=SIGMA, database=choice)
        with open_artifact(paths[0], threads=1) as default, open_artifact(paths[1], threads=1) as tuned:
            image = np.full(default.input_shape, 128, np.uint8)
            if (default.counts(image, KEY, 0, samples) != tuned.counts(image, KEY, 0, samples)).any():
                raise click.ClickException("the two count differently")
            times = []
            for turn in range(rounds):
                order = (default, tuned) if turn % 2 == 0 else (tuned, default)
                taken = {session: seconds(session, image, samples) for session in order}
                times.append((taken[default], taken[tuned]))
    rates = [samples / median(column) for column in zip(*times, strict=True)]
    ratios = [before / after for before, after in times]
    print(f"{target}, {samples} samples, {rounds} rounds: default {rates[0]:,.0f} images/s, tuned {rates[1]:,.0f}")
    print(f"tuned / default {median(ratios):.3f}, faster in {sum(ratio > 1 for ratio in ratios)} of {rounds} rounds")


if __name__ == "__main__":
    main()
