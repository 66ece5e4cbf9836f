"""Where training runs: what is asked for, what there is, and what is refused."""

import pytest
import torch

from intcert.runtime.errors import WrongDeviceError
from intcert.runtime.session import cpu_flags
from intcert.train.devices import choose_device, has_fast_bf16, limit_threads


@pytest.mark.parametrize(
    ("gpu", "name", "expected"), [(False, "auto", "cpu"), (True, "auto", "cuda"), (True, "cpu", "cpu")]
)
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, gpu, name, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choose_device(name) == torch.device(expected)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WrongDeviceError, match="--device cuda, but torch sees no GPU"):
        choose_device("cuda")


def test_bf16_is_for_cpus_with_amx(monkeypatch):
    assert has_fast_bf16(torch.device("cpu")) == ("amx_bf16" in cpu_flags())
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=supported: answer)
        assert has_fast_bf16(torch.device("cuda")) == supported


def test_threads_are_limited_on_request():
    before = torch.get_num_threads()
    limit_threads(None)
    assert torch.get_num_threads() == before
    limit_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    limit_threads(before)
