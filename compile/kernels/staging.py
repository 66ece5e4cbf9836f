"""Copies of one image that a kernel can read without thinking of its borders: padded, and in the dtype it wants."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from intcert.compile.kernels.base import LANES, Expr, loop, splat, store, typed, vector
from intcert.compile.layout import ITEM_BYTES, Layout


@dataclass(frozen=True)
class Staging:
    """The staged image [rows, columns, channels] of ``dtype`` and where it comes from.

    top, left: rows and columns of ``fill`` before the image; whatever the source does not cover is ``fill`` too.
    offset: added to every element, 0 or 128; the staged fill includes it.
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

    @property
    def elements(self) -> int:
        return self.rows * self.columns * self.channels

    @property
    def bytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]

    @property
    def _covered(self) -> tuple[int, int]:
        """Rows and columns of the source that are copied."""
        return min(self.source.height, self.rows - self.top), min(self.source.width, self.columns - self.left)

    def write_fill(self, staged: tirx.Buffer) -> None:
        """Emit the padding, once for all images of a call: copies never touch it."""
        if self._covered != (self.rows, self.columns):
            with loop(self.elements) as i:
                store(staged, i, tirx.const(self.fill + self.offset, self.dtype))

    def write_image(self, staged: tirx.Buffer, source: tirx.Buffer, image: Expr) -> None:
        """Emit the copy of image number ``image``."""
        rows, columns = self._covered
        lanes = LANES if self.channels % LANES == 0 else 1
        with loop(rows) as h, loop(columns) as w, loop(self.channels // lanes) as c:
            read = image * self.source.elements + (h * self.source.width + w) * self.source.stride + c * lanes
            write = ((h + self.top) * self.columns + w + self.left) * self.channels + c * lanes
            store(staged, write, self._convert(vector(source, read, lanes), lanes), lanes)

    def _convert(self, value: Expr, lanes: int) -> Expr:
        value = value.astype(typed(self.dtype, lanes))
        # a + 128 modulo 256 flips the sign bit.
        return value ^ splat(0x80, self.dtype, lanes) if self.offset else value
