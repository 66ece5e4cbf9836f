"""The audit: proof from the machine code that a library computes with integers only (docs/audit.md)."""

from intcert.compile.audit.device import audit_images
from intcert.compile.audit.instructions import FLOAT_TYPED, PLAIN
from intcert.compile.audit.library import audit_code, audit_library
from intcert.compile.audit.result import Audit, CodeAudit, Finding, FunctionAudit, functions_with
from intcert.compile.audit.sass import TENSOR_CORE

__all__ = [
    "FLOAT_TYPED",
    "PLAIN",
    "TENSOR_CORE",
    "Audit",
    "CodeAudit",
    "Finding",
    "FunctionAudit",
    "audit_code",
    "audit_images",
    "audit_library",
    "functions_with",
]
