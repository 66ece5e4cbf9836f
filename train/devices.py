"""Where training runs, and what runs well there."""

from __future__ import annotations

import torch

from intcert.runtime.errors import WrongDeviceError
from intcert.runtime.session import cpu_flags

CHOICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """The device of ``--device``: one of ``CHOICES``; ``auto`` takes a GPU where torch sees one.

    Raises:
        WrongDeviceError: there is no GPU that torch can use.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise WrongDeviceError("--device cuda, but torch sees no GPU here; give --device cpu, or install a GPU build")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 autocast is quicker than float32: on CPUs with AMX and on GPUs that have it."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else "amx_bf16" in cpu_flags()


def limit_threads(threads: int | None) -> None:
    """Use so many CPU threads for one operator; None leaves torch's own number."""
    if threads is not None:
        torch.set_num_threads(threads)
