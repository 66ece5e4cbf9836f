"""How training and calibration choose the range that an activation's 8 bits cover."""

from __future__ import annotations

from torch import Tensor
from torchao.quantization.pt2e import MovingAverageMinMaxObserver


class ClippedMinMaxObserver(MovingAverageMinMaxObserver):
    """Moving average of a batch's range without its outermost values.

    Under noise a handful of values in a batch lie far outside all others. A range that reaches them leaves most of the
    255 levels unused, and coarse steps cost more than clipping one value in ten thousand.

    Attributes:
        share: of a batch's values that lie above the range, and of those that lie below it.
        limit: about so many values of a batch are looked at, evenly spread; more only cost time.
    """

    share = 1e-4
    limit = 1 << 17

    def forward(self, x: Tensor) -> Tensor:
        """Take note of a batch, float of any shape; returns it unchanged."""
        if x.numel():
            # An odd distance meets every column of images whose width is a power of two.
            values = x.detach().flatten()[:: x.numel() // self.limit | 1].float()
            cut = max(1, int(self.share * values.numel()))
            high, low = values.topk(cut).values[-1], -(-values).topk(cut).values[-1]
            super().forward(values.clamp(low, high))
        return x


#: Choices of ``--ranges``.
OBSERVERS = {"clipped": ClippedMinMaxObserver, "minmax": MovingAverageMinMaxObserver}
