"""Open a compiled artifact, certify with it, and keep the record: all that a board needs.

    from intcert import runtime

    with runtime.open_artifact("model.intcert") as session:
        parameters = runtime.CertificateParameters(sigma=session.sigma, dimension=image.size)
        table = runtime.load_table(parameters, session.artifact.law)
        key = runtime.image_key(runtime.new_run_key(), index)
        certificate = runtime.certify(session, image, key, table)

Importing this package loads neither TVM nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Bound here and now, not on demand: the submodule of the same name would take the function's place.
from intcert.runtime.certify import certify

if TYPE_CHECKING:
    from intcert.runtime.artifact import Artifact, Manifest, read_artifact, write_artifact
    from intcert.runtime.certificate import CertificateParameters, CertificateTable, certificate_table
    from intcert.runtime.certify import Certificate, Progress, certify_dataset, predict, run_settings
    from intcert.runtime.datasets import Dataset, Sample, open_dataset
    from intcert.runtime.errors import IntcertError
    from intcert.runtime.keys import image_key, new_run_key
    from intcert.runtime.ledger import Ledger, LedgerRow, RunSettings, equal_ledgers, read_ledger
    from intcert.runtime.noise import NoiseLaw, noise_law
    from intcert.runtime.session import LocalSession, Session, open_artifact
    from intcert.runtime.smoothing import ABSTAIN, certified_at
    from intcert.runtime.table_cache import load_table

_HOMES = {
    "artifact": ("Artifact", "Manifest", "read_artifact", "write_artifact"),
    "certificate": ("CertificateParameters", "CertificateTable", "certificate_table"),
    "certify": ("Certificate", "Progress", "certify_dataset", "predict", "run_settings"),
    "datasets": ("Dataset", "Sample", "open_dataset"),
    "errors": ("IntcertError",),
    "keys": ("image_key", "new_run_key"),
    "ledger": ("Ledger", "LedgerRow", "RunSettings", "equal_ledgers", "read_ledger"),
    "noise": ("NoiseLaw", "noise_law"),
    "session": ("LocalSession", "Session", "open_artifact"),
    "smoothing": ("ABSTAIN", "certified_at"),
    "table_cache": ("load_table",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ABSTAIN",
    "Artifact",
    "Certificate",
    "CertificateParameters",
    "CertificateTable",
    "Dataset",
    "IntcertError",
    "Ledger",
    "LedgerRow",
    "LocalSession",
    "Manifest",
    "NoiseLaw",
    "Progress",
    "RunSettings",
    "Sample",
    "Session",
    "certificate_table",
    "certified_at",
    "certify",
    "certify_dataset",
    "equal_ledgers",
    "image_key",
    "load_table",
    "new_run_key",
    "noise_law",
    "open_artifact",
    "open_dataset",
    "predict",
    "read_artifact",
    "read_ledger",
    "run_settings",
    "write_artifact",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
