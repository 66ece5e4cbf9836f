import gzip
import hashlib
import os
import pickle
import pickletools
import struct
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from intcert.runtime.datasets import Dataset, open_dataset
from intcert.runtime.errors import DatasetError

DATA = Path(__file__).parents[3] / "shared" / "data"
RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
LABELS = [3, 8, 8, 0, 6, 9, 1]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def refusal(source: str, *arguments: object, **keywords: object) -> str:
    """The message with which a source is refused, one line; reads all images."""
    with pytest.raises(DatasetError) as caught:
        list(open_dataset(source, *arguments, **keywords))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(dataset: Dataset, images: np.ndarray, labels: list[int]) -> None:
    """The data set holds exactly these."""
    assert len(dataset) == len(labels)
    for position, sample in enumerate(dataset):
        assert (sample.index, sample.label) == (position, labels[position])
        assert sample.image.dtype == np.uint8
        assert sample.image.flags.c_contiguous
        np.testing.assert_array_equal(sample.image, images[position])
    for outside in (-1, len(labels)):
        with pytest.raises(IndexError):
            dataset[outside]


@pytest.mark.parametrize("source", ["", "images", "imagenet:x", "npz:", ":x", "Folder:x"])
def test_unknown_sources(source):
    forms = "folder:DIR, cifar10:DIR, mnist:DIR, caltech101:DIR or npz:FILE"
    assert refusal(source) == f"data {source!r} is unknown; give {forms}"


# ---------------------------------------------------------------------------------------------------------------------
# folder:DIR
# ---------------------------------------------------------------------------------------------------------------------


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images in an order that differs between file system, class and path."""
    root = tmp_path / "images"
    for name, image in [
        ("b/2.png", IMAGES[4]),
        ("a/x/1.bmp", IMAGES[3]),
        ("b/10.PNG", IMAGES[0]),
        ("a-/1.png", IMAGES[2]),
        ("é/0.png", IMAGES[5]),
        ("a/0.png", IMAGES[1]),
        ("Z/9.png", IMAGES[6]),
    ]:
        save(root / name, image)
    (root / "a" / "notes.txt").write_text("no image")
    (root / "a" / ".hidden.png").write_text("no image")
    (root / "a" / ".cache").mkdir()
    (root / "a" / ".cache" / "thumb.png").write_text("no image")
    (root / ".git").mkdir()
    (root / "readme.png").write_text("no image")
    return root


def test_folder_order_is_that_of_the_path_bytes(folder):
    dataset = open_dataset(f"folder:{folder}")
    assert dataset.class_names == ("Z", "a", "a-", "b", "é")
    # "a-/1.png" < "a/0.png" as bytes, although the class "a" comes before "a-".
    check(dataset, IMAGES[[6, 2, 1, 3, 0, 4, 5]], [0, 2, 1, 1, 3, 3, 4])


def test_folder_identity(folder):
    first = open_dataset(f"folder:{folder}").identity
    assert len(first) == 64
    assert open_dataset(f"folder:{folder}/../images").identity == first
    os.rename(folder / "b" / "2.png", folder / "b" / "3.png")
    renamed = open_dataset(f"folder:{folder}").identity
    (folder / "empty").mkdir()
    assert len({first, renamed, open_dataset(f"folder:{folder}").identity}) == 3


@pytest.mark.parametrize(
    ("mode", "channels"), [("RGB", 3), ("L", 3), ("RGBA", 3), ("P", 3), ("1", 3), ("RGB", 1), ("L", 1), ("CMYK", 3)]
)
def test_folder_converts_to_the_channels_asked_for(tmp_path, mode, channels):
    image = Image.fromarray(IMAGES[0]).convert(mode)
    (tmp_path / "c").mkdir()
    image.save(tmp_path / "c" / "i.tif")
    [sample] = open_dataset(f"folder:{tmp_path}", shape=(32, 32, channels))
    expected = np.array(image.convert("RGB" if channels == 3 else "L")).reshape(32, 32, channels)
    np.testing.assert_array_equal(sample.image, expected)


def test_folder_is_read_lazily(folder):
    (folder / "b" / "10.PNG").write_bytes(b"damaged")
    dataset = open_dataset(f"folder:{folder}")
    assert dataset[0].label == 0
    with pytest.raises(DatasetError, match=r"b/10\.PNG is not a readable image"):
        dataset[4]


def test_folder_with_splits(tmp_path):
    save(tmp_path / "test" / "x" / "0.png", IMAGES[0])
    save(tmp_path / "train" / "x" / "0.png", IMAGES[1])
    save(tmp_path / "train" / "x" / "1.png", IMAGES[2])
    check(open_dataset(f"folder:{tmp_path}"), IMAGES[:1], [0])
    check(open_dataset(f"folder:{tmp_path}", "train"), IMAGES[1:3], [0, 0])
    assert f"has no images; place them as {tmp_path}/val/CLASS/IMAGE.png" in refusal(f"folder:{tmp_path}", "val")


def test_a_class_named_test_is_a_class(tmp_path):
    save(tmp_path / "exam" / "0.png", IMAGES[0])
    save(tmp_path / "test" / "0.png", IMAGES[1])
    check(open_dataset(f"folder:{tmp_path}"), IMAGES[:2], [0, 1])


def test_folder_missing_or_empty(tmp_path):
    assert f"is no folder; place images there as {tmp_path}/none/CLASS" in refusal(f"folder:{tmp_path}/none")
    assert f"has no images; place them as {tmp_path}/CLASS/IMAGE.png" in refusal(f"folder:{tmp_path}")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.txt").touch()
    assert "has no images" in refusal(f"folder:{tmp_path}")
    save(tmp_path / "0.png", IMAGES[0])
    assert "has no images" in refusal(f"folder:{tmp_path}")
    assert "is no folder" in refusal(f"folder:{tmp_path}/0.png")


def test_folder_unreadable_files(tmp_path):
    source = f"folder:{tmp_path}"
    file = tmp_path / "c" / "i.png"
    save(file, IMAGES[0])
    whole = file.read_bytes()
    for content in (b"", whole[:20], whole[: len(whole) // 2], b"GIF89a"):
        file.write_bytes(content)
        assert refusal(source).startswith(f"{file} is not a readable image (")
    file.unlink()
    file.mkdir()
    assert "has no images" in refusal(source)
    file.rmdir()
    file.symlink_to("nowhere.png")
    assert f"{file} cannot be read (No such file" in refusal(source)


def test_a_folder_that_vanishes_is_an_error_of_the_data(folder):
    dataset = open_dataset(f"folder:{folder}")
    (folder / "Z" / "9.png").unlink()
    with pytest.raises(DatasetError, match=r"9\.png is not a readable image \(.*No such file"):
        dataset[0]


def test_folder_image_of_16_bits(tmp_path):
    (tmp_path / "c").mkdir()
    Image.fromarray(np.full((32, 32), 60_000, np.uint16)).save(tmp_path / "c" / "i.png")
    assert "is no 8-bit image (mode I;16)" in refusal(f"folder:{tmp_path}")


def test_folder_image_that_is_a_bomb(tmp_path, monkeypatch):
    save(tmp_path / "c" / "i.png", IMAGES[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "i.png is not a readable image" in refusal(f"folder:{tmp_path}")


def test_folder_wrong_size(folder):
    message = refusal(f"folder:{folder}", shape=(32, 28, 3))
    assert message == (
        f"{folder}/Z/9.png is 32 x 32 x 3 but the network takes 32 x 28 x 3; "
        "nothing is resized here, so bring images of that size"
    )
    assert "can give 1 or 3 channels, but the network takes 4" in refusal(f"folder:{folder}", shape=(32, 32, 4))


def test_folder_needs_a_folder_for_every_class(folder):
    assert "has 5 class sub-folders but the network has 6 classes" in refusal(f"folder:{folder}", classes=6)
    assert "has 5 class sub-folders but the network has 4 classes" in refusal(f"folder:{folder}", classes=4)
    (folder / "zz").mkdir()
    assert len(open_dataset(f"folder:{folder}", classes=6)) == 7


# ---------------------------------------------------------------------------------------------------------------------
# cifar10:DIR
# ---------------------------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2's cPickle did when CIFAR-10 was made."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text: bytes | str) -> None:
        data = text.encode("latin-1") if isinstance(text, str) else text
        short = len(data) < 256
        length = struct.pack("<B" if short else "<i", len(data))
        self.write((pickle.SHORT_BINSTRING if short else pickle.BINSTRING) + length + data)
        self.memoize(text)

    dispatch[bytes] = save_string
    dispatch[str] = save_string


def python_batch(images: np.ndarray, labels: list[int], tmp_path: Path) -> bytes:
    """A batch as in cifar-10-python.tar.gz."""
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))
    file = tmp_path / "pickle"
    with open(file, "wb") as stream:
        batch = {"batch_label": "testing batch 1 of 1", "labels": labels, "data": rows, "filenames": ["a.png"]}
        Python2Pickler(stream, protocol=2).dump(batch)
    data = file.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    file.unlink()
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data
    assert "UNICODE" not in "".join(opcode.name for opcode, _, _ in pickletools.genops(data))
    return data


def binary_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as in cifar-10-binary.tar.gz."""
    pairs = zip(images, labels, strict=True)
    return b"".join(bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in pairs)


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-py"])
def test_cifar10_python(tmp_path, subfolder):
    (tmp_path / subfolder).mkdir(exist_ok=True)
    (tmp_path / subfolder / "test_batch").write_bytes(python_batch(IMAGES, LABELS, tmp_path))
    dataset = open_dataset(f"cifar10:{tmp_path}", shape=(32, 32, 3), classes=10)
    check(dataset, IMAGES, LABELS)
    assert dataset.class_names == CLASSES


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path, subfolder):
    (tmp_path / subfolder).mkdir(exist_ok=True)
    (tmp_path / subfolder / "test_batch.bin").write_bytes(binary_batch(IMAGES, LABELS))
    dataset = open_dataset(f"cifar10:{tmp_path}", shape=(32, 32, 3), classes=10)
    check(dataset, IMAGES, LABELS)
    assert dataset.class_names == CLASSES


def test_cifar10_training_batches(tmp_path):
    for number in range(5):
        (tmp_path / f"data_batch_{number + 1}.bin").write_bytes(binary_batch(IMAGES[number : number + 2], [number] * 2))
    order = [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    check(open_dataset(f"cifar10:{tmp_path}", "train"), IMAGES[order], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    (tmp_path / "data_batch_4.bin").unlink()
    assert "data_batch_4.bin cannot be read (No such file" in refusal(f"cifar10:{tmp_path}", "train")


def test_cifar10_formats_are_one_data_set(tmp_path):
    for name in ("python", "binary", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "python" / "test_batch").write_bytes(python_batch(IMAGES, LABELS, tmp_path))
    (tmp_path / "binary" / "test_batch.bin").write_bytes(binary_batch(IMAGES, LABELS))
    (tmp_path / "other" / "test_batch.bin").write_bytes(binary_batch(IMAGES, [*LABELS[1:], 0]))
    python, binary, other = (
        open_dataset(f"cifar10:{tmp_path}/{name}").identity for name in ("python", "binary", "other")
    )
    assert python == binary != other


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_cifar10_saved_again_by_python_3(tmp_path, protocol):
    batch = {b"data": IMAGES.transpose(0, 3, 1, 2).reshape(7, -1).copy(), b"labels": LABELS}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol))
    check(open_dataset(f"cifar10:{tmp_path}"), IMAGES, LABELS)


def test_cifar10_missing(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        message = refusal(f"cifar10:{folder}")
        assert "has no test_batch or test_batch.bin; unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz" in message
    assert "has no data_batch_1 or data_batch_1.bin" in refusal(f"cifar10:{tmp_path}", "train")
    assert "has no split 'val'; give test or train" in refusal(f"cifar10:{tmp_path}", "val")


def test_cifar10_damaged_binary(tmp_path):
    file = tmp_path / "test_batch.bin"
    whole = binary_batch(IMAGES, LABELS)
    file.write_bytes(whole[:-1])
    assert "test_batch.bin is no CIFAR-10 batch (21510 bytes are no whole records of 3073)" in refusal(
        f"cifar10:{tmp_path}"
    )
    file.write_bytes(b"")
    assert "has no images" in refusal(f"cifar10:{tmp_path}")
    file.write_bytes(binary_batch(IMAGES, [*LABELS[:-1], 10]))
    assert "has label 10 at image 6, which is not one of the classes 0 .. 9" in refusal(f"cifar10:{tmp_path}")


def test_cifar10_truncated_python(tmp_path):
    whole = python_batch(IMAGES[:1], LABELS[:1], tmp_path)
    for length in [*range(0, 300, 7), len(whole) // 2, len(whole) - 1]:
        (tmp_path / "test_batch").write_bytes(whole[:length])
        assert "test_batch is no CIFAR-10 batch" in refusal(f"cifar10:{tmp_path}")


class Exploit:
    """Unpickled in the usual way, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cifar10_pickles_run_no_code(tmp_path, protocol):
    target = tmp_path / "exploited"
    attack = pickle.dumps({b"data": Exploit(target), b"labels": [0]}, protocol)
    (tmp_path / "test_batch").write_bytes(attack)
    message = refusal(f"cifar10:{tmp_path}")
    assert "it asks for posix.mkdir, which no CIFAR-10 batch does" in message
    assert not target.exists()
    pickle.loads(attack)
    assert target.exists()  # the attack is a real one


@pytest.mark.parametrize(
    "name", [("builtins", "eval"), ("numpy", "load"), ("numpy.core.multiarray", "scalar"), ("os", "system")]
)
def test_cifar10_pickles_reach_no_other_name(tmp_path, name):
    module, function = name
    (tmp_path / "test_batch").write_bytes(b"c%s\n%s\n(S'0'\ntR." % (module.encode(), function.encode()))
    assert f"it asks for {module}.{function}" in refusal(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    "batch",
    [
        None,
        [],
        {},
        {b"data": 1, b"labels": []},
        {b"data": IMAGES.reshape(7, -1), b"labels": "3"},
        {b"data": IMAGES.reshape(7, -1), b"labels": ["3"]},
        {b"data": IMAGES.reshape(7, -1), b"labels": [10**30]},
        {b"data": IMAGES, b"labels": LABELS},
        {b"data": IMAGES.reshape(7, -1)[:, :-1].copy(), b"labels": LABELS},
        {b"data": IMAGES.reshape(7, -1).astype(np.int16), b"labels": LABELS},
        {b"data": np.asfortranarray(IMAGES.reshape(7, -1)), b"labels": LABELS},
        {b"data": np.array([None] * 3072).reshape(1, 3072), b"labels": [0]},
    ],
)
def test_cifar10_other_pickles(tmp_path, batch):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, 2))
    assert "test_batch is no CIFAR-10 batch" in refusal(f"cifar10:{tmp_path}")


def test_cifar10_labels_and_images_must_pair_up(tmp_path):
    batch = {b"data": IMAGES.reshape(7, -1), b"labels": LABELS[1:]}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, 2))
    assert "has 7 images but 6 labels" in refusal(f"cifar10:{tmp_path}")


def test_cifar10_does_not_fit_another_network(tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(binary_batch(IMAGES, LABELS))
    source = f"cifar10:{tmp_path}"
    assert f"{source} is 32 x 32 x 3 but the network takes 28 x 28 x 1" in refusal(source, shape=(28, 28, 1))
    assert "has label 8 at image 1, which is not one of the classes 0 .. 7" in refusal(source, classes=8)


# ---------------------------------------------------------------------------------------------------------------------
# mnist:DIR
# ---------------------------------------------------------------------------------------------------------------------

GREY = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def save_mnist(root: Path, prefix: str = "t10k", images: bytes | None = None, labels: bytes | None = None) -> None:
    (root / f"{prefix}-images-idx3-ubyte").write_bytes(idx(GREY) if images is None else images)
    (root / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(5, dtype=np.uint8)) if labels is None else labels)


def test_mnist(tmp_path):
    save_mnist(tmp_path)
    dataset = open_dataset(f"mnist:{tmp_path}", shape=(28, 28, 1), classes=10)
    check(dataset, GREY[..., None], [0, 1, 2, 3, 4])
    assert "has no train-images-idx3-ubyte; place it, gzipped or not," in refusal(f"mnist:{tmp_path}", "train")
    save_mnist(tmp_path, "train", idx(GREY[::-1]))
    check(open_dataset(f"mnist:{tmp_path}", "train"), GREY[::-1, :, :, None], [0, 1, 2, 3, 4])


def test_mnist_gzipped_is_the_same_data_set(tmp_path):
    save_mnist(tmp_path)
    plain = open_dataset(f"mnist:{tmp_path}").identity
    for file in list(tmp_path.iterdir()):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
    assert open_dataset(f"mnist:{tmp_path}").identity == plain
    for file in tmp_path.glob("*ubyte"):
        file.unlink()
    dataset = open_dataset(f"mnist:{tmp_path}")
    check(dataset, GREY[..., None], [0, 1, 2, 3, 4])
    assert dataset.identity == plain


def test_mnist_missing(tmp_path):
    assert f"place t10k-images-idx3-ubyte.gz in {tmp_path}/none" in refusal(f"mnist:{tmp_path}/none")
    assert "has no t10k-images-idx3-ubyte; place it" in refusal(f"mnist:{tmp_path}")
    save_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert "has no t10k-labels-idx1-ubyte; place it" in refusal(f"mnist:{tmp_path}")
    assert "has no split 'val'" in refusal(f"mnist:{tmp_path}", "val")


def test_mnist_parts_and_ambiguity(tmp_path):
    save_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").rename(tmp_path / "t10k-first5-images-idx3-ubyte")
    check(open_dataset(f"mnist:{tmp_path}"), GREY[..., None], [0, 1, 2, 3, 4])
    save_mnist(tmp_path)
    assert "has t10k-first5-images-idx3-ubyte and t10k-images-idx3-ubyte; leave one" in refusal(f"mnist:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it begins with  instead of 00000803"),
        (idx(GREY[0]), "it begins with 00000802 instead of 00000803"),
        (idx(GREY)[:8], "its extents are"),
        (idx(GREY)[:-1], "it has fewer than 3920 bytes"),
        (idx(GREY) + b"\0", "it has more than 3920 bytes"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "its extents are [4294967295, 4294967295, 4294967295]"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_damaged(tmp_path, content, reason, zipped):
    save_mnist(tmp_path, images=content)
    if zipped:
        file = tmp_path / "t10k-images-idx3-ubyte"
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(content))
        file.unlink()
    assert f"is no IDX file, or damaged ({reason}" in refusal(f"mnist:{tmp_path}")


def test_mnist_damaged_gzip(tmp_path):
    save_mnist(tmp_path)
    packed = gzip.compress((tmp_path / "t10k-images-idx3-ubyte").read_bytes())
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    for content in (b"no gzip", packed[:100], packed[:500] + bytes(100) + packed[600:]):
        (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
        assert "t10k-images-idx3-ubyte.gz is no IDX file, or damaged" in refusal(f"mnist:{tmp_path}")


def test_mnist_labels(tmp_path):
    save_mnist(tmp_path, labels=idx(np.arange(4, dtype=np.uint8)))
    assert "has 5 images but 4 labels" in refusal(f"mnist:{tmp_path}")
    save_mnist(tmp_path, labels=idx(np.arange(8, 13, dtype=np.uint8)))
    assert "has label 10 at image 2, which is not one of the classes 0 .. 9" in refusal(f"mnist:{tmp_path}", classes=10)
    assert open_dataset(f"mnist:{tmp_path}", classes=26)[4].label == 12


def test_mnist_wrong_size(tmp_path):
    save_mnist(tmp_path)
    assert "is 28 x 28 x 1 but the network takes 32 x 32 x 1" in refusal(f"mnist:{tmp_path}", shape=(32, 32, 1))


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="MNIST is not on this machine")
def test_the_real_mnist():
    dataset = open_dataset(f"mnist:{DATA / 'mnist'}", shape=(28, 28, 1), classes=10)
    assert len(dataset) == 5000
    assert [sample.label for sample in list(dataset)[:10]] == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.skipif(not (DATA / "cifar10-jpeg.tar.gz").is_file(), reason="the CIFAR-10 images are not on this machine")
def test_real_images_in_folders(tmp_path):
    with tarfile.open(DATA / "cifar10-jpeg.tar.gz") as archive:
        wanted = [member for member in archive if member.name.startswith("test/") and member.name.endswith("000.jpg")]
        archive.extractall(tmp_path, wanted, filter="data")
    dataset = open_dataset(f"folder:{tmp_path}", shape=(32, 32, 3), classes=10)
    assert dataset.class_names == CLASSES
    assert [sample.label for sample in dataset] == list(range(10))


# ---------------------------------------------------------------------------------------------------------------------
# npz:FILE
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("save_arrays", [np.savez, np.savez_compressed])
def test_npz(tmp_path, dtype, save_arrays):
    save_arrays(tmp_path / "d.npz", images=IMAGES, labels=np.array(LABELS, dtype))
    dataset = open_dataset(f"npz:{tmp_path}/d.npz", shape=(32, 32, 3), classes=10)
    check(dataset, IMAGES, LABELS)
    assert dataset.class_names == ()
    content = b"7x32x32x3\n" + np.array(LABELS, "<i8").tobytes() + IMAGES.tobytes()
    assert dataset.identity == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": IMAGES}, "has no array 'labels'; save images and labels"),
        ({"labels": LABELS}, "has no array 'images'; save images and labels"),
        ({"images": IMAGES / 255, "labels": LABELS}, "has images float64[7, 32, 32, 3]; save uint8[n, H, W, C]"),
        ({"images": IMAGES[0], "labels": LABELS}, "has images uint8[32, 32, 3]; save uint8[n, H, W, C]"),
        ({"images": IMAGES, "labels": np.eye(7)}, "has labels float64[7, 7]; save integers[n]"),
        ({"images": IMAGES, "labels": np.eye(7, dtype=int)}, "has labels int64[7, 7]; save integers[n]"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "has labels float64[0]; save integers[n]"),
        ({"images": IMAGES[:0], "labels": np.zeros(0, int)}, "has no images"),
        ({"images": IMAGES, "labels": LABELS[1:]}, "has 7 images but 6 labels"),
        ({"images": IMAGES, "labels": [-1] * 7}, "has label -1 at image 0, which is not a class number"),
        ({"images": IMAGES, "labels": np.array([None] * 7)}, "is not a readable npz file"),
    ],
)
def test_npz_with_other_content(tmp_path, arrays, reason):
    np.savez(tmp_path / "d.npz", **arrays)
    assert reason in refusal(f"npz:{tmp_path}/d.npz")


def test_npz_labels_beyond_the_network(tmp_path):
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=LABELS)
    assert "has label 9 at image 5, which is not one of the classes 0 .. 8" in refusal(
        f"npz:{tmp_path}/d.npz", classes=9
    )
    assert "is 32 x 32 x 3 but the network takes 224 x 224 x 3" in refusal(f"npz:{tmp_path}/d.npz", shape=(224, 224, 3))


def test_npz_missing_or_damaged(tmp_path):
    assert "d.npz does not exist; save arrays images and labels there" in refusal(f"npz:{tmp_path}/d.npz")
    assert "is not a readable npz file" in refusal(f"npz:{tmp_path}")
    file = tmp_path / "d.npz"
    np.savez_compressed(file, images=IMAGES, labels=LABELS)
    whole = file.read_bytes()
    for content in (b"", b"no zip", whole[:1000], whole[:1000] + bytes(100) + whole[1100:], pickle.dumps(LABELS)):
        file.write_bytes(content)
        assert "d.npz is not a readable npz file" in refusal(f"npz:{file}")
    with open(file, "wb") as stream:
        np.save(stream, IMAGES)
    assert "d.npz is not a readable npz file" in refusal(f"npz:{file}")
