"""What a machine without a GPU, or with the wrong one, is told; nothing here needs one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from intcert.runtime.artifact import Artifact, Manifest, read_artifact, write_artifact
from intcert.runtime.errors import IntcertError, WrongDeviceError
from intcert.runtime.gpu import GpuSession, choose_chunk, require_architecture
from intcert.runtime.session import open_artifact

FACTS = {"kind": "cuda", "cpu_flags": [], "architectures": ["sm_75", "sm_80"]}


@pytest.fixture(scope="module")
def path(session, tmp_path_factory) -> Path:
    """An artifact for a GPU with a library that nobody loads."""
    manifest = Manifest(
        model_hash="0" * 64,
        graph_hash=session.graph.digest,
        noise_hash=session.law.digest,
        target="cuda-sm75,cuda-sm80",
        target_facts=FACTS,
        scheme=session.graph.scheme,
        input_shape=session.graph.input_shape,
        classes=session.graph.classes,
        sigma=session.law.sigma,
        sigma_steps="63.75",
        eta={},
        chunk=1,
        entry_points=("counts", "logits", "layers"),
        tvm_version="0.0",
        arena_bytes=1 << 20,
    )
    path = tmp_path_factory.mktemp("artifact") / "gpu.intcert"
    members = {"lib.so": b"\x7fELF", "graph.bin": session.graph.to_bytes(), "noise.bin": session.law.to_bytes()}
    write_artifact(path, manifest, members)
    return path


@pytest.fixture(scope="module")
def artifact(path: Path) -> Artifact:
    return read_artifact(path)


def has_gpu() -> bool:
    import tvm

    return bool(tvm.cuda(0).exist)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_no_gpu_is_said_in_one_line(path: Path) -> None:
    for device in ("auto", "cuda"):
        with pytest.raises(IntcertError) as caught:
            open_artifact(path, device=device)
        message = str(caught.value)
        assert message.startswith(f"{path} is for cuda-sm75,cuda-sm80")
        assert "driver" in message or "GPU" in message
        assert "\n" not in message


def test_another_device_is_refused(path: Path) -> None:
    with pytest.raises(WrongDeviceError, match="not for cpu; compile the model with --target host"):
        open_artifact(path, device="cpu")


@pytest.mark.parametrize("version", ["7.5", "8.0", "8.6", "8.9"])
def test_code_for_a_lower_capability_of_the_same_generation_runs(artifact: Artifact, version: str) -> None:
    require_architecture(artifact, version, "a GPU")


@pytest.mark.parametrize("version", ["7.0", "9.0", "10.0", "12.0"])
def test_code_for_another_generation_does_not(artifact: Artifact, version: str) -> None:
    with pytest.raises(WrongDeviceError, match="sm_75, sm_80") as caught:
        require_architecture(artifact, version, "Tesla V100")
    assert f"sm_{version.replace('.', '')}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chunks_fill_the_cache_and_fit_the_memory(artifact: Artifact) -> None:
    each = artifact.manifest.arena_bytes  # 1 MiB, and a few bytes of input
    assert choose_chunk(artifact, free=80 << 30, cache=50 << 20) == 256
    assert choose_chunk(artifact, free=80 << 30, cache=1000 * each) == 1024
    assert choose_chunk(artifact, free=250 << 20, cache=1000 * each) == 192
    # The kernels count elements in 32 bits.
    assert choose_chunk(artifact, free=1 << 50, cache=1 << 50) == 2047 // 64 * 64
    for free in (0, 70 << 20):
        with pytest.raises(WrongDeviceError, match="needs 64 MiB on the GPU for 64 samples") as caught:
            choose_chunk(artifact, free, 50 << 20)
        assert f"{free >> 20} MiB are free" in str(caught.value)


@pytest.mark.parametrize("chunk", [0, -64, 100, 2048])
def test_a_chunk_is_a_multiple_of_a_row_that_kernels_can_count(artifact: Artifact, chunk: int) -> None:
    with pytest.raises(ValueError, match=f"chunk = {chunk}"):
        GpuSession(artifact, chunk)


@pytest.mark.parametrize("names", [None, "sm_80", ["sm_80", "../80"], [80]])
def test_a_manifest_whose_architectures_are_none(artifact: Artifact, names: object, tmp_path: Path) -> None:
    manifest = dataclasses.replace(artifact.manifest, target_facts={**FACTS, "architectures": names})
    with pytest.raises(ValueError, match="target_facts"):
        write_artifact(tmp_path / "a", manifest, artifact.members)
