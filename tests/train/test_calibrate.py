"""Post-training quantization: the result is quantized, repeats, and answers like the float network."""

import pytest
import torch

from intcert.runtime.errors import IntcertError, ModelError, SigmaError
from intcert.train.calibrate import ExportedNetwork, quantize
from intcert.train.data import ImageSet
from intcert.train.models import MODELS
from intcert.train.program import export_float, is_quantized


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MODELS["lenet"]()


@pytest.fixture(scope="module")
def data():
    images = torch.randint(256, (100, 28, 28, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, torch.zeros(100, dtype=torch.int64), tuple("0123456789"))


def test_calibrated_network_is_quantized_and_close_to_the_float_one(network, data):
    seen = []
    program = quantize(network, data, "0.25", images=80, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert is_quantized(program)
    x = data.images.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected, found = network.eval()(x), program.module()(x)
    assert not torch.equal(expected, found)
    assert (expected - found).abs().max() < 0.1 * expected.abs().max()


def test_a_float_program_gives_the_same_as_its_network(network, data):
    program = export_float(network, torch.zeros(2, 1, 28, 28))
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    of_program = quantize(ExportedNetwork(program), data, "0.25", images=64).module()(x)
    assert torch.equal(of_program, quantize(network, data, "0.25", images=64).module()(x))
    assert not torch.equal(of_program, quantize(network, data, "0.25", images=64, seed=1).module()(x))
    assert not torch.equal(of_program, quantize(network, data, "0.25", images=64, ranges="minmax").module()(x))


def test_what_cannot_be_quantized(network, data):
    program = quantize(network, data, "0.25", images=8)
    with pytest.raises(ModelError, match="is quantized already"):
        ExportedNetwork(program)
    with pytest.raises(IntcertError, match="0 calibration images"):
        quantize(network, data, "0.25", images=0)
    with pytest.raises(IntcertError, match="unknown ranges 'all'"):
        quantize(network, data, "0.25", ranges="all")
    with pytest.raises(SigmaError):
        quantize(network, data, "64")
    with pytest.raises(ModelError, match="no integer form"):
        quantize(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Sigmoid()), data, "0.25")
