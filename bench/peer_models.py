"""The files that the peers of bench/peers.py run: one network with the same random weights, in each peer's form.

Nothing is trained, since the values of weights do not change what an instruction costs. Each file is written once
into a folder and found there by the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.nn import Module

SIDES = {"resnet20": 32, "resnet50": 224, "mobilenetv2": 224}  # known without torch, whose memory peers would show
SIGMA = "0.25"
MEAN, STD = 0.45, 0.22  # of images after the peers' normalization, roughly
BATCH = 2  # images at once where activations are observed
PASSES = 10  # batches that batch normalization sees


@dataclass(frozen=True)
class ModelFiles:
    """The forms of one network. arch: a name in ``SIDES``, of ``intcert.train.models``; folder: where the files lie.

    The peers' inputs are normalized beforehand, which is to their advantage: intcert's time includes it.
    """

    arch: str
    folder: Path

    @property
    def side(self) -> int:
        """Rows and columns of the image, which has 3 channels."""
        return SIDES[self.arch]

    def path(self, name: str) -> Path:
        """Where a form lies, one of the keys of ``FORMS``."""
        return self.folder / self.arch / name

    def build(self, name: str) -> None:
        """Write a form, and what it is made from, unless it is there."""
        if name in FORMS and not self._is_current(name):
            for source in FORMS[name].sources:
                self.build(source)
            path = self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            # The suffix stays the same, since libraries go by it.
            unfinished = path.with_name(f"unfinished-{path.name}")
            FORMS[name].write(self, unfinished)
            unfinished.replace(path)

    def _is_current(self, name: str) -> bool:
        path = self.path(name)
        return path.exists() and path.stat().st_mtime >= (_newest_source() if path.suffix == ".intcert" else 0)

    def network(self) -> Module:
        """The float network in torch, its normalization included."""
        import torch

        from intcert.train.models import MODELS

        network = MODELS[self.arch]()
        network.load_state_dict(torch.load(self.path("float.pth"), weights_only=True))
        return network.eval()

    def bare_network(self) -> Module:
        """The float network without its normalization."""
        import torch

        network = self.network()
        network.normalize = torch.nn.Identity()
        return network

    def inputs(self, batches: int, batch: int = BATCH) -> Iterator[np.ndarray]:
        """Normalized random images, float32[batch, 3, side, side]."""
        rng = np.random.default_rng(0)
        for _ in range(batches):
            yield ((rng.random((batch, 3, self.side, self.side), np.float32) - MEAN) / STD).astype(np.float32)


def _newest_source() -> float:
    """When the compiler was last changed: artifacts that are older are compiled again."""
    import intcert.compile.build
    import intcert.targets

    folders = (Path(module.__file__).parent for module in (intcert.compile.build, intcert.targets))
    return max(path.stat().st_mtime for folder in folders for path in folder.rglob("*.py"))


def _float_weights(files: ModelFiles, path: Path) -> None:
    import torch

    from intcert.train.models import MODELS

    torch.manual_seed(0)
    network = MODELS[files.arch]().train()
    # Untrained batch normalization lets deep networks fade or explode until it has seen a few batches.
    with torch.no_grad():
        for _ in range(PASSES):
            network(torch.rand(BATCH, 3, files.side, files.side))
    torch.save(network.state_dict(), path)


def _onnx(files: ModelFiles, path: Path) -> None:
    import torch

    (example,) = files.inputs(1)
    torch.onnx.export(
        files.bare_network(),
        (torch.from_numpy(example),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
    )


def _qdq(files: ModelFiles, path: Path) -> None:
    """ONNX Runtime's static quantization: uint8 activations, int8 weights per output channel."""
    _quantize(files, path, activations="QUInt8")


def _quantize(files: ModelFiles, path: Path, activations: str, **options: bool) -> None:
    """Static quantization with quantize and dequantize nodes. activations: a QuantType; options: extra ones."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = files.inputs(4)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"x": batch}

    folded = path.with_name("folded.onnx")
    quant_pre_process(str(files.path("float.onnx")), str(folded))
    quantize_static(
        str(folded),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options=options,
    )
    folded.unlink()


def _tensorrt(files: ModelFiles, path: Path) -> None:
    """What TensorRT takes: int8 on both sides, every zero point 0, biases in float."""
    _quantize(files, path, activations="QInt8", ActivationSymmetric=True, QuantizeBias=False)


def _nncf(files: ModelFiles, path: Path) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(files.path("float.onnx"))
    batches = list(files.inputs(8, 1))
    quantized = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
    # An .xml names its weights' file by its own name, so this one is renamed by hand.
    openvino.save_model(quantized, path)
    path.with_suffix(".bin").replace(files.path("nncf.bin"))


def _inductor_program(files: ModelFiles, path: Path) -> None:
    """PyTorch's own static quantization for its x86 compiler (PT2E, uint8 activations, int8 weights per channel)."""
    import torch
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batches = [torch.from_numpy(batch) for batch in files.inputs(4)]
    size = torch.export.Dim("n")
    exported = torch.export.export(files.bare_network(), (batches[0],), dynamic_shapes=({0: size},))
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported.module(), quantizer)
    for batch in batches:
        prepared(batch)
    converted = move_exported_model_to_eval(convert_pt2e(prepared))
    torch.export.save(torch.export.export(converted, (batches[0],), dynamic_shapes=({0: size},)), path)


def quantized(network: Module, side: int) -> ExportedProgram:
    """The network in intcert's quantization, observed on random images of ``side`` rows and columns."""
    import torch

    from intcert.compile.quantizer import convert, prepare_calibration

    images = torch.rand(2 * BATCH, 3, side, side)
    prepared = prepare_calibration(network, images[:BATCH])
    with torch.no_grad():
        prepared(1.6 * images - 0.3)  # noise leaves [0, 1]
    return convert(prepared, images[:BATCH])


def _program(files: ModelFiles, path: Path) -> None:
    import torch

    torch.export.save(quantized(files.network(), files.side), path)


def _artifact(target: str) -> Callable[[ModelFiles, Path], None]:
    def write(files: ModelFiles, path: Path) -> None:
        from intcert.compile.build import compile_artifact

        compile_artifact(files.path("intcert.pt2"), path, target=target, sigma=SIGMA)

    return write


@dataclass(frozen=True)
class Form:
    """A file's maker, and the files that it reads."""

    write: Callable[[ModelFiles, Path], None]
    sources: tuple[str, ...] = ()


FORMS = {
    "float.pth": Form(_float_weights),
    "float.onnx": Form(_onnx, ("float.pth",)),
    "qdq.onnx": Form(_qdq, ("float.onnx",)),
    "tensorrt.onnx": Form(_tensorrt, ("float.onnx",)),
    "nncf.xml": Form(_nncf, ("float.onnx",)),
    "inductor.pt2": Form(_inductor_program, ("float.pth",)),
    "intcert.pt2": Form(_program, ("float.pth",)),
    **{f"{target}.intcert": Form(_artifact(target), ("intcert.pt2",)) for target in ("x86", "x86-vnni", "x86-amx")},
}
