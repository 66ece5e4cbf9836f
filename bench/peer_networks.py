"""The peers of bench/peers.py in one shape. Each lives in a process of its own, where it is prepared once.

A library is imported where it is used: which are installed is not known before, and its threads and the instructions
that it may use are settled when it loads.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np
from peer_models import SIGMA, ModelFiles

KEY = 1


class Peer(ABC):
    """One way to run the network.

    name: as the table shows it; packages: what it needs, as pip knows it; form: the file that it runs, a key of
    ``peer_models.FORMS``; noise: whether its time includes noise and the decision, as a certificate's does.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    noise: ClassVar[bool] = False

    def __init__(self, name: str, form: str) -> None:
        self.name, self.form = name, form

    @abstractmethod
    def prepare(self, files: ModelFiles, cores: int) -> None:
        """Load the network for so many cores; called once, before ``run``."""

    @abstractmethod
    def run(self, batch: int) -> int:
        """Compute, ``batch`` images at once, and return how many images that were."""

    def batches(self, side: int, cores: int) -> tuple[int, ...]:
        """Images at once that may be the fastest, for images of ``side`` rows."""
        return (16, 64, 256) if side < 100 else (1, 4, 8)

    def settings(self) -> dict[str, Any]:
        """What was chosen, for the record."""
        return {}


class Intcert(Peer):
    """A compiled artifact: ``counts``, or ``logits``, which is the network with images given."""

    def __init__(self, target: str, *, network_only: bool = False) -> None:
        super().__init__(f"intcert {target}{', network only' if network_only else ''}", f"{target}.intcert")
        self.target, self.network_only = target, network_only
        self.noise = not network_only

    def prepare(self, files: ModelFiles, cores: int) -> None:
        # TVM imports torch where it is installed, 200 MB that a board does not have.
        sys.modules["torch"] = None
        from intcert.runtime import open_artifact

        self._session = open_artifact(files.path(self.form), threads=cores)
        self._image = np.full(self._session.input_shape, 128, np.uint8)
        self._images = cache(lambda n: np.full((n, *self._session.input_shape), 128, np.int16))

    def run(self, batch: int) -> int:
        if self.network_only:
            self._session.logits(self._images(batch))
        else:
            self._session.counts(self._image, KEY, 0, batch)
        return batch

    def batches(self, side: int, cores: int) -> tuple[int, ...]:
        # What is in the caches at once is the artifact's own choice. A call is split by rows of 64 samples, and images
        # that are given are copied once, which more of them than fit a cache would slow down.
        if self.network_only:
            return (256 * cores if side < 100 else 8 * cores,)
        return (4096 * cores if side < 100 else 64 * cores,)

    def settings(self) -> dict[str, Any]:
        manifest = self._session.artifact.manifest
        return {"chunk": manifest.chunk, "scheme": manifest.scheme, "sigma": manifest.sigma}


class OpenVino(Peer):
    """OpenVINO for throughput: a stream for each core, and enough requests to keep them busy."""

    def __init__(self, name: str, form: str, precision: str | None = None, isa: str | None = None) -> None:
        """precision: OpenVINO's INFERENCE_PRECISION_HINT; isa: oneDNN's ONEDNN_MAX_CPU_ISA."""
        super().__init__(f"OpenVINO {name}", form)
        self.precision, self.isa = precision, isa
        quantizer = {"qdq.onnx": ("onnxruntime",), "nncf.xml": ("nncf",)}
        self.packages = ("openvino", "onnx", *quantizer.get(form, ()))

    def prepare(self, files: ModelFiles, cores: int) -> None:
        if self.isa:
            os.environ["ONEDNN_MAX_CPU_ISA"] = self.isa  # read once, when the library first asks
        import openvino

        self._properties = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": cores,
            "NUM_STREAMS": cores,
            "ENABLE_CPU_PINNING": False,  # the process is pinned as a whole
            **({"INFERENCE_PRECISION_HINT": self.precision} if self.precision else {}),
        }
        core = openvino.Core()
        (name,) = (port.get_any_name() for port in core.read_model(files.path(self.form)).inputs)

        def requests(batch: int) -> tuple[Any, Any]:
            model = core.read_model(files.path(self.form))
            model.reshape([batch, 3, files.side, files.side])
            compiled = core.compile_model(model, "CPU", self._properties)
            queue = openvino.AsyncInferQueue(compiled, cores)
            (images,) = files.inputs(1, batch)
            for request in queue:
                request.set_tensor(name, openvino.Tensor(images))
            return compiled, queue

        self._requests: Callable[[int], tuple[Any, Any]] = cache(requests)
        self._rounds = cores if cores == 1 else 4 * cores  # so that the last ones, which wait, weigh little

    def run(self, batch: int) -> int:
        self._compiled, queue = self._requests(batch)
        for _ in range(self._rounds):
            queue.start_async()
        queue.wait_all()
        return batch * self._rounds

    def settings(self) -> dict[str, Any]:
        """With the primitives of the convolutions: they tell which instructions really run."""
        nodes = (node.get_rt_info() for node in self._compiled.get_runtime_model().get_ordered_ops())
        kinds = Counter(
            node["primitiveType"].astype(str) for node in nodes if node["layerType"].astype(str) == "Convolution"
        )
        limit = {"ONEDNN_MAX_CPU_ISA": self.isa} if self.isa else {}
        return self._properties | limit | {"convolutions": dict(kinds)}


class OnnxRuntime(Peer):
    """ONNX Runtime's CPU provider."""

    packages = ("onnxruntime", "onnx")

    def prepare(self, files: ModelFiles, cores: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = cores, 1
        self._session = onnxruntime.InferenceSession(
            str(files.path(self.form)), options, providers=["CPUExecutionProvider"]
        )
        self._images = cache(lambda n: next(files.inputs(1, n)))

    def run(self, batch: int) -> int:
        self._session.run(None, {"x": self._images(batch)})
        return batch


class PyTorchEager(Peer):
    """The loop of Cohen et al., with its noise, in float32 and channels_last."""

    packages = ("torch",)
    noise = True

    def prepare(self, files: ModelFiles, cores: int) -> None:
        import torch
        from float_classifier import FloatClassifier

        torch.set_num_threads(cores)
        image = np.full((files.side, files.side, 3), 128, np.uint8)
        self._classifier = FloatClassifier(files.network(), image, float(SIGMA))

    def run(self, batch: int) -> int:
        self._classifier.count(batch, batch)
        return batch

    def settings(self) -> dict[str, Any]:
        return {"layout": self._classifier.layout, "sigma": SIGMA}


class PyTorchCompiled(Peer):
    """torch.compile with frozen weights, in channels_last: the float network in bfloat16, or an 8-bit program."""

    packages = ("torch", "torchao")

    def prepare(self, files: ModelFiles, cores: int) -> None:
        import torch
        from torch._inductor import config

        torch.set_num_threads(cores)
        config.freezing = True
        self._bfloat16 = self.form == "float.pth"

        def compiled(batch: int) -> tuple[Callable[..., Any], Any]:
            images = torch.from_numpy(next(files.inputs(1, batch))).to(memory_format=torch.channels_last)
            if self._bfloat16:
                network = files.bare_network().to(memory_format=torch.channels_last).bfloat16()
                return torch.compile(network, dynamic=False), images.bfloat16()
            import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401, registers the operators

            return torch.compile(torch.export.load(files.path(self.form)).module(), dynamic=False), images

        self._compiled = cache(compiled)

    def run(self, batch: int) -> int:
        import torch

        with torch.no_grad():
            network, images = self._compiled(batch)
            network(images)
        return batch

    def batches(self, side: int, cores: int) -> tuple[int, ...]:
        return (16, 64) if side < 100 else (1, 4)  # each is a compilation of its own

    def settings(self) -> dict[str, Any]:
        return {"torch._inductor.config.freezing": True, "dtype": "bfloat16" if self._bfloat16 else "int8 (PT2E)"}


VNNI = "AVX512_CORE_VNNI"

#: In the order of the table. The first one that ran is what the others are compared with.
PEERS: tuple[Peer, ...] = (
    Intcert("x86-amx"),
    Intcert("x86-amx", network_only=True),
    Intcert("x86-vnni"),
    Intcert("x86-vnni", network_only=True),
    OpenVino("int8 (QDQ)", "qdq.onnx"),
    OpenVino("int8 (NNCF)", "nncf.xml"),
    OpenVino("int8 (QDQ), VNNI only", "qdq.onnx", isa=VNNI),
    OpenVino("int8 (NNCF), VNNI only", "nncf.xml", isa=VNNI),
    OpenVino("bf16", "float.onnx", precision="bf16"),
    OpenVino("fp32", "float.onnx", precision="f32"),
    OnnxRuntime("ONNX Runtime int8 (QDQ)", "qdq.onnx"),
    PyTorchEager("PyTorch fp32 eager", "float.pth"),
    PyTorchCompiled("PyTorch bf16, torch.compile", "float.pth"),
    PyTorchCompiled("PyTorch int8, torch.compile", "inductor.pt2"),
)
