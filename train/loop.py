"""The training loop: noisy images, in float and then through fake quantization, repeatable and resumable to the bit.

Randomized smoothing certifies a classifier through its answers on noisy images, so it is trained on them (Cohen,
Rosenfeld and Kolter 2019, section 3.3; Lin et al. 2021, section 3.3). The noise is that of the recipe's method, added
to the 8-bit pixels and not clamped to 0..255.

Every random choice of a step depends only on the seed, the phase and the step's number. A run that is killed and
started again therefore ends in the same weights as one that is not.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional
from torchao.quantization.pt2e import disable_observer

from intcert.compile.quantizer import convert, prepare_qat
from intcert.runtime.errors import DatasetError, ModelError
from intcert.train.checkpoint import Checkpoint
from intcert.train.data import ImageSet, Sampler, augment, make_sampler, network_input
from intcert.train.models import MODELS, load_float_weights
from intcert.train.program import export_float
from intcert.train.ranges import OBSERVERS
from intcert.train.recipes import METHODS, Phase, Recipe

# Share of the quantization-aware steps after which the scales stay as they are and only weights move.
OBSERVED_SHARE = 2 / 3

CHECKPOINT_SECONDS = 600.0


@dataclass(frozen=True)
class Step:
    """A step that was just done. done of total steps of the phase; epoch: how many of the phase's are over, a fraction;
    loss, lr: of this step; images, seconds: what it took.
    """

    phase: str
    done: int
    total: int
    epoch: float
    loss: float
    lr: float
    images: int
    seconds: float


Report = Callable[[Step], None]


def train(
    recipe: Recipe,
    data: ImageSet,
    workdir: Path,
    *,
    init: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    report: Report = lambda step: None,
) -> ExportedProgram:
    """Run ``recipe``; the program, float ``[N, C, H, W]`` in [0, 1] -> logits, with a dynamic batch, on the CPU.

    init: a float state dict to start from. A checkpoint is written to ``workdir`` every ``checkpoint_seconds`` and at
    the end of each phase; with resume the run goes on from the one that is there. ``report`` is called after each step.

    Raises:
        ModelError: ``init`` does not fit the network.
        DatasetError: the images do not have the size that the network takes, or are fewer than a batch.
        SigmaError: no noise law exists for the recipe's sigma.
        IntcertError: a checkpoint is in the way, belongs to another run, or cannot be read.
    """
    check_images(recipe.arch, data)
    if len(data.labels) < recipe.batch_size:
        raise DatasetError(
            f"{len(data.labels)} training images do not fill a batch of {recipe.batch_size}; "
            "give a smaller --batch-size"
        )
    sampler = make_sampler(recipe.sigma, METHODS[recipe.method].discrete, device)
    network = build(recipe.arch, len(data.classes), init, seed=recipe.seed)
    workdir.mkdir(parents=True, exist_ok=True)
    identity = {**asdict(recipe), "classes": list(data.classes), "images": _crc(data.images, data.labels)}
    identity["first weights"] = None if init is None else _crc(*(init[name] for name in sorted(init)))
    checkpoint = Checkpoint(workdir, identity, resume=resume, seconds=checkpoint_seconds)

    example = torch.zeros(2, *MODELS[recipe.arch].input_shape)
    for phase in recipe.phases:
        if phase.name == "float":
            if checkpoint.phase == "qat":
                continue
            network = network.train().to(device, memory_format=torch.channels_last)
        else:
            # Fake quantization gains nothing from channels-last weights, and exported ones should be row-major.
            network = network.to("cpu", memory_format=torch.contiguous_format)
            network = prepare_qat(network, example, OBSERVERS[recipe.ranges]).to(device)
        _run_phase(network, recipe, phase, data, sampler, checkpoint, report, device)
    network = network.to("cpu")
    if METHODS[recipe.method].quantized:
        return convert(network, example)
    return export_float(network.to(memory_format=torch.contiguous_format), example)


def check_images(arch: str, data: ImageSet) -> None:
    """Raise DatasetError unless the images have the size that ``arch`` takes."""
    channels, *size = MODELS[arch].input_shape
    if tuple(data.images.shape[1:]) != (*size, channels):
        raise DatasetError(
            f"{arch} takes (C, H, W) = {MODELS[arch].input_shape}, the images are (H, W, C) = "
            f"{tuple(data.images.shape[1:])}; resize them or choose another --arch"
        )


def build(arch: str, classes: int, init: Mapping[str, Tensor] | None, seed: int = 0) -> nn.Module:
    """A float network in train mode, with weights from ``init`` or new ones from ``seed``.

    A last layer of another number of classes is not taken from ``init``: weights of ImageNet serve for other data sets.

    Raises:
        ModelError: ``init`` does not fit.
    """
    torch.manual_seed(derived_seed(seed, "init", 0))
    network = MODELS[arch](num_classes=classes).train()
    if init is not None:
        try:
            load_float_weights(network, _without_foreign_head(init, network))
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ModelError(f"the first weights do not fit {arch}: {' '.join(str(error).split())}") from error
    return network


def accuracy(model: Callable[[Tensor], Tensor], data: ImageSet, sampler: Sampler | None, seed: int = 0) -> float:
    """Share of ``data`` that ``model`` classifies correctly, on clean images or with one noise draw each."""
    torch.manual_seed(derived_seed(seed, "accuracy", 0))
    correct = 0
    with torch.no_grad():
        for images, labels in zip(data.images.split(250), data.labels.split(250), strict=True):
            noise = None if sampler is None else sampler(tuple(images.shape))
            correct += int((model(network_input(images, noise)).argmax(1) == labels).sum())
    return correct / len(data.labels)


def learning_rate(schedule: str, peak: float, step: int, total: int) -> float:
    """The rate of a phase's step number ``step`` of ``total``; see ``Recipe.schedule``."""
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * step / total)) / 2
    return peak / 10 ** (3 * step // total)


def derived_seed(seed: int, purpose: str, index: int) -> int:
    """A 64-bit seed for one purpose; different purposes and indices give independent streams."""
    return int(np.random.SeedSequence((seed, zlib.crc32(purpose.encode()), index)).generate_state(1, np.uint64)[0])


def _run_phase(
    network: nn.Module,
    recipe: Recipe,
    phase: Phase,
    data: ImageSet,
    sampler: Sampler,
    checkpoint: Checkpoint,
    report: Report,
    device: torch.device | str,
) -> None:
    """The steps of one phase that are still to do, on ``network`` in place."""
    optimizer = torch.optim.SGD(
        network.parameters(), phase.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.momentum > 0
    )
    count, size = len(data.labels), recipe.batch_size
    epoch_steps = count // size
    total = phase.epochs * epoch_steps
    first = checkpoint.restore(phase.name, network, optimizer)
    order = None
    for step in range(first, total):
        began = time.perf_counter()
        epoch, position = divmod(step, epoch_steps)
        if order is None or position == 0:
            order = np.random.default_rng(derived_seed(recipe.seed, f"{phase.name} epoch", epoch)).permutation(count)
        chosen = torch.from_numpy(order[position * size : (position + 1) * size])
        torch.manual_seed(derived_seed(recipe.seed, f"{phase.name} step", step))
        images = augment(data.images[chosen].to(device), recipe.crop_padding, recipe.flip)

        rate = learning_rate(recipe.schedule, phase.lr, step, total)
        optimizer.param_groups[0]["lr"] = rate
        if phase.name == "qat" and step >= OBSERVED_SHARE * total:
            network.apply(disable_observer)
        loss = _loss(network, recipe, images, data.labels[chosen].to(device), sampler, bf16=phase.name == "float")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        checkpoint.save(phase.name, step + 1, network, optimizer, force=step + 1 == total)
        elapsed = time.perf_counter() - began
        report(Step(phase.name, step + 1, total, (step + 1) / epoch_steps, loss.item(), rate, size, elapsed))


def _loss(network: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor, sampler: Sampler, bf16: bool) -> Tensor:
    """Cross entropy on noisy images, plus the regularizer where there is one."""
    regularizer = recipe.regularizer
    draws = 1 if regularizer is None else regularizer.noises
    inputs = torch.cat([network_input(images, sampler(tuple(images.shape))) for _ in range(draws)])
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.bf16 and bf16):
        logits = network(inputs)
    logits = logits.float()
    loss = functional.cross_entropy(logits, labels.repeat(draws))
    return loss if regularizer is None else loss + regularizer(logits)


def _without_foreign_head(init: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """``init`` with the last layer of ``network`` where its own is for another number of classes."""
    own = network.state_dict()
    state = {name.removeprefix("module."): value for name, value in init.items()}
    for name in list(own)[-2:]:  # weight and bias of the last linear
        if name in state and state[name].shape[1:] == own[name].shape[1:]:
            state[name] = state[name] if state[name].shape == own[name].shape else own[name]
    return state


def _crc(*tensors: Tensor) -> int:
    """A check sum of tensors' bytes."""
    result = 0
    for tensor in tensors:
        result = zlib.crc32(np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(-1).view(np.uint8), result)
    return result
