"""GPU targets on the command line of a machine that has none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from intcert.compile import library_cuda
from intcert.runtime.errors import MissingDependencyError


@pytest.fixture(scope="module")
def gpu_artifact(colour_model: Path, tmp_path_factory) -> Path:
    from intcert.compile.build import compile_artifact

    try:
        library_cuda.nvcc()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("gpu") / "colours.intcert"
    compile_artifact(colour_model, path, target="cuda-sm75")
    return path


def test_targets_lists_gpus(intcert) -> None:
    output = intcert("targets").output
    for name in ("cuda-sm75", "cuda-sm80", "cuda-sm86", "cuda-sm89", "cuda-sm90"):
        assert name in output


def test_without_a_gpu_every_command_says_so_in_one_line(refused, gpu_artifact, colour_folder, tmp_path) -> None:
    import tvm

    if tvm.cuda(0).exist:
        pytest.skip("this machine has a GPU")
    data = ("--data", f"folder:{colour_folder}")
    for words in (
        ("predict", gpu_artifact, *data),
        ("predict", gpu_artifact, *data, "--device", "cuda"),
        ("bench", gpu_artifact),
        ("certify", gpu_artifact, *data, "-o", tmp_path / "run.tsv"),
    ):
        refused(*words, saying=(gpu_artifact, "is for cuda-sm75", "; "))
    assert not (tmp_path / "run.tsv").exists()


def test_the_wrong_place_for_an_artifact_is_refused(refused, gpu_artifact, colour_artifact, colour_folder) -> None:
    data = ("--data", f"folder:{colour_folder}")
    refused("predict", gpu_artifact, *data, "--device", "cpu", saying=("for cuda-sm75, not for cpu", "--target host"))
    refused("bench", colour_artifact, "--device", "cuda", saying=("not for cuda", "--target cuda-sm80"))
    boards = ("--rpc-server", "127.0.0.1:1")
    refused("predict", gpu_artifact, *data, *boards, saying=("cuda-sm75", "not on boards"))
    refused("predict", colour_artifact, *data, *boards, "--device", "cpu", saying=("--device cpu is for this machine",))


def test_inspect_and_names(intcert, gpu_artifact) -> None:
    output = intcert("inspect", gpu_artifact).output
    assert "cuda-sm75" in output
    assert "conv2d.mma.m8n8k16" in output


def test_what_needs_a_processor(refused, colour_model, tmp_path) -> None:
    boards = ("--rpc-server", "127.0.0.1:1")
    refused("tune", colour_model, "--target", "cuda-sm80", *boards, saying=("this machine's GPU, not on boards",))
    c = ("compile", colour_model, "--emit", "c-sources", "-o", tmp_path / "c")
    refused(*c, "--target", "cuda-sm80", saying=("runs on a processor", "cuda-sm80"))
    refused("compile", colour_model, "--target", "cuda-sm80,x86", saying=("only GPU targets share a library",))
    assert not (tmp_path / "c").exists()


def test_no_nvcc_is_exit_code_5(intcert, colour_model, tmp_path, monkeypatch) -> None:
    assert shutil.which("no-such-nvcc") is None
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")
    result = intcert("compile", colour_model, "--target", "cuda-sm80", "-o", tmp_path / "m.intcert")
    assert result.exit_code == 5
    assert "no-such-nvcc" in result.stderr
    assert not list(tmp_path.iterdir())
