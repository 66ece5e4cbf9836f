"""How an activation lies in memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from intcert.compile.infer import TensorInfo

#: Channels are stored in multiples of this, so that a full vector may always be stored; the spare channels hold
#: garbage, which never reaches a result because packed weights are zero there.
CHANNEL_ALIGN = 16

ITEM_BYTES = {"int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8}


def round_up(value: int, multiple: int) -> int:
    """Least multiple that is not below value."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    """Channels-last, images one after the other: [n, height, width, stride]. A vector has height = width = 1."""

    height: int
    width: int
    channels: int
    dtype: str

    @classmethod
    def of(cls, info: TensorInfo) -> Layout:
        """Layout of a node's result."""
        height, width, channels = info.shape if len(info.shape) == 3 else (1, 1, *info.shape)
        return cls(height, width, channels, info.dtype)

    @property
    def stride(self) -> int:
        """Elements from one pixel to the next."""
        return round_up(self.channels, CHANNEL_ALIGN)

    @property
    def elements(self) -> int:
        """Elements of one image, spare channels included."""
        return prod((self.height, self.width, self.stride))

    @property
    def bytes(self) -> int:
        """Bytes of one image."""
        return self.elements * ITEM_BYTES[self.dtype]
