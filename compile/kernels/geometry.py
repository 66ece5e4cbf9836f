"""Images and windows of a convolution. Linear layers and pointwise convolutions become one long row of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intcert.compile.layout import Layout
from intcert.compile.nodes import Conv2d, Linear


@dataclass(frozen=True)
class ConvGeometry:
    """Images and windows of a convolution, for ``batch`` images of ``source`` that become ``result``."""

    batch: int
    source: Layout
    result: Layout
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # top, left
    dilation: tuple[int, int]
    pad_value: int

    @property
    def rows(self) -> int:
        """Rows of the padded source that the windows cover."""
        return (self.result.height - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1

    @property
    def columns(self) -> int:
        """Columns of the padded source that the windows cover."""
        return (self.result.width - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1

    @property
    def pointwise(self) -> bool:
        """Whether windows are single pixels of the source, so that they can be read where they lie."""
        inside = self.rows <= self.source.height and self.columns <= self.source.width
        return self.kernel == (1, 1) and self.padding == (0, 0) and inside


def conv_geometry(
    node: Conv2d | Linear, source: Layout, result: Layout, batch: int
) -> tuple[ConvGeometry, np.ndarray, int]:
    """Geometry, weight int8[O, KH, KW, I / groups] and groups of a convolution or a linear layer."""
    if isinstance(node, Linear):
        geometry = ConvGeometry(batch, source, result, (1, 1), (1, 1), (0, 0), (1, 1), 0)
        return _one_row(geometry), node.weight[:, None, None, :], 1
    geometry = ConvGeometry(
        batch, source, result, tuple(node.weight.shape[1:3]), tuple(node.stride), tuple(node.padding[:2]),
        tuple(node.dilation), node.pad_value,
    )  # fmt: skip
    plain = geometry.kernel == geometry.stride == (1, 1) and not any(node.padding)
    return (_one_row(geometry) if plain else geometry), node.weight, node.groups


def _one_row(geometry: ConvGeometry) -> ConvGeometry:
    """The same pixels of all images as one row of one image."""
    source, result = (
        Layout(1, geometry.batch * layout.height * layout.width, layout.channels, layout.dtype)
        for layout in (geometry.source, geometry.result)
    )
    return ConvGeometry(1, source, result, (1, 1), (1, 1), (0, 0), (1, 1), geometry.pad_value)
