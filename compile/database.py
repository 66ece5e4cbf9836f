"""Tuning databases: which schedule was measured to be best for a layer, and how many images at once for a network.

A database is a JSON file for one target, a line an entry, sorted. Its header says on what it was measured. Those for
the networks that come with intcert lie in ``compile/databases``, named after their targets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path

from intcert.compile.kernels import Schedule
from intcert.compile.layer import Layer
from intcert.runtime.errors import DatabaseError
from intcert.runtime.files import write_whole
from intcert.targets import TARGETS, CudaTarget, Target

FORMAT = 1
SHIPPED, NONE = "shipped", "none"


@dataclass(frozen=True)
class Measured:
    """Median times of the default and of what was chosen, microseconds an image; equal where the default was."""

    default_us: float
    best_us: float


@dataclass(frozen=True)
class LayerEntry(Measured):
    """schedule: fields of the chosen ``Schedule``."""

    schedule: Mapping[str, int | bool]


@dataclass(frozen=True)
class NetworkEntry(Measured):
    """chunk: images at once; name: of the network, for people."""

    chunk: int
    name: str


@dataclass
class Database:
    """Choices for one target.

    machine: the processor, its instruction sets that the target uses, and the TVM version, when it was tuned;
    settings: how it was measured; layers: by ``Layer.workload``; networks: by ``layer.network_key``.
    """

    target: str
    machine: Mapping[str, str]
    settings: Mapping[str, object]
    layers: dict[str, LayerEntry] = field(default_factory=dict)
    networks: dict[str, NetworkEntry] = field(default_factory=dict)

    def schedule(self, layer: Layer) -> Schedule | None:
        """What was measured to be best for a layer; None where there is no entry.

        Raises DatabaseError where this version of the kernels has no such schedule.
        """
        entry = self.layers.get(layer.workload)
        if entry is None:
            return None
        for schedule in layer.schedules():
            if asdict(schedule) == entry.schedule:
                return schedule
        raise DatabaseError(
            f"the tuning database for {self.target} has the schedule {json.dumps(dict(entry.schedule))} for "
            f"{layer.name} ({layer.workload}), which this version does not know; tune again, or compile with --db none"
        )

    def chunk(self, network: str) -> int | None:
        """Images at once for a network, by its key; None where there is no entry."""
        entry = self.networks.get(network)
        return entry and entry.chunk

    def to_json(self) -> str:
        """The content of the file; equal databases give equal text."""
        header = {"format": FORMAT, "target": self.target, "machine": self.machine, "settings": self.settings}
        lines = [f" {json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in header.items()]
        layers = [{"workload": json.loads(key), **asdict(entry)} for key, entry in sorted(self.layers.items())]
        networks = [{"network": key, **asdict(entry)} for key, entry in sorted(self.networks.items())]
        for name, entries in (("layers", layers), ("networks", networks)):
            rows = ",".join(f"\n  {json.dumps(entry, sort_keys=True)}" for entry in entries)
            lines.append(f' "{name}": [{rows}\n ]')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Database:
        """Inverse of ``to_json``. Raises ValueError for anything else."""
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise ValueError(f"its format is {found!r}, not {FORMAT}")
        try:
            return cls(
                str(content["target"]),
                dict(content["machine"]),
                dict(content["settings"]),
                {
                    json.dumps(entry.pop("workload"), sort_keys=True): _entry(LayerEntry, entry)
                    for entry in content["layers"]
                },
                {entry.pop("network"): _entry(NetworkEntry, entry) for entry in content["networks"]},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file at once or not at all. Raises DatabaseError."""
        try:
            write_whole(Path(path), self.to_json().encode())
        except OSError as error:
            raise DatabaseError(f"{path} cannot be written ({error.strerror}); give another --db") from None


def _entry(kind: type[LayerEntry | NetworkEntry], content: dict[str, object]) -> LayerEntry | NetworkEntry:
    numbers = [content.get(name) for name in ("default_us", "best_us")]
    if content.keys() != {f.name for f in fields(kind)} or not all(isinstance(n, int | float) for n in numbers):
        raise TypeError(f"an entry with {sorted(content)}")
    return kind(**content)


def read_database(path: str | os.PathLike[str], target: Target | CudaTarget) -> Database:
    """Read a database for a target. Raises DatabaseError: missing, damaged, of another format, for another target."""
    path = Path(path)
    try:
        database = Database.from_json(path.read_text())
    except OSError as error:
        raise DatabaseError(
            f"cannot read the tuning database {str(path)!r}: {error.strerror}; make it with intcert tune"
        ) from None
    except ValueError as error:
        raise DatabaseError(f"{path} is not a tuning database ({error}); make one with intcert tune") from None
    if database.target != target.name:
        raise DatabaseError(
            f"{path} was tuned for {database.target}, not for {target.name}; tune for that, or give --db none"
        )
    return database


def shipped_database(target: Target | CudaTarget) -> Database | None:
    """The database that comes with intcert for a target, if there is one; none for a target that was altered."""
    file = resources.files("intcert.compile").joinpath("databases", f"{target.name}.json")
    return Database.from_json(file.read_text()) if target in TARGETS and file.is_file() else None


def open_database(name: str | os.PathLike[str], target: Target | CudaTarget) -> Database | None:
    """The database that a user names: a file, or the words ``shipped`` or ``none``. Raises DatabaseError."""
    if name == NONE:
        return None
    return shipped_database(target) if name == SHIPPED else read_database(name, target)
