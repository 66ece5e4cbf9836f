"""What ``intcert certify`` certifies: a compiled artifact, or a rival's program in torch, on equal terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from intcert.cli import options
from intcert.cli.failure import Failure

if TYPE_CHECKING:
    from intcert.cli.options import Boards
    from intcert.runtime.artifact import Artifact
    from intcert.runtime.certificate import CertificateParameters, CertificateTable
    from intcert.runtime.certify import Spread
    from intcert.runtime.fleet import Fleet
    from intcert.runtime.session import Session

Result = TypeVar("Result")


@dataclass(frozen=True)
class Network:
    """A session with the class names it knows, and with what makes the certificate table for its noise.

    spread: shares images out among boards, where there are several places to work; the session then only describes.
    """

    session: Session
    class_names: tuple[str, ...]
    table: Callable[[CertificateParameters], CertificateTable]
    spread: Spread | None = None

    def each(self, work: Callable[[Session, int], Result], items: Iterable[int]) -> Iterator[tuple[int, Result]]:
        """Items with ``work(session, item)``: in turn on the session, or as boards finish them."""
        if self.spread is not None:
            return self.spread(work, items)
        return ((item, work(self.session, item)) for item in items)


@contextmanager
def open_network(
    path: Path, threads: int | None, sigma: str | None, device: str | None, boards: Boards | None
) -> Iterator[Network]:
    """An artifact, or by its suffix ``.pt2`` a rival's program; sigma is the latter's alone.

    boards: where an artifact runs instead of here.

    Raises:
        Failure: sigma is given for an artifact, boards for a rival, device with boards, or the model is no program.
        ArtifactError, WrongDeviceError: see ``open_artifact``.
        DeviceLostError: there are no boards.
        ModelError, SigmaError: see ``TorchSession``.
    """
    if path.suffix == ".pt2":
        if boards is not None:
            raise Failure(f"{path} is a rival, which runs in torch on this machine; boards run compiled artifacts")
        from intcert.train.devices import choose_device
        from intcert.train.session import TorchSession, cohen_table

        place = str(choose_device(device or "cpu"))
        with TorchSession(path, sigma=sigma, threads=threads, device=place) as session:
            yield Network(session, session.class_names, cohen_table)
        return
    if options.is_model(path):
        raise Failure(f"{path} is a model; compile it first, and give the artifact: intcert compile {path}")
    if sigma is not None:
        raise Failure(f"--sigma is for rivals (.pt2); {path} has its own, chosen by `intcert compile`")

    from intcert.runtime import load_table, open_artifact

    def table(parameters: CertificateParameters) -> CertificateTable:
        return load_table(parameters, artifact.law, artifact.certificates.values())

    if boards is not None:
        fleet = open_fleet(path, threads, device, boards)
        artifact = fleet.artifact
        yield Network(fleet, artifact.manifest.class_names, table, fleet.map)
        return
    with open_artifact(path, threads, device or "auto") as session:
        artifact = session.artifact
        yield Network(session, artifact.manifest.class_names, table)


def open_session(path: Path, threads: int | None, device: str | None, boards: Boards | None) -> Session:
    """An artifact on this machine, or on the first of the boards that can be had.

    Raises:
        Failure: threads or device are given, which are this machine's, with boards.
        ArtifactError, WrongDeviceError: see ``open_artifact``.
        DeviceLostError: there is no board.
    """
    from intcert.runtime import open_artifact
    from intcert.runtime.boards import open_board

    if boards is None:
        return open_artifact(path, threads, device or "auto")
    artifact = _board_artifact(path, threads, device)
    return open_board(artifact, boards.source, boards.patience, notify=options.note)


def open_fleet(path: Path, threads: int | None, device: str | None, boards: Boards) -> Fleet:
    """The boards of the command line, ready to run an artifact.

    Raises:
        Failure: threads or device are given, which are this machine's.
        ArtifactError: see ``read_artifact``.
        DeviceLostError: the tracker does not answer.
    """
    from intcert.runtime.fleet import Fleet

    artifact = _board_artifact(path, threads, device)
    return Fleet(artifact, boards.source, boards.count, boards.patience, options.note)


def _board_artifact(path: Path, threads: int | None, device: str | None) -> Artifact:
    """An artifact to send to boards. Raises as ``open_fleet``."""
    from intcert.runtime import read_artifact

    if device is not None:
        raise Failure(f"--device {device} is for this machine; boards run what {path} was compiled for")
    if threads is not None:
        raise Failure("--threads is for this machine; a board works with one core for each server that it runs")
    artifact = read_artifact(path)
    if artifact.manifest.is_gpu:
        raise Failure(f"{path} is for {artifact.manifest.target}; GPUs are used on this machine, not on boards")
    return artifact
