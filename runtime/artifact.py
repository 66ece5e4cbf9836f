"""The ``.intcert`` file: a zip of a manifest, a compiled library, the integer graph, the noise law and certificates.

Opening an artifact as a session runs its code. The hashes find damage; they are no signature and protect against no
malice. Reading one runs nothing, unpacks nothing and takes no more memory than the file has bytes: members are stored
uncompressed under fixed names.
"""

import dataclasses
import functools
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from intcert.runtime.errors import ArtifactError
from intcert.runtime.files import write_whole
from intcert.runtime.noise import NoiseLaw

FORMAT_VERSION = 1
MANIFEST, LIBRARY, GRAPH, NOISE = "manifest.json", "lib.so", "graph.bin", "noise.bin"

_CERTIFICATE = re.compile(r"certificate/([A-Za-z0-9._+-]+)\.bin", re.ASCII)
_ARCHITECTURE = re.compile(r"sm_[0-9]{2,3}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
_FIRST_BYTES = b"PK\x03\x04"
_AGAIN = "compile the model again"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact is; manifest.json holds these fields.

    Attributes:
        format_version: of the whole file.
        model_hash: SHA-256 in hex of the source program's bytes.
        graph_hash, noise_hash: digests of the integer graph and of the noise law, as ledgers have them.
        target: name of the target that it was compiled for, for example ``x86-vnni``.
        target_facts: facts about the target as JSON values; ``cpu_flags`` lists the flags that a machine must have,
            named as in /proc/cpuinfo.
        scheme: requantization, ``q15`` or ``q31``.
        input_shape: (H, W, C) of the uint8 image.
        classes: number of logits.
        class_names: one for each, or empty.
        sigma: noise level on the [0, 1] scale, exact decimal.
        sigma_steps: the same in pixel steps, 255 sigma, exact decimal.
        eta: terms of the certificate's slack by name, decimal strings.
        chunk: images that the kernels work on at once.
        entry_points: functions of the library.
        tvm_version: ``tvm.__version__`` of the compiler; a machine that opens the artifact must have the same.
        arena_bytes: working memory of one chunk.
        layers: one JSON object a kernel (name, kernel, offset, shape, dtype, stride), in the order of execution.
        certificates: names of the embedded certificate tables, members ``certificate/NAME.bin``.
        audit: what the audit found; None before one.
        members: SHA-256 in hex of every other member; ``write_artifact`` fills it in.
    """

    format_version: int = FORMAT_VERSION
    model_hash: str
    graph_hash: str
    noise_hash: str
    target: str
    target_facts: Mapping[str, Any]
    scheme: str
    input_shape: tuple[int, int, int]
    classes: int
    class_names: tuple[str, ...] = ()
    sigma: str
    sigma_steps: str
    eta: Mapping[str, str]
    chunk: int
    entry_points: tuple[str, ...]
    tvm_version: str
    arena_bytes: int
    layers: tuple[Mapping[str, Any], ...] = ()
    certificates: tuple[str, ...] = ()
    audit: Mapping[str, Any] | None = None
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def cpu_flags(self) -> tuple[str, ...]:
        """Flags of /proc/cpuinfo without which the library would crash."""
        return tuple(self.target_facts["cpu_flags"])

    @property
    def is_gpu(self) -> bool:
        """Whether the library runs on a GPU; ``target_facts`` then lists its ``architectures``."""
        return self.target_facts.get("kind") == "cuda"

    def to_json(self) -> bytes:
        """The content of manifest.json; equal manifests give equal bytes."""
        return (json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: another format version, a field missing, unknown or of the wrong kind; the message says which.
        """
        content = json.loads(data)
        if not isinstance(content, dict) or not isinstance(content.get("format_version"), int):
            raise ValueError("no format version")
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}, this release reads version {FORMAT_VERSION}")
        for entry in dataclasses.fields(cls):
            if entry.name not in content:
                raise ValueError(f"{entry.name} is missing")
            if not _CHECKS[entry.name](content[entry.name]):
                raise ValueError(f"{entry.name} is {json.dumps(content[entry.name])[:40]}")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
        unknown = sorted(values.keys() - _CHECKS.keys())
        if unknown:
            raise ValueError(f"{unknown[0]} is unknown")
        return cls(**values)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_target(value: object) -> bool:
    if not isinstance(value, dict) or not _is_texts(value.get("cpu_flags")):
        return False
    names = value.get("architectures")
    return value.get("kind") != "cuda" or (_is_texts(names) and all(map(_ARCHITECTURE.fullmatch, names)))


# What JSON must hold for each field.
_CHECKS = {
    "format_version": _is_count,
    "model_hash": _is_hash,
    "graph_hash": _is_hash,
    "noise_hash": _is_hash,
    "target": _is_text,
    "target_facts": _is_target,
    "scheme": lambda value: value in ("q15", "q31"),
    "input_shape": lambda value: isinstance(value, list) and len(value) == 3 and all(map(_is_count, value)),
    "classes": _is_count,
    "class_names": _is_texts,
    "sigma": _is_text,
    "sigma_steps": _is_text,
    "eta": _is_text_map,
    "chunk": _is_count,
    "entry_points": _is_texts,
    "tvm_version": _is_text,
    "arena_bytes": _is_count,
    "layers": lambda value: isinstance(value, list) and all(isinstance(layer, dict) for layer in value),
    "certificates": _is_texts,
    "audit": lambda value: value is None or isinstance(value, dict),
    "members": lambda value: isinstance(value, dict) and all(map(_is_hash, value.values())),
}


@dataclass(frozen=True, eq=False)
class Artifact:
    """A checked artifact in memory.

    path: where it was read; manifest; members: the bytes of every member but the manifest, by name.
    """

    path: Path
    manifest: Manifest
    members: Mapping[str, bytes]

    @property
    def library(self) -> bytes:
        """The shared library."""
        return self.members[LIBRARY]

    @property
    def graph(self) -> bytes:
        """The integer graph, encoded; ``IntegerGraph.from_bytes`` of the compiler reads it."""
        return self.members[GRAPH]

    @functools.cached_property
    def law(self) -> NoiseLaw:
        """The noise law that the library draws from."""
        return NoiseLaw.from_bytes(self.members[NOISE])

    @property
    def certificates(self) -> dict[str, bytes]:
        """The embedded certificate tables by name, encoded; ``CertificateTable.from_bytes`` reads one."""
        return {name: self.members[f"certificate/{name}.bin"] for name in self.manifest.certificates}


def write_artifact(path: str | Path, manifest: Manifest, members: Mapping[str, bytes]) -> Manifest:
    """Write an artifact at once or not at all; the same input gives the same bytes.

    members: ``lib.so``, ``graph.bin``, ``noise.bin`` and ``certificate/NAME.bin`` for each name in
    ``manifest.certificates``. Returns the manifest as written, with the members' hashes.

    Raises:
        ArtifactError: the path cannot be written.
        ValueError: the members are not these, or the manifest could not be read back.
    """
    path = Path(path)
    if members.keys() != _expected_members(manifest):
        raise ValueError(f"members {sorted(members)} instead of {sorted(_expected_members(manifest))}")
    hashes = {name: hashlib.sha256(members[name]).hexdigest() for name in sorted(members)}
    manifest = dataclasses.replace(manifest, members=hashes)
    encoded = manifest.to_json()
    manifest = Manifest.from_json(encoded)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [(MANIFEST, encoded), *((name, members[name]) for name in hashes)]:
            entry = zipfile.ZipInfo(name, _TIMESTAMP)
            entry.create_system = 3  # Unix, wherever it is written
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    try:
        write_whole(path, buffer.getbuffer())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written ({error.strerror}); give another output name") from error
    return manifest


def read_artifact(path: str | Path) -> Artifact:
    """Read and check an artifact; runs none of its code.

    Raises:
        ArtifactError: missing, unreadable, not an artifact, truncated, damaged, of another format version, or at odds
            with its manifest.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; make it with intcert compile") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror})") from error
    members = _read_members(path, data)
    if MANIFEST not in members:
        raise ArtifactError(f"{path} has no {MANIFEST}: it is a zip, but no artifact; make one with intcert compile")
    try:
        manifest = Manifest.from_json(members.pop(MANIFEST))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} has a manifest that cannot be used ({error}); {_AGAIN}") from error
    problem = _mismatch(manifest, members)
    if problem is not None:
        raise ArtifactError(f"{path} does not match its manifest: {problem}; {_AGAIN}")
    artifact = Artifact(path, manifest, members)
    if (artifact.law.digest, artifact.law.sigma) != (manifest.noise_hash, manifest.sigma):
        raise ArtifactError(f"{path} does not match its manifest: another noise law; {_AGAIN}")
    return artifact


def _expected_members(manifest: Manifest) -> set[str]:
    return {LIBRARY, GRAPH, NOISE, *(f"certificate/{name}.bin" for name in manifest.certificates)}


def _mismatch(manifest: Manifest, members: Mapping[str, bytes]) -> str | None:
    """What a manifest says otherwise than its files are, or None."""
    expected = _expected_members(manifest)
    for name in sorted(expected | members.keys() | manifest.members.keys()):
        if name not in members:
            return f"{name} is missing"
        if name not in expected or name not in manifest.members:
            return f"{name} is not in the manifest"
        if hashlib.sha256(members[name]).hexdigest() != manifest.members[name]:
            return f"{name} has another hash"
    if manifest.class_names and len(manifest.class_names) != manifest.classes:
        return f"{len(manifest.class_names)} class names for {manifest.classes} classes"
    return None


def _read_members(path: Path, data: bytes) -> dict[str, bytes]:
    """Members by name, read with all the suspicion that a file from elsewhere deserves."""
    if not data.startswith(_FIRST_BYTES):
        raise ArtifactError(f"{path} is not an artifact: it is no zip; make one with intcert compile")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
            seen: set[str] = set()
            for entry in entries:
                known = entry.filename in (MANIFEST, LIBRARY, GRAPH, NOISE) or _CERTIFICATE.fullmatch(entry.filename)
                if not known or entry.filename in seen:
                    raise ArtifactError(f"{path} has an unexpected member {entry.filename[:80]!r}; {_AGAIN}")
                seen.add(entry.filename)
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise ArtifactError(f"{path} has a compressed or encrypted {entry.filename!r}; {_AGAIN}")
            if sum(entry.file_size for entry in entries) > len(data):
                raise ArtifactError(f"{path} has members larger than itself: it is damaged; {_AGAIN}")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError, RuntimeError) as error:
        raise ArtifactError(f"{path} is truncated or damaged ({error}); copy it again, or {_AGAIN}") from error
