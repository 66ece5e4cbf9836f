"""Training of the classifiers that intcert certifies, and of the rivals that they are compared with.

Importing this package needs torch and torchao.
"""

from intcert.runtime.errors import MissingDependencyError

try:
    import torch  # noqa: F401
    import torchao  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"training and the rivals' networks need {error.name}: pip install 'intcert[train]'"
    ) from error
