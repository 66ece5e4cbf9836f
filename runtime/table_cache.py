"""Certificate tables come from the artifact, from a cache on disk, or are made now, which can take seconds."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from intcert.runtime.certificate import CertificateParameters, CertificateTable, certificate_table
from intcert.runtime.errors import ArtifactError
from intcert.runtime.files import write_whole
from intcert.runtime.noise import NoiseLaw


def load_table(parameters: CertificateParameters, law: NoiseLaw, embedded: Iterable[bytes] = ()) -> CertificateTable:
    """The certificate table of ``parameters`` for noise drawn from ``law``.

    embedded: tables that an artifact carries (``Artifact.certificates.values()``); one made for these parameters is
    taken. Otherwise the user's cache is asked, and a table made here is kept there; without a writable cache folder, or
    with a damaged file in it, the table is simply made again.

    Raises:
        CertificateError, SigmaError: as ``certificate_table``.
        ArtifactError: an embedded table is damaged.
    """
    for data in embedded:
        table = CertificateTable.from_bytes(data)
        if table.parameters == parameters:
            return table
    path = cache_folder() / f"{_cache_key(parameters, law)}.bin"
    table = _read(path)
    if table is None or table.parameters != parameters:
        table = certificate_table(parameters, law)
        _keep(path, table.to_bytes())
    return table


def cache_folder() -> Path:
    """Where tables are kept: ``intcert/tables`` in XDG_CACHE_HOME, else in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG base directory specification: a relative path is to be ignored.
    root = Path(base) if base and os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))
    return root / "intcert" / "tables"


def _cache_key(parameters: CertificateParameters, law: NoiseLaw) -> str:
    # The version is part of the key: a release that makes other tables must not find the old ones.
    identity = asdict(parameters) | {"noise": law.digest, "version": metadata.version("intcert")}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> CertificateTable | None:
    """The table in a cache file, or None where there is none or it is damaged."""
    try:
        digest, _, data = path.read_bytes().partition(b"\n")
        if hashlib.sha256(data).hexdigest().encode() != digest:
            return None
        return CertificateTable.from_bytes(data)
    except (OSError, ArtifactError):
        return None


def _keep(path: Path, data: bytes) -> None:
    """Put a file into the cache at once or not at all; a cache that cannot be written is no error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
