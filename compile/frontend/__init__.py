"""Import of quantized torch.export programs: ExportedProgram or ``.pt2`` file to IntegerGraph. Needs PyTorch."""

from intcert.runtime.errors import MissingDependencyError

try:
    import torch.ao.quantization.fx._decomposed  # noqa: F401 - registers the quantized operators that programs call
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"importing a model needs {error.name.partition('.')[0]}: pip install 'intcert[torch]'"
    ) from error

from intcert.compile.frontend.importer import import_program, list_problems
from intcert.compile.frontend.program import read_metadata

__all__ = ["import_program", "list_problems", "read_metadata"]
