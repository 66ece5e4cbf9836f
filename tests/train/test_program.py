"""Programs on disk: written whole, with their metadata, the same bytes for the same weights; what else is refused."""

import json
import zipfile

import pytest
import torch

from intcert.compile.quantizer import convert, prepare_qat
from intcert.runtime.errors import ModelError
from intcert.train.models import MODELS
from intcert.train.program import (
    export_float,
    image_shape,
    is_quantized,
    load_program,
    read_weights,
    save_program,
)


@pytest.fixture(scope="module")
def program():
    """A LeNet whose observers have seen one batch."""
    torch.manual_seed(0)
    batch = torch.rand(4, 1, 28, 28)
    prepared = prepare_qat(MODELS["lenet"](), batch)
    prepared(batch)
    return convert(prepared, batch)


@pytest.fixture(scope="module")
def float_program():
    torch.manual_seed(0)
    return export_float(MODELS["lenet"](), torch.zeros(2, 1, 28, 28))


def test_saved_program_gives_the_same_logits_and_carries_its_metadata(program, tmp_path):
    path = tmp_path / "m.pt2"
    metadata = {"sigma": "0.25", "class_names": ["a", "b"]}
    x = torch.rand(5, 1, 28, 28)
    expected = program.module()(x)
    save_program(program, path, metadata)
    loaded, found = load_program(path)
    assert found == metadata
    network = loaded.module()
    assert torch.equal(network(x), expected)
    assert all(value.is_contiguous() for value in loaded.state_dict.values())
    assert network(x[:1]).shape == (1, 10)
    assert list(tmp_path.iterdir()) == [path]


def test_saving_twice_gives_the_same_bytes(program, tmp_path):
    for name in ("one.pt2", "two.pt2"):
        save_program(program, tmp_path / name, {"sigma": "0.25"})
    assert (tmp_path / "one.pt2").read_bytes() == (tmp_path / "two.pt2").read_bytes()


def test_failed_save_leaves_nothing(program, tmp_path):
    (tmp_path / "m.pt2").mkdir()
    with pytest.raises(OSError, match=r"m\.pt2"):
        save_program(program, tmp_path / "m.pt2", {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pt2"]


def test_float_and_quantized_programs_are_told_apart(program, float_program):
    assert is_quantized(program)
    assert not is_quantized(float_program)


def test_float_program_is_the_network_in_eval_mode(float_program):
    torch.manual_seed(0)
    network = MODELS["lenet"]().eval()
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(float_program.module()(x), network(x))
    assert image_shape(float_program) == (28, 28, 1)


def test_programs_of_something_else_are_refused():
    class Sum(torch.nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(ModelError, match="does not take one batch of images"):
        image_shape(torch.export.export(Sum(), (torch.zeros(2, 3), torch.zeros(2, 3))))


def test_files_that_are_no_programs_are_refused(float_program, tmp_path):
    with pytest.raises(ModelError, match=r"cannot read the program '.*missing\.pt2'"):
        load_program(tmp_path / "missing.pt2")
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ModelError, match=r"cannot read the program '.*text\.pt2'"):
        load_program(tmp_path / "text.pt2")
    torch.export.save(float_program, tmp_path / "m.pt2", extra_files={"intcert.json": "{torn"})
    with pytest.raises(ModelError, match=r"m\.pt2' holds a damaged intcert\.json"):
        load_program(tmp_path / "m.pt2")


def test_a_program_without_metadata_has_none(float_program, tmp_path):
    torch.export.save(float_program, tmp_path / "m.pt2")
    assert zipfile.is_zipfile(tmp_path / "m.pt2")
    assert load_program(tmp_path / "m.pt2")[1] == {}


def test_state_dicts_bare_or_wrapped(tmp_path):
    state = MODELS["lenet"]().state_dict()
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    for name in ("bare.pt", "wrapped.pt"):
        assert read_weights(tmp_path / name).keys() == state.keys()


@pytest.mark.parametrize("content", [b"torn", json.dumps({}).encode()])
def test_files_without_a_state_dict_are_refused(content, tmp_path):
    (tmp_path / "w.th").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot read a state dict from '.*w\.th'"):
        read_weights(tmp_path / "w.th")


def test_checkpoints_of_something_else_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.th")
    with pytest.raises(ModelError, match="cannot read a state dict"):
        read_weights(tmp_path / "w.th")
    torch.save([1, 2], tmp_path / "w.th")
    with pytest.raises(ModelError, match="cannot read a state dict"):
        read_weights(tmp_path / "w.th")
