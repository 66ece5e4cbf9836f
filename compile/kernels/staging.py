"""Copies of images that a kernel can read without thinking of their borders: padded, and in the dtype it wants."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from intcert.compile.kernels.base import Expr, loop, splat, store, typed, vector
from intcert.compile.layout import ITEM_BYTES, Layout

WIDEST = 64  # bytes of a copied vector


@dataclass(frozen=True)
class Staging:
    """Staged images [rows, columns, images, channels] of ``dtype`` and where they come from.

    top, left: rows and columns of ``fill`` before each image; whatever the source does not cover is ``fill`` too.
    offset: added to every element, 0, 128 or -128; the staged fill includes it. images: how many are interleaved.
    """

    source: Layout
    rows: int
    columns: int
    channels: int
    top: int
    left: int
    dtype: str
    fill: int
    offset: int = 0
    images: int = 1

    @property
    def elements(self) -> int:
        return self.rows * self.columns * self.pixel

    @property
    def bytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]

    @property
    def pixel(self) -> int:
        """Elements from one column to the next."""
        return self.images * self.channels

    @property
    def _covered(self) -> tuple[int, int]:
        """Rows and columns of the source that are copied."""
        return min(self.source.height, self.rows - self.top), min(self.source.width, self.columns - self.left)

    def write_fill(self, staged: tirx.Buffer) -> None:
        """Emit the padding, once for all images of a call: copies never touch it."""
        if self._covered != (self.rows, self.columns):
            with loop(self.elements) as i:
                store(staged, i, tirx.const(self.fill + self.offset, self.dtype))

    def write_images(self, staged: tirx.Buffer, source: tirx.Buffer, first: Expr, channel: Expr | int = 0) -> None:
        """Emit the copy of images ``first`` .. ``first + images - 1``, from this channel on."""
        rows, columns = self._covered
        # Pixels that lie side by side in both are copied as one run.
        together = self.images == 1 and self.channels == self.source.stride
        runs, length = (1, columns * self.channels) if together else (columns, self.channels)
        lanes = _vector_lanes(length, WIDEST // ITEM_BYTES[self.dtype])
        with loop(self.images) as image, loop(rows) as h, loop(runs) as w, loop(length // lanes) as c:
            read = (first + image) * self.source.elements + (h * self.source.width + w) * self.source.stride
            read += channel + c * lanes
            write = ((h + self.top) * self.columns + w + self.left) * self.pixel + image * self.channels + c * lanes
            store(staged, write, self._convert(vector(source, read, lanes), lanes), lanes)

    def _convert(self, value: Expr, lanes: int) -> Expr:
        value = value.astype(typed(self.dtype, lanes))
        # Adding or subtracting 128 modulo 256 flips the sign bit.
        return value ^ splat(self.offset, self.dtype, lanes) if self.offset else value


def _vector_lanes(length: int, most: int) -> int:
    """The widest power of two up to ``most`` that divides a run, so that no copy passes its end."""
    return min(length & -length, most)
