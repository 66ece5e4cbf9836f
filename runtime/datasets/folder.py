"""``folder:DIR``: image files in one sub-folder a class."""

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from intcert.runtime.datasets.base import Dataset, Sample, Shape, check_shape
from intcert.runtime.errors import DatasetError

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"))
_MODES = {1: "L", 3: "RGB"}


class FolderDataset(Dataset):
    """Images decoded as they are asked for.

    The identity covers names and sizes of the files; their pixels are in the ledger, image by image.
    """

    def __init__(
        self,
        source: str,
        root: Path,
        split: str,
        class_names: tuple[str, ...],
        files: list[tuple[str, int]],
        shape: Shape | None,
    ) -> None:
        """files: (path relative to root, label) in order."""
        self._root, self._files, self._shape = root, files, shape
        self._mode = _MODES[shape[2] if shape else 3]
        content = hashlib.sha256("\n".join(class_names).encode("utf-8", "surrogateescape"))
        for name, label in files:
            size = os.stat(root / name).st_size
            content.update(b"\n" + os.fsencode(name) + f"\0{label}\0{size}".encode())
        super().__init__(source, split, class_names, content.hexdigest())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        self._check_index(index)
        name, label = self._files[index]
        path = self._root / name
        try:
            with Image.open(path) as file:
                # Modes like I;16 and F hold more than 8 bits, and converting would quietly cut them off.
                if file.mode[0] in "IF":
                    raise DatasetError(f"{path} is no 8-bit image (mode {file.mode}); convert it")
                check_shape(str(path), (file.height, file.width, len(self._mode)), self._shape)
                image = np.array(file.convert(self._mode))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
            raise DatasetError(f"{path} is not a readable image ({error}); repair or remove it") from error
        return Sample(index, label, image.reshape(*image.shape[:2], len(self._mode)))


def open_folder(source: str, root: Path, split: str, shape: Shape | None, classes: int | None) -> FolderDataset:
    """DIR/CLASS/.../IMAGE, or DIR/SPLIT/CLASS/.../IMAGE where DIR has a folder of that name with sub-folders in it.

    Classes are the sub-folders, numbered by their names' bytes; images are in the order of their relative paths' bytes.
    Hidden files and files that are no images by their suffix are passed over.
    """
    if shape is not None and shape[2] not in _MODES:
        raise DatasetError(f"{source} can give 1 or 3 channels, but the network takes {shape[2]}; use npz:FILE")
    if not root.is_dir():
        raise DatasetError(f"{source} is no folder; place images there as {root}/CLASS/IMAGE.png")
    try:
        if split != "test" or _class_folders(root / split):
            root = root / split
        names = _class_folders(root)
        files = [(f"{name}/{path}", label) for label, name in enumerate(names) for path in _image_files(root / name)]
        if not files:
            raise DatasetError(f"{source} has no images; place them as {root}/CLASS/IMAGE.png")
        # A class without a folder would silently shift the numbers of all after it.
        if classes is not None and len(names) != classes:
            raise DatasetError(
                f"{source} has {len(names)} class sub-folders but the network has {classes} classes; "
                "make one for each class, empty where there are no images"
            )
        files.sort(key=lambda entry: os.fsencode(entry[0]))
        return FolderDataset(source, root, split, tuple(names), files, shape)
    except OSError as error:
        raise DatasetError(f"{error.filename} cannot be read ({error.strerror})") from error


def _class_folders(root: Path) -> list[str]:
    """Names of the visible sub-folders, sorted by their bytes; none where there is no such folder."""
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=os.fsencode)


def _image_files(root: Path) -> list[str]:
    """Paths of the image files below a class folder, relative to it."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _SUFFIXES:
                found.append(os.path.relpath(os.path.join(folder, name), root))
    return found
