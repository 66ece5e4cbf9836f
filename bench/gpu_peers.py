"""What bench/gpu.py compares intcert with: PyTorch in three forms, and TensorRT's int8 where it is installed.

All run the sampling loop of Cohen et al. on the device: Gaussian noise, network, argmax, counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from peer_models import SIGMA, ModelFiles

if TYPE_CHECKING:
    import torch

WORKSPACE = 8 << 30  # bytes that TensorRT may take while it looks for kernels

Network = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Rate:
    """Noisy images a second, decided and counted. batch: images at once; seconds: a round, each."""

    network: str
    implementation: str
    batch: int
    images_per_second: float
    seconds: tuple[float, ...]


def torch_rates(
    files: ModelFiles, image: np.ndarray, batches: Sequence[int], n: int, rounds: int, device: str
) -> Iterator[Rate]:
    """PyTorch for each precision and batch size. image: uint8[H, W, C]."""
    import torch

    files.build("float.pth")
    for label, dtype, layout, compiled in (
        ("PyTorch float32", torch.float32, torch.contiguous_format, False),
        ("PyTorch bfloat16", torch.bfloat16, torch.contiguous_format, False),
        ("PyTorch compiled, bfloat16, channels_last", torch.bfloat16, torch.channels_last, True),
    ):
        network = files.network().to(device, dtype, memory_format=layout)
        network = torch.compile(network, dynamic=False) if compiled else network
        pixels = pixels_of(image, device, dtype)
        for batch in batches:
            work = sampling_loop(network, pixels, layout, batch, n)
            yield rate(files.arch, label, batch, n, rounds, work)


def tensorrt_rates(files: ModelFiles, image: np.ndarray, batches: Sequence[int], n: int, rounds: int) -> Iterator[Rate]:
    """TensorRT's int8 for each batch size: an engine of one size, made from quantize and dequantize nodes.

    The engine takes normalized images and the loop does not normalize, to TensorRT's advantage. Raises ImportError
    where it is not installed, RuntimeError where it does not take the network.
    """
    import tensorrt
    import torch

    files.build("tensorrt.onnx")
    stream = torch.cuda.Stream()
    for batch in batches:
        engine = TensorRtEngine(files.path("tensorrt.onnx").read_bytes(), (batch, 3, files.side, files.side))
        work = sampling_loop(engine, pixels_of(image, "cuda", torch.float32), torch.contiguous_format, batch, n)

        def on_stream(work: Callable[[], object] = work) -> object:
            # On the default stream TensorRT would wait for the device after every call.
            with torch.cuda.stream(stream):
                return work()

        yield rate(files.arch, f"TensorRT {tensorrt.__version__} int8", batch, n, rounds, on_stream)


class TensorRtEngine:
    """A network that TensorRT compiled for one shape of images, called like a torch module."""

    def __init__(self, onnx: bytes, shape: tuple[int, int, int, int]) -> None:
        """onnx: a model from x to y with quantize and dequantize nodes; shape: of x. Raises RuntimeError."""
        import tensorrt as trt

        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(onnx):
            raise RuntimeError(f"TensorRT does not take the network: {parser.get_error(0).desc()}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
        profile = builder.create_optimization_profile()
        profile.set_shape("x", shape, shape, shape)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError("TensorRT makes no engine of the network")
        self._runtime = trt.Runtime(logger)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()
        self._context.set_input_shape("x", shape)
        self._result = tuple(self._context.get_tensor_shape("y"))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32[n, classes] of float32[n, C, H, W], on the current stream."""
        import torch

        logits = torch.empty(self._result, dtype=torch.float32, device=images.device)
        self._context.set_tensor_address("x", images.data_ptr())
        self._context.set_tensor_address("y", logits.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT does not run its engine")
        return logits


def pixels_of(image: np.ndarray, device: str, dtype: torch.dtype) -> torch.Tensor:
    """[1, C, H, W] in [0, 1] of uint8[H, W, C]."""
    import torch

    return torch.from_numpy(image).permute(2, 0, 1)[None].to(device, dtype) / 255


def sampling_loop(
    network: Network, pixels: torch.Tensor, layout: torch.memory_format, batch: int, n: int
) -> Callable[[], list[int]]:
    """A function that counts the classes of n noisy copies of an image [1, C, H, W] and returns them."""
    import torch

    def count() -> list[int]:
        counts = 0
        with torch.inference_mode():
            for _ in range(-(-n // batch)):
                images = pixels.expand(batch, -1, -1, -1).contiguous(memory_format=layout)
                logits = network(images + torch.randn_like(images) * float(SIGMA))
                counts = counts + torch.bincount(logits.argmax(1), minlength=logits.shape[1])
        return counts.tolist()  # waits for the device

    return count


def rate(name: str, label: str, batch: int, n: int, rounds: int, work: Callable[[], object]) -> Rate:
    """Time a function that evaluates n images, rounded up to whole batches, after a first call."""
    work()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    images = n if label.startswith("intcert") else -(-n // batch) * batch
    return Rate(name, label, batch, images / statistics.median(seconds), tuple(seconds))
