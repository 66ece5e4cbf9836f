"""A layer whose candidates are wrong in every way they can be; the process that builds them can import it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as tb

from intcert.compile.kernels import Kernel, Schedule
from intcert.compile.kernels.base import kernel_function
from intcert.compile.kernels.depthwise import DepthwiseTile
from intcert.compile.layer import Layer

WRONG_BITS, NO_CODE, CRASH = (DepthwiseTile(columns) for columns in (1, 2, 3))


class BrokenLayer(Layer):
    """A depthwise convolution with tiles of up to four columns, of which four is the default and right."""

    def kernel(self, schedule: Schedule | None = None) -> Kernel:
        kernel = super().kernel(schedule)
        if schedule == WRONG_BITS:
            weights, *others = kernel.constants
            return replace(kernel, constants=(np.where(np.arange(len(weights)) == 5, ~weights, weights), *others))
        if schedule == NO_CODE:
            raise ValueError("no code for this one")
        if schedule == CRASH:
            pointers = 1 + len(self.inputs) + len(kernel.constants) + len(kernel.scratch)
            parameters = [(f"p{number}", "uint8", 1) for number in range(pointers)]
            return replace(kernel, function=kernel_function(parameters, _abort))
        return kernel


def _abort(*buffers: tirx.Buffer) -> None:
    tb.evaluate(tirx.call_extern("int32", "abort"))
