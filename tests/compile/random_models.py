"""Random small IntegerGraphs, made from NumPy alone: every node kind, both dtypes, both schemes, awkward geometry.

Nothing here comes from a float model, so multipliers, shifts and biases reach corners that training never visits, while
most activations still spread over their range (a saturated graph would hide wrong kernels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from intcert.compile.graph import IntegerGraph
from intcert.compile.infer import TensorInfo, infer, window_count
from intcert.compile.nodes import (
    INPUT_RANGE,
    STORED_RANGE,
    Add,
    AvgPool2d,
    Clamp,
    Concat,
    Conv2d,
    Flatten,
    InputQuantize,
    Linear,
    LogitScale,
    MaxPool2d,
    Node,
    Pad,
    Requant,
    RequantQ15,
    RequantQ31,
    Slice,
    operands,
)

MAX_EXTENT = 12
MAX_CHANNELS = 40


def integer_graphs(scheme: str | None = None) -> st.SearchStrategy[IntegerGraph]:
    """Hypothesis strategy of random_integer_graph; scheme None draws either."""
    schemes = st.sampled_from(["q15", "q31"]) if scheme is None else st.just(scheme)
    return st.builds(random_integer_graph, st.integers(0, 2**32 - 1), schemes)


def random_integer_graph(seed: int, scheme: str) -> IntegerGraph:
    """A valid graph of 4 to about 16 nodes on an image of at most 12x12x4. The same seed gives the same graph."""
    return _Builder(np.random.default_rng(seed), scheme).build()


def convolution_graph(
    seed: int,
    scheme: str,
    input_shape: tuple[int, int, int],
    outputs: int,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    dtype: str = "uint8",
    residual: int = 0,
    pad_value: int = 0,
) -> IntegerGraph:
    """One convolution of an image of this shape, whose every result is a logit; padded by half a window.

    dtype: of its operand; residual: how many terms are added to it, all one result of another convolution; pad_value:
    what its operand is padded with.
    """
    return _Builder(np.random.default_rng(seed), scheme, input_shape).build_convolution(
        outputs, kernel, stride, dilation, groups, dtype, residual, pad_value
    )


def random_input(graph: IntegerGraph, n: int, seed: int) -> np.ndarray:
    """int16[n, H, W, C]: mostly pixels with noise, and a few of the extremes that the noise law may reach."""
    rng = np.random.default_rng(seed)
    shape = (n, *graph.input_shape)
    x = rng.integers(0, 256, shape) + np.round(rng.normal(0, 64, shape)).astype(np.int64)
    extreme = rng.random(shape) < 0.01
    return np.where(extreme, rng.choice(INPUT_RANGE, shape), x).astype(np.int16)


class _Builder:
    def __init__(self, rng: np.random.Generator, scheme: str, input_shape: tuple[int, int, int] | None = None) -> None:
        self.rng = rng
        self.scheme = scheme
        self.nodes: list[Node] = []
        self.info: list[TensorInfo] = []
        self.input_shape = input_shape or (
            self.between(3, MAX_EXTENT),
            self.between(3, MAX_EXTENT),
            self.between(1, 4),
        )

    def build(self) -> IntegerGraph:
        self.emit(self.input_quantize())
        steps: Sequence[Callable[[int], Node | None]] = (
            self.convolution,
            self.convolution,
            self.convolution,
            self.addition,
            self.average_pool,
            self.max_pool,
            self.concatenation,
            self.slice,
            self.pad,
        )
        for _ in range(self.between(1, 10)):
            # Mostly the newest tensor, so that graphs are deep, at times an older one, so that they branch.
            source = len(self.nodes) - 1 if self.chance(0.7) else self.between(0, len(self.nodes) - 1)
            step = steps[self.between(0, len(steps) - 1)](source)
            if step is not None:
                self.emit(step)
        self.finish()
        return self.graph()

    def build_convolution(
        self,
        outputs: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        dtype: str,
        residual: int,
        pad_value: int,
    ) -> IntegerGraph:
        least, most = STORED_RANGE[dtype]
        self.emit(replace(self.input_quantize(), clamp=Clamp(dtype, least, most)))
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)) * 2
        partner = None
        for count in (0, residual) if residual else (0,):
            weight = self.weights((outputs, *kernel, self.input_shape[2] // groups))
            reach = np.abs(weight.astype(np.int64)).sum((1, 2, 3)) * self.magnitude(0)
            terms = (partner,) * count
            bias, requant = self.requantize(reach, terms)
            node = Conv2d(0, weight, bias, stride, padding, dilation, groups, pad_value, requant, self.clamp(), terms)
            partner = self.emit(node)
        self.emit(Flatten(partner))
        return self.graph()

    def graph(self) -> IntegerGraph:
        names = tuple(f"{type(node).__name__.lower()}_{i}" for i, node in enumerate(self.nodes))
        return IntegerGraph(self.input_shape, self.scheme, tuple(self.nodes), names)

    def emit(self, node: Node) -> int:
        self.nodes.append(node)
        self.info.append(infer(node, [self.info[i] for i in operands(node)], self.input_shape, self.scheme))
        return len(self.nodes) - 1

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high, endpoint=True))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    # -- requantization -----------------------------------------------------------------------------------------------

    def clamp(self) -> Clamp:
        dtype = "uint8" if self.chance(0.6) else "int8"
        least, most = STORED_RANGE[dtype]
        if dtype == "int8" and self.chance(0.7):
            least = -127
        return Clamp(dtype, least, self.between(most // 2, most) if self.chance(0.3) else most)

    def weights(self, shape: tuple[int, ...]) -> np.ndarray:
        weight = self.rng.integers(-127, 127, shape, endpoint=True).astype(np.int8)
        weight[self.rng.random(shape) < 0.02] = -128 if self.chance(0.3) else 127
        if self.chance(0.1):
            weight[self.between(0, shape[0] - 1)] = 0
        return weight

    def requantize(self, reach: np.ndarray, terms: Sequence[int]) -> tuple[np.ndarray, Requant]:
        """Bias and requantization for an accumulator within +-reach[C] (before the bias); C = 0: terms alone."""
        # A random sum of n products is about 1/sqrt(n) of its bound; without knowing n take 1/2 to 1/32.
        typical = np.maximum(reach / 2.0 ** self.rng.integers(1, 6, reach.shape), 1.0)
        bias = np.round(self.rng.uniform(-1, 1, reach.shape) * np.minimum(typical, 2**28)).astype(np.int32)
        if self.scheme == "q15":
            return bias, self.requantize_q15(typical, terms)
        return bias, self.requantize_q31(typical, reach + np.abs(bias.astype(np.int64)), terms)

    def requantize_q15(self, typical: np.ndarray, terms: Sequence[int]) -> RequantQ15:
        least, most = (2**13, 16383) if terms else (2**11, 32767)
        multiplier = self.rng.integers(least, most, typical.shape, endpoint=True)
        # Typical values end near 128 output steps, or eighths of them beside terms.
        wanted = typical * multiplier / 2**15 / (1024 if terms else 128)
        shift = np.clip(np.round(np.log2(np.maximum(wanted, 1))), 0, 30)
        budget = (767 if len(typical) else 4000) << 11
        scales = [self.between(1, min(2**12, 32767, budget // (len(terms) * self.magnitude(term)))) for term in terms]
        offset = 4 if len(typical) else 4 + self.between(-1000, 1000)
        return RequantQ15(multiplier.astype(np.int16), shift.astype(np.int8), np.array(scales, np.int16), offset)

    def requantize_q31(self, typical: np.ndarray, reach: np.ndarray, terms: Sequence[int]) -> RequantQ31:
        channels = max(len(typical), 1)
        ratio = self.rng.uniform(0.05, 2.0, (len(terms), channels)) / 256
        real = self.rng.uniform(32, 256, typical.shape) / typical
        largest = np.max([*ratio, *([real] if len(typical) else [])], axis=0)
        # The greatest shift with 30-bit multipliers, at times a smaller one.
        shift = np.clip(np.floor(30 - np.log2(largest)) - self.rng.integers(0, 3, channels), 32, 62)
        multiplier = np.minimum(np.round(real * 2.0 ** shift[: len(typical)]), 2**31 - 1)
        multiplier *= np.where(self.rng.random(typical.shape) < 0.05, -1, 1)
        requant = RequantQ31(
            multiplier.astype(np.int32),
            np.round(ratio * 2.0**shift).astype(np.int32),
            (self.rng.uniform(-16, 16, channels) * 2.0**shift).astype(np.int64) + (1 << (shift.astype(np.int64) - 1)),
            shift.astype(np.int8),
        )
        # Proves that the guess above leaves room; the graph checks it again.
        requant.check_sum(reach, [self.info[term].range for term in terms])
        return requant

    def magnitude(self, operand: int) -> int:
        low, high = self.info[operand].range
        return max(-low, high, 1)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def input_quantize(self) -> InputQuantize:
        channels = self.input_shape[2]
        real = self.rng.uniform(257 / 2048, 1.2, channels)  # output steps a pixel level
        zero = self.rng.uniform(0, 255, channels)  # the pixel that becomes 0
        if self.scheme == "q15":
            bias = np.round(-16 * zero).astype(np.int32)
            requant: Requant = RequantQ15(
                np.round(real * 2**11).astype(np.int16), np.zeros(channels, np.int8), np.zeros(0, np.int16)
            )
        else:
            bias, shift = np.zeros(channels, np.int32), 38
            requant = RequantQ31(
                np.round(real * 2 ** (shift - 8)).astype(np.int32),
                np.zeros((0, channels), np.int32),
                np.round(-zero * real * 2.0**shift).astype(np.int64) + 2 ** (shift - 1),
                np.full(channels, shift, np.int8),
            )
        return InputQuantize(bias, requant, self.clamp())

    def convolution(self, source: int) -> Node:
        height, width, channels = self.info[source].shape
        kernel = (self.between(1, 4), self.between(1, 4))
        stride = (self.between(1, 3), self.between(1, 3)) if self.chance(0.4) else (1, 1)
        dilation = (self.between(1, 2), self.between(1, 2)) if self.chance(0.3) else (1, 1)
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple(self.between(0, e // 2) if self.chance(0.7) else 0 for e in (*extent, *extent))
        if height + padding[0] + padding[2] < extent[0] or width + padding[1] + padding[3] < extent[1]:
            kernel, padding, dilation = (1, 1), (0, 0, 0, 0), (1, 1)
        shape = (
            window_count(height, kernel[0], stride[0], padding[0], padding[2], dilation[0]),
            window_count(width, kernel[1], stride[1], padding[1], padding[3], dilation[1]),
        )
        groups = channels if self.chance(0.25) else 1
        divisors = [g for g in range(2, channels) if channels % g == 0]
        if divisors and self.chance(0.2):
            groups = divisors[self.between(0, len(divisors) - 1)]
        partners = [i for i, info in enumerate(self.info) if info.shape[:2] == shape and info.shape[2] % groups == 0]
        terms: tuple[int, ...] = ()
        if partners and self.chance(0.6):
            first = partners[self.between(0, len(partners) - 1)]
            outputs = self.info[first].shape[2]
            alike = [i for i in partners if self.info[i].shape[2] == outputs]
            terms = (first, *(alike[self.between(0, len(alike) - 1)] for _ in range(self.between(0, 2))))
        else:
            outputs = groups * self.between(1, max(1, min(24, MAX_CHANNELS // groups)))
        weight = self.weights((outputs, *kernel, channels // groups))
        low, high = self.info[source].range
        pad_value = self.between(low, high) if self.chance(0.3) else min(max(0, low), high)
        reach = np.abs(weight.astype(np.int64)).sum((1, 2, 3)) * self.magnitude(source)
        bias, requant = self.requantize(reach, terms)
        return Conv2d(source, weight, bias, stride, padding, dilation, groups, pad_value, requant, self.clamp(), terms)

    def addition(self, source: int) -> Node:
        alike = [i for i, info in enumerate(self.info) if info.shape == self.info[source].shape]
        terms = (source, *(alike[self.between(0, len(alike) - 1)] for _ in range(self.between(0, 3))))
        _, requant = self.requantize(np.zeros(0), terms)
        return Add(terms, requant, self.clamp())

    def average_pool(self, source: int) -> Node:
        rows, columns = (self.bins(extent) for extent in self.info[source].shape[:2])
        kinds = self.between(1, 3)
        kind = self.rng.integers(0, kinds, (len(rows), len(columns))).astype(np.int32)
        summed = int(np.diff(rows).max() * np.diff(columns).max()) * self.magnitude(source)
        scale = 1 if self.scheme == "q15" else 256
        bias, requant = self.requantize(np.full(kinds, summed * scale), ())
        bias //= scale
        return AvgPool2d(source, rows, columns, kind, bias, requant, self.clamp())

    def bins(self, extent: int) -> np.ndarray:
        starts = self.rng.integers(0, extent, self.between(1, extent))
        return np.stack([starts, self.rng.integers(starts, extent) + 1], axis=1).astype(np.int32)

    def max_pool(self, source: int) -> Node | None:
        height, width, _ = self.info[source].shape
        kernel = (self.between(1, 3), self.between(1, 3))
        dilation = (self.between(1, 2), self.between(1, 2)) if self.chance(0.2) else (1, 1)
        padding = tuple(self.between(0, k // 2) for k in (*kernel, *kernel))
        node = MaxPool2d(source, kernel, (self.between(1, 3), self.between(1, 3)), padding, dilation)
        fits = all(
            d * (k - 1) < n + before + after
            for d, k, n, before, after in zip(dilation, kernel, (height, width), padding[:2], padding[2:], strict=True)
        )
        return node if fits else None

    def concatenation(self, source: int) -> Node | None:
        wanted = self.info[source]
        alike = [i for i, o in enumerate(self.info) if o.dtype == wanted.dtype and o.shape[:-1] == wanted.shape[:-1]]
        inputs = (source, *(alike[self.between(0, len(alike) - 1)] for _ in range(self.between(1, 2))))
        return Concat(inputs) if sum(self.info[i].shape[-1] for i in inputs) <= MAX_CHANNELS else None

    def slice(self, source: int) -> Node:
        shape = self.info[source].shape
        start = tuple(self.between(0, (n - 1) // 2) for n in shape)
        stop = tuple(self.between(s + 1, n) if self.chance(0.4) else n for s, n in zip(start, shape, strict=True))
        return Slice(source, start, stop, tuple(self.between(1, 2) for _ in shape))

    def pad(self, source: int) -> Node | None:
        shape = self.info[source].shape
        if max(shape[:2]) > MAX_EXTENT or shape[2] > MAX_CHANNELS // 2:
            return None
        before, after = (tuple(self.between(0, 2) for _ in shape) for _ in range(2))
        low, high = STORED_RANGE[self.info[source].dtype]
        return Pad(source, before, after, self.between(low, high) if self.chance(0.3) else 0)

    def linear(self, source: int, outputs: int, terms: tuple[int, ...], scaled: bool) -> Linear:
        weight = self.weights((outputs, self.info[source].shape[0]))
        reach = np.abs(weight.astype(np.int64)).sum(1) * self.magnitude(source)
        bias, requant = self.requantize(reach, terms)
        if not scaled:
            return Linear(source, weight, bias, requant, self.clamp(), terms)
        return Linear(source, weight, bias, self.logit_scale(outputs), None)

    def logit_scale(self, channels: int) -> LogitScale:
        multiplier = self.rng.integers(0, 2**30, channels, endpoint=True).astype(np.int32)
        multiplier[self.between(0, channels - 1)] = 2**30
        return LogitScale(multiplier, self.rng.integers(-(2**45), 2**45, channels) + 2**29)

    def finish(self) -> None:
        """From the newest tensor to a vector of logits, by one of the ways a program may end."""
        last, classes = len(self.nodes) - 1, self.between(2, 12)
        if self.chance(0.2):
            height, width, channels = self.info[last].shape
            whole = Slice(last, (0, 0, 0), (1, 1, channels), (1, 1, 1))
            last = self.emit(whole) if max(height, width) > 1 else last
            weight = self.weights((classes, 1, 1, channels))
            reach = np.abs(weight.astype(np.int64)).sum((1, 2, 3)) * self.magnitude(last)
            bias, _ = self.requantize(reach, ())
            scale = self.logit_scale(classes)
            self.emit(Flatten(self.emit(Conv2d(last, weight, bias, (1, 1), (0, 0, 0, 0), (1, 1), 1, 0, scale, None))))
            return
        vector = self.emit(Flatten(last))
        if self.chance(0.5):
            vector = self.emit(self.linear(vector, self.between(1, 24), (), scaled=False))
            if self.chance(0.5):
                width = self.info[vector].shape[0]
                terms = (vector, vector) if self.chance(0.3) else (vector,)
                vector = self.emit(self.linear(vector, width, terms, scaled=False))
            if self.chance(0.3):
                vector = self.emit(self.addition(vector))
            if self.chance(0.3):
                vector = self.emit(Concat((vector, vector)))
        if self.chance(0.8) or self.info[vector].shape[0] < 2:
            self.emit(self.linear(vector, classes, (), scaled=self.chance(0.7)))
