"""The state of a training run on disk: what makes a killed run end in the same weights as one that is not."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intcert.runtime.errors import IntcertError

NAME = "checkpoint.pt"


class Checkpoint:
    """One file in a run's folder, replaced whole when it is due."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, resume: bool, seconds: float) -> None:
        """Look for a checkpoint in ``folder``.

        identity: plain values that decide the weights; a checkpoint with others is refused. resume: go on from a
        checkpoint that is there; without one, begin. seconds: least time between two of them.

        Raises:
            IntcertError: there is one and resume is False, it is another run's, or it cannot be read.
        """
        self._path = folder / NAME
        self._identity, self._seconds = dict(identity), seconds
        self._saved_at = time.monotonic()
        self._state: dict[str, Any] = {}
        if not self._path.exists():
            return
        if not resume:
            raise IntcertError(f"{self._path} exists; continue that run with --resume, or give another --workdir")
        try:
            self._state = torch.load(self._path, map_location="cpu", weights_only=True)
            found = self._state["identity"]
        except Exception as error:  # torch.load reports damage by a dozen exception types
            raise IntcertError(f"cannot read {self._path} ({error}); delete it to start again") from error
        differing = sorted(name for name, value in self._identity.items() if found.get(name) != value)
        if differing:
            raise IntcertError(
                f"{self._path} is of a run with another {', '.join(differing)}; "
                "resume with the same, or give another --workdir"
            )

    @property
    def phase(self) -> str | None:
        """The phase that the checkpoint on disk was written in."""
        return self._state.get("phase")

    def restore(self, phase: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the state if it is of ``phase``; the number of steps done."""
        if self.phase != phase:
            return 0
        network.load_state_dict(self._state["network"])
        optimizer.load_state_dict(self._state["optimizer"])
        return self._state["step"]

    def save(self, phase: str, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, force: bool) -> None:
        """Write the state if it is due or ``force`` is set."""
        if not force and time.monotonic() - self._saved_at < self._seconds:
            return
        state = {"identity": self._identity, "phase": phase, "step": step}
        partial = self._path.with_suffix(".partial")
        torch.save(state | {"network": network.state_dict(), "optimizer": optimizer.state_dict()}, partial)
        os.replace(partial, self._path)
        self._saved_at = time.monotonic()
