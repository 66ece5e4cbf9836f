"""The rivals under the Session protocol: counts that depend on nothing but key and samples, and Cohen's certificate."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from intcert.runtime.certificate import CertificateParameters
from intcert.runtime.certify import certify
from intcert.runtime.errors import CertificateError, ModelError, SigmaError
from intcert.train.calibrate import quantize
from intcert.train.data import ImageSet
from intcert.train.models import MODELS
from intcert.train.program import export_float, save_program
from intcert.train.session import TorchSession, cohen_table

SHAPE = (28, 28, 1)
KEY = 0xFEDC_BA98_7654_3210


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A LeNet of random weights in the form of either rival, which the noise drives from class to class."""
    folder = tmp_path_factory.mktemp("programs")
    torch.manual_seed(0)
    network = MODELS["lenet"]()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            rows = parameter.reshape(len(parameter), -1)
            rows -= rows if name.endswith("bias") else rows.mean(1, keepdim=True)
    data = ImageSet(torch.randint(256, (64, *SHAPE), dtype=torch.uint8), torch.zeros(64, dtype=torch.int64), ())
    metadata = {"sigma": "0.25", "class_names": list("0123456789")}
    quantized = quantize(network, data, "0.25", images=64)
    program = export_float(network, torch.zeros(2, 1, 28, 28))
    for method, made in (("float", program), ("floatrs-quant", quantized), ("intrs", quantized)):
        save_program(made, folder / f"{method}.pt2", metadata | {"recipe": method})
    save_program(program, folder / "unsaid.pt2", {"recipe": "float"})
    save_program(program, folder / "foreign.pt2", {})
    return folder


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(256, size=SHAPE, dtype=np.uint8)


@pytest.fixture(params=["float", "floatrs-quant"])
def session(request, programs):
    with TorchSession(programs / f"{request.param}.pt2", threads=1) as opened:
        yield opened


def test_a_session_says_what_it_computes(session, programs):
    assert session.input_shape == SHAPE
    assert session.classes == 10
    assert session.sigma == "0.25"
    assert session.class_names == tuple("0123456789")
    content = (programs / f"{session.method}.pt2").read_bytes()
    assert session.graph_hash == hashlib.sha256(content).hexdigest()
    assert len(session.noise_hash) == 64
    assert session.method in session.target
    assert session.device


def test_counts_are_rows_of_64_and_depend_on_samples_alone(session, image):
    whole = session.counts(image, KEY, 0, 200)
    assert whole.shape == (4, 10)
    assert whole.dtype == np.int32
    assert whole.sum(axis=1).tolist() == [64, 64, 64, 8]
    pieces = [session.counts(image, KEY, first, size).sum(axis=0) for first, size in ((0, 30), (30, 130), (160, 40))]
    assert np.array_equal(sum(pieces), whole.sum(axis=0))
    shifted = session.counts(image, KEY, 100, 100)
    assert shifted.sum(axis=1).tolist() == [64, 36]
    assert np.array_equal(session.counts(image, KEY, 0, 100).sum(axis=0) + shifted.sum(axis=0), whole.sum(axis=0))
    assert not np.array_equal(session.counts(image, KEY + 1, 0, 200), whole)
    assert not np.array_equal(session.counts(255 - image, KEY, 0, 200), whole)


def test_counts_do_not_depend_on_threads(session, programs, image):
    with TorchSession(programs / f"{session.method}.pt2", threads=3) as other:
        assert np.array_equal(other.counts(image, KEY, 10, 500), session.counts(image, KEY, 10, 500))


def test_counts_are_the_argmax_of_pixels_plus_normal_noise(session, image):
    """Sample by sample from the definition: one Philox counter range for each 64 samples."""
    generator = np.random.Generator(np.random.Philox(key=KEY, counter=3 << 128))
    noise = generator.standard_normal((64, *SHAPE), np.float32)
    answers = session.logits(image.astype(np.float32) / 255 + np.float32(0.25) * noise).argmax(-1)
    expected = np.bincount(answers, minlength=10)
    assert session.counts(image, KEY, 192, 64)[0].tolist() == expected.tolist()


def test_the_noise_is_normal_of_the_given_sigma(programs, image):
    seen = []
    with TorchSession(programs / "float.pt2", sigma="0.5", threads=1) as session:
        session.logits = lambda x: seen.append(x.copy()) or np.zeros((len(x), 10), np.float32)
        session.counts(image, KEY, 0, 640)
    noise = (np.concatenate(seen) - image.astype(np.float32) / 255).ravel()
    assert stats.kstest(noise[::7] / 0.5, "norm").pvalue > 1e-4


def test_sigma_may_differ_from_the_training(programs):
    with TorchSession(programs / "float.pt2") as one, TorchSession(programs / "float.pt2", sigma=".50") as two:
        assert (one.sigma, two.sigma) == ("0.25", "0.5")
        assert one.noise_hash != two.noise_hash
        assert one.graph_hash == two.graph_hash


def test_programs_that_are_no_rivals_are_refused(programs):
    with pytest.raises(ModelError, match=r"intrs\.pt2' is no rival's program \(recipe 'intrs'\): `intcert compile`"):
        TorchSession(programs / "intrs.pt2")
    with pytest.raises(ModelError, match=r"foreign\.pt2' is no rival's program \(recipe None\)"):
        TorchSession(programs / "foreign.pt2")
    with pytest.raises(ModelError, match="cannot read the program"):
        TorchSession(programs / "missing.pt2")
    with pytest.raises(SigmaError, match="does not carry its sigma"):
        TorchSession(programs / "unsaid.pt2")
    with pytest.raises(SigmaError, match="if 64 was meant in pixel steps"):
        TorchSession(programs / "float.pt2", sigma="64")


def test_calls_that_make_no_sense(session, image):
    for x, key, first, n in (
        (image.astype(np.int16), KEY, 0, 1),
        (image[:-1], KEY, 0, 1),
        (image, -1, 0, 1),
        (image, 1 << 64, 0, 1),
        (image, KEY, -1, 1),
        (image, KEY, 0, 0),
    ):
        with pytest.raises(ValueError, match=r"expected an array|outside 0|cannot draw"):
            session.counts(x, key, first, n)


def test_threads_must_be_positive(programs):
    with pytest.raises(ValueError, match="threads = 0"):
        TorchSession(programs / "float.pt2", threads=0)


def test_algorithm_1_runs_on_a_rival(session, image):
    parameters = CertificateParameters("0.25", math.prod(SHAPE), n0=64, n=300)
    certificate = certify(session, image, KEY, cohen_table(parameters))
    assert certificate.samples == 300
    assert certificate.counts.tolist() == session.counts(image, KEY, 64, 300).sum(axis=0).tolist()


# Cohen's certificate


@pytest.mark.parametrize(
    ("sigma", "n", "alpha"), [("0.25", 100_000, "0.001"), ("0.12", 1000, "0.001"), ("1", 500, "0.01")]
)
def test_claims_are_the_published_formula_in_squared_pixel_steps(sigma, n, alpha):
    """R = sigma Phi^-1(p) with p as in Cohen et al.'s code: proportion_confint(count, n, 2 alpha, "beta")[0]."""
    table = cohen_table(CertificateParameters(sigma, 3072, alpha, n=n))
    rng = np.random.default_rng(0)
    for count in (n, n - 1, n // 2, *rng.integers(n // 2, n, 50).tolist()):
        p = stats.beta.ppf(float(alpha), count, n - count + 1)
        radius = 255 * float(sigma) * stats.norm.ppf(p)
        if p <= 0.5:
            assert table.m(count) == -1
        elif abs(radius**2 - round(radius**2)) > 1e-6:
            assert table.m(count) == math.ceil(radius**2) - 1


def test_the_claim_equals_the_ceiling_of_cohens_logs():
    """The largest radius of a run of theirs: all of 100,000 samples in one class."""
    table = cohen_table(CertificateParameters("0.25", 3072, "0.001", n=100_000))
    radius = 0.25 * stats.norm.ppf(0.001 ** (1 / 100_000))
    assert table.m(100_000) == math.ceil((255 * radius) ** 2) - 1


def test_other_rules_are_not_cohens():
    for rule in ("cp2", "kt:0.25"):
        with pytest.raises(CertificateError, match=f"rule {rule} is not for rivals"):
            cohen_table(CertificateParameters("0.25", 3072, n=1000, rule=rule))


def test_the_importer_reads_the_same_metadata(programs):
    from intcert.compile.frontend import read_metadata

    assert read_metadata(programs / "float.pt2") == json.loads(
        '{"sigma": "0.25", "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], "recipe": "float"}'
    )
