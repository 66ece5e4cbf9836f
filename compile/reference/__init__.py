"""The reference: a NumPy execution of an IntegerGraph, which every compiled kernel must equal bit for bit."""

from intcert.compile.reference.network import activations, run
from intcert.compile.reference.session import ReferenceSession

__all__ = ["ReferenceSession", "activations", "run"]
