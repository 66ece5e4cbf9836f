"""Targets are data; the lookup is exact, and decides the host from its CPU flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from intcert import targets
from intcert.targets import TARGETS, UnknownTargetError, find, host

CASCADE_LAKE = {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_every_target_is_consistent(target: targets.Target) -> None:
    assert find(target.name) is target
    assert target.dot.lanes * 32 in (256, 512)
    assert target.dot.depth in (2, 4)
    assert target.cpu_flags
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.name = "other"


def test_names_are_unique() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)


@pytest.mark.parametrize(("wrong", "near"), [("x86-vnn", "x86-vnni"), ("amx", "x86-amx"), ("zzz", "x86")])
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


def test_cpu_flags_are_those_of_the_kernel() -> None:
    assert targets.cpu_flags() == frozenset(
        next(
            (
                line.split(":", 1)[1]
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("flags")
            ),
            "",
        ).split()
    )
