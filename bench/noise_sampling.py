"""What noise sampling costs in training: its share of a step, for every kind of noise and step.

    python bench/noise_sampling.py [--arch resnet20] [--sigma 0.25] [--batch-size 256] [--rounds 5]

A step is augmentation, noise, forward, backward and update, as in ``train/loop.py``; the paper's own sampler took three
minutes for such a batch. Times are medians of CPU seconds on the threads given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from torch.nn import functional

from intcert.compile.quantizer import prepare_qat
from intcert.runtime.session import cpu_name
from intcert.train.data import augment, make_sampler, network_input
from intcert.train.devices import has_fast_bf16
from intcert.train.models import MODELS
from intcert.train.ranges import OBSERVERS


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds of one call, after a first one that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


@click.command()
@click.option("--arch", type=click.Choice(list(MODELS)), default="resnet20", show_default=True)
@click.option("--sigma", default="0.25", show_default=True, help="On the [0, 1] scale.")
@click.option("--batch-size", type=click.IntRange(min=2), default=256, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(arch: str, sigma: str, batch_size: int, rounds: int, threads: int) -> None:
    """Print the share of noise sampling in a training step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    channels, *extents = MODELS[arch].input_shape
    images = torch.randint(256, (batch_size, *extents, channels), dtype=torch.uint8)
    labels = torch.arange(batch_size) % 10
    network = MODELS[arch](num_classes=10).train()
    prepared = prepare_qat(network, torch.zeros(2, channels, *extents), OBSERVERS["clipped"])
    samplers = {"discrete": make_sampler(sigma, discrete=True), "continuous": make_sampler(sigma, discrete=False)}
    bf16 = has_fast_bf16(torch.device("cpu"))

    def step(module: torch.nn.Module, low_precision: bool) -> None:
        inputs = network_input(augment(images, 4, True), samplers["discrete"](tuple(images.shape)))
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            logits = module(inputs.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer = torch.optim.SGD(module.parameters(), 1e-4, 0.9)
        optimizer.step()
        optimizer.zero_grad()

    sampling = {name: median_seconds(lambda s=s: s(tuple(images.shape)), rounds) for name, s in samplers.items()}
    network.to(memory_format=torch.channels_last)
    steps = {
        f"float{', bfloat16' if bf16 else ''}": median_seconds(lambda: step(network, bf16), rounds),
        "quantization-aware, float32": median_seconds(lambda: step(prepared, False), rounds),
    }
    click.echo(f"{cpu_name()}, {threads} thread(s), torch {torch.__version__}")
    click.echo(f"{arch}, {batch_size} images of {images[0].numel():,} coordinates, sigma {sigma}")
    for name, seconds in sampling.items():
        click.echo(f"  {name} noise: {1000 * seconds:.1f} ms a batch, {images.numel() / seconds / 1e6:.0f} M draws/s")
    for name, seconds in steps.items():
        share = sampling["discrete"] / seconds
        click.echo(f"  {name} step: {1000 * seconds:.0f} ms, discrete noise is {share:.1%} of it")


if __name__ == "__main__":
    main()
