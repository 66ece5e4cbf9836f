"""Programs of NVIDIA's CUDA toolkit, where it is installed or as Python packages bring them."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def find_program(name: str, package: str) -> str | None:
    """Path of a program: on the path, in ``CUDA_HOME`` (by default /usr/local/cuda), or in a Python package."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which(name) or shutil.which(name, path=str(Path(home) / "bin"))
    if found is None:
        try:
            packaged = [file for file in files(package) or () if file.name == name]
        except PackageNotFoundError:
            packaged = []
        found = next((str(file.locate()) for file in packaged), None)
    return found
