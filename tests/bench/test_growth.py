"""Every point is measured where it says, and the picture has a panel for each axis."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from growth import main, measure, median_seconds, plot

from intcert import targets
from intcert.compile.build import load_model
from intcert.runtime import open_artifact

pytestmark = pytest.mark.skipif(not targets.runnable(), reason="compiles for x86 with AVX2")


def test_each_axis_grows_alone(colour_program, tmp_path):
    sides = []

    def graph_of(side):
        sides.append(side)
        return load_model(colour_program).graph

    axes = {"samples": (1, 70), "chunk": (1, 2), "side": (32, 64), "threads": (1, 2)}
    points = list(measure(graph_of, "host", axes, 64, 1))
    assert [(point.axis, point.value) for point in points] == [(axis, n) for axis, ns in axes.items() for n in ns]
    assert [point.samples for point in points] == [1, 70, 64, 64, 64, 16, 64, 64]
    # One compilation for each side and chunk.
    assert sides == [32, 32, 32, 64]
    chunks = [point.arena_bytes for point in points if point.axis == "chunk"]
    assert chunks[0] < chunks[1]
    assert all(point.seconds > 0 for point in points)
    pytest.importorskip("matplotlib")
    plot(points, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


def test_a_thousand_times_the_samples_take_longer(colour_artifact):
    with open_artifact(colour_artifact, threads=1) as session:
        assert median_seconds(session, 64_000, 3) > 10 * median_seconds(session, 64, 3)


def test_a_picture_that_cannot_be_written_is_refused(tmp_path):
    result = CliRunner().invoke(main, ["--plot", str(tmp_path / "nowhere" / "growth.png")])
    assert result.exit_code == 4
    assert "there is no folder" in result.output
