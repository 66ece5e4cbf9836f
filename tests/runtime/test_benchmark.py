"""What intcert bench measures: percentiles, layers that cover the network, memory, and sessions without layers."""

import itertools

import pytest

from intcert.compile.build import compile_artifact
from intcert.runtime.benchmark import benchmark, machine_facts, peak_memory, percentile
from intcert.runtime.session import cpu_flags, open_artifact


@pytest.fixture(scope="module")
def compiled(session, tmp_path_factory):
    """The network of ``session`` on this machine's processor."""
    if "avx2" not in cpu_flags():
        pytest.skip("compiles for x86 with AVX2")
    path = tmp_path_factory.mktemp("artifact") / "brightness.intcert"
    compile_artifact(session.graph, path, target="x86", sigma=session.sigma)
    with open_artifact(path, threads=2) as opened:
        yield opened


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 15), (5, 15), (30, 20), (40, 20), (50, 35), (90, 50), (99, 50), (100, 50)]
)
def test_percentiles_are_nearest_ranks(percent, expected):
    """The example of the nearest-rank method in Wikipedia's article on percentiles, in any order."""
    for values in itertools.permutations([15, 20, 35, 40, 50]):
        assert percentile(values, percent) == expected


def test_a_percentile_of_one_value_is_that_value():
    assert [percentile([2.5], percent) for percent in (1, 50, 99)] == [2.5] * 3


def test_every_layer_is_timed(compiled):
    steps = []
    found = benchmark(compiled, 130, 4, lambda done, total: steps.append((done, total)))
    layers = compiled.artifact.manifest.layers
    assert steps == [(done, 2 * 4 + len(layers)) for done in range(1, 2 * 4 + len(layers) + 1)]
    assert [layer.name for layer in found.layers] == [layer["name"] for layer in layers]
    assert [layer.kernel + "." * bool(layer.instruction) + layer.instruction for layer in found.layers] == [
        layer["kernel"] for layer in layers
    ]
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert found.network_images == 130
    assert (found.threads, found.target) == (compiled.threads, compiled.target)


def test_a_session_that_cannot_time_layers_is_measured_without(session):
    found = benchmark(session, 3, 2)
    assert found.layers == ()
    assert found.threads is None
    assert found.images_per_second == pytest.approx(2 * 3 / sum(found.counts), rel=1e-6)
    assert found.to_json()["latency"].keys() == {"p50", "p90", "p95", "p99"}


def test_nothing_cannot_be_measured(session):
    for n, rounds in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="cannot measure"):
            benchmark(session, n, rounds)


def test_layers_are_timed_where_they_are(compiled):
    times = compiled.layer_seconds(0, 2, 5)
    assert len(times) == 5
    assert min(times) > 0
    with pytest.raises(ValueError, match="are not among the 3"):
        compiled.layer_seconds(0, 4, 1)


def test_peak_memory_never_falls():
    before = peak_memory()
    block = bytearray(b"x" * (64 << 20))
    during = peak_memory()
    del block
    assert before < during <= peak_memory()


def test_a_package_that_is_not_there_has_no_version():
    found = machine_facts(["numpy", "no-such-package"])["versions"]
    assert found.keys() == {"numpy"}
