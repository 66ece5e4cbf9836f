import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intcert.compile.build import compile_artifact
from intcert.compile.graph import IntegerGraph
from intcert.compile.reference import ReferenceSession
from intcert.runtime import session as session_module
from intcert.runtime.artifact import Artifact, read_artifact, write_artifact
from intcert.runtime.certificate import CertificateParameters, certificate_table
from intcert.runtime.certify import certify, certify_dataset, predict, run_settings
from intcert.runtime.datasets import open_dataset
from intcert.runtime.errors import ArtifactError, WrongDeviceError
from intcert.runtime.ledger import Ledger, equal_ledgers, read_ledger
from intcert.runtime.session import LocalSession, cpu_flags, cpu_name, open_artifact
from intcert.runtime.table_cache import load_table

IMAGE = np.array([100, 70, 85, 90], np.uint8).reshape(2, 2, 1)

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="compiles for x86 with AVX2")


@pytest.fixture(scope="module")
def path(session, tmp_path_factory) -> Path:
    """The network of ``session``, compiled."""
    path = tmp_path_factory.mktemp("artifact") / "brightness.intcert"
    compile_artifact(session.graph, path, target="x86", sigma=session.sigma, n=1000)
    return path


@pytest.fixture(scope="module")
def artifact(path) -> Artifact:
    return read_artifact(path)


@pytest.fixture(scope="module", params=[1, 2, 3])
def compiled(request, artifact):
    with LocalSession(artifact, request.param) as opened:
        assert opened.threads == request.param
        yield opened


def with_manifest(artifact: Artifact, **changes: object) -> Artifact:
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, **changes))


# ---------------------------------------------------------------------------------------------------------------------
# What it computes
# ---------------------------------------------------------------------------------------------------------------------


def test_it_describes_itself_as_the_reference_does(compiled, session):
    for name in ("input_shape", "classes", "sigma", "graph_hash", "noise_hash"):
        assert getattr(compiled, name) == getattr(session, name)
    assert (compiled.target, compiled.device) == ("x86", cpu_name())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pixels=st.lists(st.integers(0, 255), min_size=4, max_size=4),
    key=st.integers(0, 2**64 - 1),
    first=st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1001)),
    n=st.integers(1, 1000),
)
def test_counts_equal_the_reference(compiled, session, pixels, key, first, n):
    x = np.array(pixels, np.uint8).reshape(2, 2, 1)
    rows = compiled.counts(x, key, first, n)
    assert (rows.dtype, rows.shape) == (np.int32, (-(-n // 64), 3))
    np.testing.assert_array_equal(rows, session.counts(x, key, first, n))


@pytest.mark.parametrize("n", [1, 7, 32, 200])
def test_logits_equal_the_reference(compiled, session, n):
    x = np.random.default_rng(n).integers(-1000, 1000, (n, 2, 2, 1)).astype(np.int16)
    logits = compiled.logits(x)
    assert (logits.dtype, logits.shape) == (np.int32, (n, 3))
    np.testing.assert_array_equal(logits, session.logits(x))


def test_arrays_in_any_memory_order(compiled, session):
    images = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (2, 2, 1, 9), np.uint8))
    view = images[::-1, :, :, 4]
    np.testing.assert_array_equal(compiled.counts(view, 1, 0, 100), session.counts(view, 1, 0, 100))
    noisy = np.moveaxis(images, -1, 0).astype(np.int16)[::2]
    np.testing.assert_array_equal(compiled.logits(noisy), session.logits(noisy))


def test_the_input_is_left_alone(compiled):
    x, noisy = IMAGE.copy(), IMAGE[None].astype(np.int16)
    compiled.counts(x, 1, 0, 1000)
    compiled.logits(noisy)
    np.testing.assert_array_equal(x, IMAGE)
    np.testing.assert_array_equal(noisy[0], IMAGE)


def test_layers_step_by_step_are_the_network(compiled, session):
    manifest = compiled.artifact.manifest
    noisy = np.random.default_rng(3).integers(-200, 400, (manifest.chunk, 2, 2, 1)).astype(np.int16)
    arena = np.zeros(manifest.arena_bytes, np.uint8)
    [source] = manifest.layers[0]["operands"]
    arena[source : source + noisy.nbytes] = noisy.view(np.uint8).ravel()
    last = manifest.layers[-1]
    size = 4 * manifest.chunk * last["stride"]
    at_once = compiled.layers(arena, 0, len(manifest.layers))
    for number in range(len(manifest.layers)):
        arena = compiled.layers(arena, number, number + 1)
    for result in (arena, at_once):
        logits = result[last["offset"] : last["offset"] + size].view(np.int32).reshape(manifest.chunk, last["stride"])
        np.testing.assert_array_equal(logits[:, :3], session.logits(noisy))


@pytest.mark.parametrize("rule", ["cp1", "cp2", "kt:0.04"])
def test_certificates_are_those_of_the_reference(compiled, session, rule):
    parameters = CertificateParameters(sigma=session.sigma, dimension=4, n=1000, rule=rule)
    table = load_table(parameters, compiled.artifact.law, compiled.artifact.certificates.values())
    for key in range(5):
        ours, theirs = certify(compiled, IMAGE, key, table), certify(session, IMAGE, key, table)
        assert (ours.predict, ours.sqradius, ours.samples) == (theirs.predict, theirs.sqradius, theirs.samples)
        np.testing.assert_array_equal(ours.counts, theirs.counts)
        assert predict(compiled, IMAGE, key, 500, "0.001") == predict(session, IMAGE, key, 500, "0.001")


def test_the_embedded_table_is_the_one_made_here(artifact):
    parameters = CertificateParameters(sigma=artifact.manifest.sigma, dimension=4, n=1000)
    assert list(artifact.certificates.values()) == [certificate_table(parameters, artifact.law).to_bytes()]


def test_a_run_begun_here_is_finished_on_the_reference(compiled, session, images_file, tmp_path):
    """What makes certificates transferable: one ledger from two devices equals that from one."""
    dataset = open_dataset(f"npz:{images_file}")
    table = certificate_table(CertificateParameters(sigma=session.sigma, dimension=4, n=500), session.law)
    for name, devices in [("one", (session, session)), ("two", (compiled, session))]:
        for device, limit in zip(devices, (6, None), strict=True):
            settings = run_settings(device, dataset, table.parameters)
            with Ledger(tmp_path / name, settings, resume=True, run_key=5) as ledger:
                certify_dataset(device, dataset, table, ledger, limit=limit)
    one, two = read_ledger(tmp_path / "one"), read_ledger(tmp_path / "two")
    assert equal_ledgers(one, two)
    assert [row.target for row in two] == ["x86"] * 6 + ["reference"] * 6


def test_all_cores_by_default(artifact):
    with LocalSession(artifact) as opened:
        assert opened.threads == len(os.sched_getaffinity(0))


def test_two_artifacts_in_one_process(artifact, session, tmp_path):
    """The dynamic loader returns an old library for a path that it knows; each of ours has a path of its own."""
    *others, linear = session.graph.nodes
    brighter = dataclasses.replace(linear, bias=linear.bias + np.array([0, 60, 120], np.int32))
    graph = IntegerGraph((2, 2, 1), "q31", (*others, brighter), session.graph.names)
    compile_artifact(graph, tmp_path / "other.intcert", target="x86", sigma=session.sigma)
    reference = ReferenceSession(graph, session.law)
    with LocalSession(artifact, 1) as first, open_artifact(tmp_path / "other.intcert", 1) as second:
        for _ in range(2):
            np.testing.assert_array_equal(first.counts(IMAGE, 1, 0, 500), session.counts(IMAGE, 1, 0, 500))
            np.testing.assert_array_equal(second.counts(IMAGE, 1, 0, 500), reference.counts(IMAGE, 1, 0, 500))
    assert (reference.counts(IMAGE, 1, 0, 500) != session.counts(IMAGE, 1, 0, 500)).any()


# ---------------------------------------------------------------------------------------------------------------------
# Threads, interruptions, clean-up
# ---------------------------------------------------------------------------------------------------------------------


def test_many_callers_of_one_session(compiled, session):
    jobs = [(key, first, n) for key in range(8) for first, n in [(0, 64), (100, 640), (7, 2000)]]
    with ThreadPoolExecutor(8) as callers:
        results = list(callers.map(lambda job: compiled.counts(IMAGE, *job), jobs * 3))
    for job, rows in zip(jobs * 3, results, strict=True):
        np.testing.assert_array_equal(rows, session.counts(IMAGE, *job))


def test_ctrl_c_during_a_call_spoils_no_later_one(compiled, session):
    expected = session.counts(IMAGE, 2, 0, 500)
    stopped = 0
    for attempt in range(8):
        timer = threading.Timer(0.002 * attempt, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            compiled.counts(IMAGE, 1, 0, 400_000)
            timer.join()
            time.sleep(0.1)  # a signal needs not arrive at once
        except KeyboardInterrupt:
            stopped += 1
        np.testing.assert_array_equal(compiled.counts(IMAGE, 2, 0, 500), expected)
    assert stopped > 0


def test_a_closed_session_does_not_count(artifact):
    opened = LocalSession(artifact, 2)
    opened.close()
    opened.close()
    for call in (
        lambda: opened.counts(IMAGE, 1, 0, 1000),
        lambda: opened.logits(IMAGE[None].astype(np.int16)),
        lambda: opened.layers(np.zeros(artifact.manifest.arena_bytes, np.uint8), 0, 1),
    ):
        with pytest.raises(ValueError, match="the session is closed"):
            call()


def test_loading_leaves_no_file_behind(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(session_module, "_loaded", {})
    with LocalSession(artifact, 1) as opened:
        assert list(tmp_path.iterdir()) == []
        assert opened.counts(IMAGE, 1, 0, 64).sum() == 64


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((IMAGE.astype(np.int16), 1, 0, 64), r"expected an array uint8\[2, 2, 1\], not int16\[2, 2, 1\]"),
        ((IMAGE[..., 0], 1, 0, 64), r"expected an array uint8\[2, 2, 1\], not uint8\[2, 2\]"),
        ((IMAGE.tolist(), 1, 0, 64), r"expected an array uint8\[2, 2, 1\], not list"),
        ((IMAGE, 1, 0, 0), "cannot draw n = 0 samples from number 0"),
        ((IMAGE, 1, 0, -64), "cannot draw n = -64"),
        ((IMAGE, 1, -1, 64), "from number -1"),
        ((IMAGE, 1, 2**63 - 63, 64), "cannot draw n = 64 samples from number 9223372036854775745"),
        ((IMAGE, -1, 0, 64), "key -1 is outside"),
        ((IMAGE, 2**64, 0, 64), "key 18446744073709551616 is outside"),
    ],
)
def test_counts_refuses(compiled, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        compiled.counts(*arguments)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (IMAGE[None], r"expected an array int16\[1, 2, 2, 1\], not uint8\[1, 2, 2, 1\]"),
        (IMAGE.astype(np.int16), r"expected an array int16\[2, 2, 2, 1\], not int16\[2, 2, 1\]"),
        (np.zeros((0, 2, 2, 1), np.int16), "a batch of 0 images"),
        (np.int16(3), "not int16"),
        ([[0]], "not list"),
    ],
)
def test_logits_refuses(compiled, x, reason):
    with pytest.raises(ValueError, match=reason):
        compiled.logits(x)


def test_layers_refuses(compiled):
    size = compiled.artifact.manifest.arena_bytes
    with pytest.raises(ValueError, match="expected an array uint8"):
        compiled.layers(np.zeros(size - 1, np.uint8), 0, 1)
    for begin, end in [(-1, 1), (0, 4), (2, 1)]:
        with pytest.raises(ValueError, match="are not among the 3 of this network"):
            compiled.layers(np.zeros(size, np.uint8), begin, end)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(artifact, threads):
    with pytest.raises(ValueError, match="is not positive"):
        LocalSession(artifact, threads)


@pytest.fixture
def unloadable(artifact) -> Artifact:
    """An artifact whose library may not be touched."""
    members = {**artifact.members, "lib.so": b"no library"}
    return with_manifest(dataclasses.replace(artifact, members=members), members={"lib.so": "0" * 64})


def test_a_wrong_cpu_is_found_before_any_code_is_loaded(unloadable):
    other = with_manifest(unloadable, target="x86-next", target_facts={"cpu_flags": ["avx2", "avx1024", "warp"]})
    with pytest.raises(WrongDeviceError) as caught:
        LocalSession(other)
    assert str(caught.value) == (
        f"{other.path} is for x86-next and needs avx1024, warp, which this machine lacks; "
        "compile the model with --target host"
    )


@pytest.mark.parametrize("content", ["", "processor\t: 0\nflags\t\t: fpu sse2\n\nprocessor\t: 1\nflags\t\t: avx2\n"])
def test_an_older_cpu_than_the_artifacts(artifact, tmp_path, monkeypatch, content):
    (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(session_module, "_CPU_INFO", tmp_path / "cpuinfo")
    with pytest.raises(WrongDeviceError, match="is for x86 and needs avx2, which this machine lacks"):
        LocalSession(artifact)


def test_cpu_information_of_other_machines(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(session_module, "_CPU_INFO", file)
    assert (cpu_flags(), cpu_name()) == (frozenset(), os.uname().machine)
    file.write_text("processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n\n")
    assert (cpu_flags(), cpu_name()) == ({"fp", "asimd", "asimddp"}, os.uname().machine)
    file.write_text("processor\t: 0\nmodel name\t: A CPU: the second\nflags\t\t: avx2 fma\n\n")
    assert (cpu_flags(), cpu_name()) == ({"avx2", "fma"}, "A CPU: the second")


def test_another_tvm_is_refused_before_any_code_is_loaded(unloadable):
    other = with_manifest(unloadable, tvm_version="0.1")
    with pytest.raises(
        ArtifactError, match=r"was built with TVM 0\.1 but this machine has .*; compile the model again"
    ):
        LocalSession(other)


def test_a_library_that_is_none(unloadable):
    with pytest.raises(ArtifactError, match="has a library that does not load") as caught:
        LocalSession(unloadable)
    assert "\n" not in str(caught.value)


def test_a_library_that_is_no_network(artifact, tmp_path):
    """A shared library which TVM opens and in which there is no virtual machine."""
    (tmp_path / "empty.c").write_text("int nothing;\n")
    subprocess.run(["cc", "-shared", "-o", tmp_path / "empty.so", tmp_path / "empty.c"], check=True)
    members = {**artifact.members, "lib.so": (tmp_path / "empty.so").read_bytes()}
    write_artifact(tmp_path / "empty.intcert", artifact.manifest, members)
    with pytest.raises(ArtifactError, match="has a library that does not load") as caught:
        open_artifact(tmp_path / "empty.intcert")
    assert "\n" not in str(caught.value)


def test_open_artifact_checks_the_file(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        open_artifact(tmp_path / "none.intcert")


def test_the_package_alone_loads_neither_tvm_nor_torch():
    program = (
        "import sys, intcert.runtime as runtime\n"
        "[getattr(runtime, name) for name in runtime.__all__]\n"
        "assert set(runtime.__all__) <= set(dir(runtime))\n"
        "print(sorted({'tvm', 'torch'} & sys.modules.keys()))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_opening_an_artifact_needs_no_compiler(path):
    """A board has TVM's runtime alone: no tvm.relax, no torch (which TVM imports wherever it is installed)."""
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from intcert.runtime import open_artifact\n"
        f"with open_artifact({str(path)!r}, 2) as session:\n"
        "    print(session.logits(np.zeros((1, 2, 2, 1), np.int16)).shape)\n"
        "print(sorted({'tvm.relax', 'intcert.compile'} & sys.modules.keys()))\n"
    )
    environment = os.environ | {"TVM_USE_RUNTIME_LIB": "1"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (result.stdout, result.returncode) == ("(1, 3)\n[]\n", 0), result.stderr
