"""Files that are written whole."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes | memoryview, mode: int = 0o644) -> None:
    """Put a file on the disk completely or not at all, in place of an older one. mode: its permissions.

    Raises OSError.
    """
    temporary = None
    try:
        # Private from its first byte on, until it is whole.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Make names of new files durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
