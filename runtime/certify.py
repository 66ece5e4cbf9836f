"""Certification and prediction by sampling, and the loop over a data set that writes the ledger."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from intcert.runtime.errors import CertificateError, LedgerError
from intcert.runtime.keys import image_key
from intcert.runtime.ledger import Ledger, LedgerRow, RunSettings, image_sha
from intcert.runtime.session import ROW
from intcert.runtime.smoothing import ABSTAIN

if TYPE_CHECKING:
    from intcert.runtime.certificate import CertificateParameters, CertificateTable
    from intcert.runtime.datasets import Dataset
    from intcert.runtime.session import Session

# Work on images, by index, on sessions of its own choice: (index, row) as they are finished.
Spread = Callable[["Callable[[Session, int], LedgerRow]", Iterable[int]], "Generator[tuple[int, LedgerRow]]"]

_FIRST_BATCH = 4 * ROW
_BATCH_SECONDS = 0.5  # long enough to keep threads busy, short enough for Ctrl-C and progress bars


@dataclass(frozen=True, eq=False)
class Certificate:
    """What Algorithm 1 says about one image.

    predict: the certified class, or ABSTAIN; sqradius: every integer perturbation delta, in pixel steps, with
    ``|delta|_2^2 <= sqradius`` keeps that class (-1: abstained); samples: estimation samples used; counts:
    int64[classes], what the network decided on them.
    """

    predict: int
    sqradius: int
    samples: int
    counts: np.ndarray


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    images_done of images (rows of an earlier, resumed run included); samples_done of at most samples of the image in
    work; row: the one just written, else None.
    """

    images_done: int
    images: int
    samples_done: int
    samples: int
    row: LedgerRow | None = None


def certify(
    session: Session,
    x: np.ndarray,
    key: int,
    table: CertificateTable,
    on_samples: Callable[[int], None] | None = None,
) -> Certificate:
    """Algorithm 1 of the paper (CERTIFY of Cohen et al., ICML 2019), on integer tables.

    x: uint8[H, W, C]; key: the image's 64-bit noise key, secret until now and used for no other call on this image;
    on_samples: called with the number of estimation samples drawn so far.

    With probability 1 - alpha over the key, a class that is returned is the smoothed classifier's on the whole ball.

    Raises:
        CertificateError: the table is for another noise level or image size, or the session lost samples.
    """
    parameters = table.parameters
    _check_fit(session, parameters)
    selected = int(_counted(session, x, key, 0, parameters.n0).sum(axis=0).argmax())
    counts, samples = np.zeros(session.classes, np.int64), 0
    for row in _rows(session, x, key, parameters.n0, parameters.n, on_samples):
        counts += row
        samples = min(samples + ROW, parameters.n)
        m = table.decide(counts, samples, selected)
        if m is not None:
            return Certificate(selected if m != ABSTAIN else ABSTAIN, m, samples, counts)
    raise CertificateError(f"the certificate table left {samples} samples undecided; make it again")


def predict(session: Session, x: np.ndarray, key: int, n: int, alpha: str) -> int:
    """The class that the smoothed classifier gives x, or ABSTAIN: PREDICT of Cohen et al., ICML 2019.

    x: uint8[H, W, C]; key: noise key of this prediction, never one that ``certify`` uses; n: samples;
    alpha: probability of a wrong class, exact decimal.

    Raises:
        CertificateError: n < 1, alpha is no probability below 1/2, or the session lost samples.
    """
    from intcert.runtime.confidence import parse_alpha, predicted_class

    parse_alpha(alpha)
    if n < 1:
        raise CertificateError(f"n = {n} samples cannot predict a class; give at least 1")
    counts = sum(_rows(session, x, key, 0, n), np.zeros(session.classes, np.int64))
    return predicted_class(counts, alpha)


def run_settings(
    session: Session, dataset: Dataset, parameters: CertificateParameters, options: Mapping[str, Any] | None = None
) -> RunSettings:
    """What NAME.json records of a run of ``certify_dataset``. options: JSON values, for the record."""
    versions = {name: metadata.version(name) for name in ("intcert", "apache-tvm", "numpy")}
    return RunSettings(
        graph=session.graph_hash,
        noise=session.noise_hash,
        sigma=parameters.sigma,
        alpha=parameters.alpha,
        n0=parameters.n0,
        n=parameters.n,
        rule=parameters.rule,
        dataset=dataset.identity,
        versions=versions | {"python": platform.python_version()},
        options=options or {},
    )


def certify_dataset(
    session: Session,
    dataset: Dataset,
    table: CertificateTable,
    ledger: Ledger,
    *,
    skip: int = 1,
    limit: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    spread: Spread | None = None,
) -> None:
    """Certify every ``skip``-th image below index ``limit`` that the ledger lacks, one row each as it finishes.

    spread: how the images are shared out among devices, ``Fleet.map``, with ``session`` the fleet; by default the
    session takes one after the other. Keys and sample numbers depend on the image alone, so an image may be begun on a
    device that dies, and be done again on another.

    skip and limit mean what ``--skip`` and ``--max`` mean in Cohen et al.'s certify.py. The ledger must have been
    opened with ``run_settings`` of the same session, data set and parameters.

    An interruption (Ctrl-C, a kill) loses at most the image in work. Resumed, that image is drawn again from the same
    key and sample numbers, hence with the same result: no counter range ever serves two different draws.

    Raises:
        LedgerError: the ledger belongs to another run, or cannot be written.
        DatasetError: an image cannot be read.
        CertificateError: see ``certify``.
        DeviceLostError: no device is left for the images that are.
    """
    if skip < 1 or (limit is not None and limit < 0):
        raise ValueError(f"skip = {skip}, limit = {limit}: skip must be positive and limit not negative")
    differing = ledger.settings.differences(run_settings(session, dataset, table.parameters))
    if differing:
        raise LedgerError(f"{ledger.path} was opened for a run with another {', '.join(differing)}")
    indices = range(0, len(dataset) if limit is None else min(limit, len(dataset)), skip)
    todo = [index for index in indices if index not in ledger]
    done = len(indices) - len(todo)
    report = progress or (lambda _: None)
    report(Progress(done, len(indices), 0, table.parameters.n))

    def certify_index(place: Session, index: int) -> LedgerRow:
        return _certify_sample(place, dataset, index, table, ledger.run_key, on_samples)

    def on_samples(drawn: int) -> None:
        if spread is None:  # else many images are in work, on several threads
            report(Progress(done, len(indices), drawn, table.parameters.n))

    rows = ((index, certify_index(session, index)) for index in todo) if spread is None else spread(certify_index, todo)
    with contextlib.closing(rows):
        for _, row in rows:
            ledger.append(row)
            done += 1
            report(Progress(done, len(indices), row.samples[1], table.parameters.n, row))


def _certify_sample(
    session: Session,
    dataset: Dataset,
    index: int,
    table: CertificateTable,
    run_key: int,
    on_samples: Callable[[int], None],
) -> LedgerRow:
    sample = dataset[index]
    key = image_key(run_key, index)
    begin = time.perf_counter()
    certificate = certify(session, sample.image, key, table, on_samples)
    parameters = table.parameters
    return LedgerRow(
        idx=index,
        label=sample.label,
        predict=certificate.predict,
        time=time.perf_counter() - begin,
        sqradius=certificate.sqradius,
        image_sha=image_sha(sample.image),
        samples=(parameters.n0, certificate.samples),
        counts=tuple((int(label), int(certificate.counts[label])) for label in np.flatnonzero(certificate.counts)),
        rule=parameters.rule,
        alpha=parameters.alpha,
        sigma=parameters.sigma,
        key=key,
        graph=session.graph_hash,
        noise=session.noise_hash,
        target=session.target,
        device=session.device,
    )


def _rows(
    session: Session,
    x: np.ndarray,
    key: int,
    first: int,
    n: int,
    on_samples: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """The rows of ``session.counts(x, key, first, n)``, drawn in batches as they are asked for.

    A batch is at most a quarter of what was drawn before, so that a sequential rule draws few samples in vain, and
    follows the clock. The rows do not depend on the batches.
    """
    drawn, batch = 0, _FIRST_BATCH
    while drawn < n:
        size = min(batch, n - drawn)
        begin = time.perf_counter()
        rows = _counted(session, x, key, first + drawn, size)
        elapsed = time.perf_counter() - begin
        drawn += size
        if on_samples is not None:
            on_samples(drawn)
        yield from rows
        affordable = int(size * _BATCH_SECONDS / max(elapsed, 1e-6))
        batch = max(ROW, min(affordable, max(drawn // 4, _FIRST_BATCH)) // ROW * ROW)


def _counted(session: Session, x: np.ndarray, key: int, first: int, n: int) -> np.ndarray:
    """``session.counts``, complete: samples that a device lost would bias whatever is concluded from the rest."""
    rows = session.counts(x, key, first, n)
    if rows.shape != (-(-n // ROW), session.classes) or int(rows.sum()) != n:
        raise CertificateError(f"{session.target} counted {int(rows.sum())} of {n} samples; run the image again")
    return rows


def _check_fit(session: Session, parameters: CertificateParameters) -> None:
    dimension = int(np.prod(session.input_shape))
    if parameters.sigma != session.sigma or parameters.dimension != dimension:
        raise CertificateError(
            f"a certificate table for sigma {parameters.sigma} and {parameters.dimension} coordinates does not fit a "
            f"network with noise of sigma {session.sigma} on {dimension} coordinates; make one for it"
        )
