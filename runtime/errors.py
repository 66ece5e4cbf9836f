"""What a user's input or machine can get wrong. The command line prints one line and exits with ``exit_code``."""


class IntcertError(Exception):
    """Base of every error that is not a defect of intcert.

    The message is one line: it quotes the offending input and says what to do about it.
    """

    exit_code = 4


class SigmaError(IntcertError):
    """A noise level that is not a decimal number on the [0, 1] scale, or that no certificate can serve."""


class CertificateError(IntcertError):
    """Certification parameters (alpha, N, radius, rule) that define no valid test."""


class ArtifactError(IntcertError):
    """A ``.intcert`` file that is missing, damaged, of an unknown version, or at odds with its manifest."""


class DatasetError(IntcertError):
    """A data source that cannot be read, is empty, or does not fit the artifact's input shape."""


class LedgerError(IntcertError):
    """A ledger that cannot be written, or that a run cannot continue."""


class ModelError(IntcertError):
    """A model that cannot be imported or executed in integers; the message names the node and the fix."""


class DatabaseError(IntcertError):
    """A tuning database that is missing, damaged, for another target, or of another version of the kernels."""


class WrongDeviceError(IntcertError):
    """An artifact built for instructions that this machine does not have."""


class AuditError(IntcertError):
    """Machine code that was to be proven integer-only and is not; the message quotes the first hit."""

    exit_code = 1


class DeviceLostError(IntcertError):
    """A device or board that stopped answering in the middle of the work."""

    exit_code = 3


class MissingDependencyError(IntcertError):
    """An optional package is needed; the message holds the pip line that installs it."""

    exit_code = 5
