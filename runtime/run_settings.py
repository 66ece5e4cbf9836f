"""What a certification run computes, in a JSON file beside its ledger, written before the first image.

The run key is in it and nowhere else: whoever knows the key before choosing an image can choose one that the noise does
not reveal, so the file is for its owner's eyes only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from intcert.runtime.errors import LedgerError
from intcert.runtime.files import sync_folder, write_whole
from intcert.runtime.keys import format_key, parse_key

FORMAT_VERSION = 1

_COMPARED = ("graph", "noise", "sigma", "alpha", "n0", "n", "rule", "dataset")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run computes.

    graph, noise, sigma, alpha, n0 (selection samples), n (estimation samples, at most), rule and dataset (its identity)
    decide the rows, so they must be the same when a run is resumed; versions and options are for the record.
    """

    graph: str
    noise: str
    sigma: str
    alpha: str
    n0: int
    n: int
    rule: str
    dataset: str
    versions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def differences(self, other: "RunSettings") -> list[str]:
        """Names of the settings that decide the rows and are not equal."""
        return [name for name in _COMPARED if getattr(self, name) != getattr(other, name)]


def settings_path(ledger: str | Path) -> Path:
    """The settings file that belongs to a ledger: ``run.json`` for ``run.tsv``."""
    path = Path(ledger)
    # Only .tsv is dropped: in names like sigma_0.25 the last dot begins no suffix.
    return path.with_name(path.name.removesuffix(".tsv") + ".json")


def read_settings(path: str | Path) -> tuple[RunSettings, int]:
    """Settings and run key from a settings file.

    Raises:
        LedgerError: missing, damaged, or of another version.
    """
    try:
        content = json.loads(Path(path).read_bytes())
        if content.pop("format") != FORMAT_VERSION:
            raise ValueError("unknown format")
        key = parse_key(content.pop("run_key"))
        settings = RunSettings(**content)
        for entry in fields(RunSettings):
            value, expected = getattr(settings, entry.name), {int: int, str: str}.get(entry.type, dict)
            if not isinstance(value, expected):
                raise ValueError(f"{entry.name} is {value!r}")
    except FileNotFoundError as error:
        raise LedgerError(f"{path} does not exist; it is written beside every ledger") from error
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LedgerError(f"{path} is damaged or not a run's settings ({error}); give another output name") from error
    return settings, key


def write_settings(path: Path, settings: RunSettings, run_key: int) -> None:
    """On the disk at once or not at all: the run key must outlive whatever its first row outlives."""
    content = {"format": FORMAT_VERSION, "run_key": format_key(run_key), **asdict(settings)}
    # The key is secret until the run is over, so nobody else may read it.
    write_whole(path, f"{json.dumps(content, indent=1)}\n".encode(), 0o600)
    sync_folder(path.parent)
