"""What ``intcert certify`` certifies: a compiled artifact, or a rival's program in torch, on equal terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intcert.cli import options
from intcert.cli.failure import Failure

if TYPE_CHECKING:
    from intcert.runtime.certificate import CertificateParameters, CertificateTable
    from intcert.runtime.session import Session


@dataclass(frozen=True)
class Network:
    """A session with the class names it knows, and with what makes the certificate table for its noise."""

    session: Session
    class_names: tuple[str, ...]
    table: Callable[[CertificateParameters], CertificateTable]


@contextmanager
def open_network(path: Path, threads: int | None, sigma: str | None, device: str | None) -> Iterator[Network]:
    """An artifact, or by its suffix ``.pt2`` a rival's program; sigma and device are the latter's alone.

    Raises:
        Failure: sigma or device is given for an artifact, or the model is no program.
        ArtifactError, WrongDeviceError: see ``open_artifact``.
        ModelError, SigmaError: see ``TorchSession``.
    """
    if path.suffix == ".pt2":
        from intcert.train.devices import choose_device
        from intcert.train.session import TorchSession, cohen_table

        place = str(choose_device(device or "cpu"))
        with TorchSession(path, sigma=sigma, threads=threads, device=place) as session:
            yield Network(session, session.class_names, cohen_table)
        return
    if options.is_model(path):
        raise Failure(f"{path} is a model; compile it first, and give the artifact: intcert compile {path}")
    if sigma is not None or device is not None:
        raise Failure(
            f"--{'sigma' if sigma is not None else 'device'} is for rivals (.pt2); {path} has its own, "
            "chosen by `intcert compile`"
        )

    from intcert.runtime import load_table, open_artifact

    with open_artifact(path, threads) as session:
        artifact = session.artifact
        yield Network(
            session,
            artifact.manifest.class_names,
            lambda parameters: load_table(parameters, artifact.law, artifact.certificates.values()),
        )
