"""Targets are data; the lookup is exact, and decides the host from its CPU flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from intcert import targets
from intcert.targets import GPU_TARGETS, TARGETS, UnknownTargetError, find, host

CASCADE_LAKE = {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_every_target_is_consistent(target: targets.Target) -> None:
    assert find(target.name) is target
    assert target.dot.lanes * 32 in (128, 256, 512)
    assert target.dot.depth in (2, 4)
    assert target.cpu_flags
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.name = "other"


@pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda t: t.name)
def test_every_gpu_target_is_consistent(target: targets.CudaTarget) -> None:
    assert find(target.name) is target
    assert target.name.removeprefix("cuda-sm") == "".join(map(str, target.capability))
    assert [name.removeprefix("sm_") for name in target.architectures] == [target.name.removeprefix("cuda-sm")]
    assert target.mma.shape == f"m{target.mma.m}n{target.mma.n}k{target.mma.k}"
    assert 32 % target.mma.k == 16 % target.mma.m == target.mma.n % 8 == 0
    assert target.stages >= 2


def test_gpu_targets_join() -> None:
    joined = find("cuda-sm90, cuda-sm75,cuda-sm90")
    assert joined.name == "cuda-sm75,cuda-sm90"
    assert joined.architectures == ("sm_75", "sm_90")
    assert (joined.capability, joined.mma, joined.async_copy) == ((7, 5), find("cuda-sm75").mma, False)
    with pytest.raises(UnknownTargetError, match="x86-amx"):
        find("cuda-sm80,x86-amx")
    with pytest.raises(UnknownTargetError, match="cuda-sm80"):
        find("cuda-sm80,cuda-sm8O")


def test_names_are_unique() -> None:
    names = [name for target in TARGETS for name in (target.name, *target.tags)]
    names += [target.name for target in GPU_TARGETS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("x86-vnn", "x86-vnni"),
        ("amx", "x86-amx"),
        ("zzz", "x86"),
        ("cortex-a72", "arm-a72"),
        ("a55", "arm-a55"),
        ("raspberry-pi/4b", "raspberry-pi/4b-aarch64"),
    ],
)
def test_unknown_names_suggest_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UnknownTargetError, match=near) as caught:
        find(wrong)
    assert wrong in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2"}, "x86"),
        (CASCADE_LAKE, "x86-vnni"),
        (CASCADE_LAKE | {"amx_tile", "amx_int8"}, "x86-vnni"),
        (CASCADE_LAKE | {"avx512vbmi", "amx_tile", "amx_int8"}, "x86-amx"),
        ({"half", "thumb", "neon", "vfpv4"}, "arm-a15"),
        ({"fp", "asimd", "crc32"}, "arm-a72"),
        ({"fp", "asimd", "asimddp"}, "arm-a78"),
    ],
)
def test_host_is_the_strongest_that_fits(monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: str) -> None:
    monkeypatch.setattr(targets, "cpu_flags", lambda: frozenset(flags))
    assert host().name == expected
    assert find("host").name == expected


def test_a_machine_that_fits_nothing_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "cpu_flags", lambda: frozenset({"sse2"}))
    with pytest.raises(UnknownTargetError, match="--target"):
        host()


@pytest.mark.parametrize("name", ["flags", "Features"])
def test_cpu_flags_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """x86 and ARM call the line differently; each processor has one, and the first is taken."""
    text = f"processor\t: 0\n{name}\t: fp asimd\nCPU part\t: 0xd08\n\nprocessor\t: 1\n{name}\t: fp\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text if path == Path("/proc/cpuinfo") else "")
    assert targets.cpu_flags() == {"fp", "asimd"}


def test_a_system_that_reports_no_cpu_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert targets.cpu_flags() == frozenset()


def test_tags_are_those_of_tvm() -> None:
    """Each names a machine that TVM knows too, of the same width."""
    from tvm.target.tag import list_tags

    known = list_tags()
    tags = {tag: target for target in TARGETS for tag in target.tags}
    assert tags
    for tag, target in tags.items():
        assert find(tag) is target
        triple = known[tag].attrs.get("mtriple", "x86_64-linux-gnu")
        assert triple.startswith("arm") == target.triple.startswith("arm"), tag
