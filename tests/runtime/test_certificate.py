"""Certificate tables against the same claims computed in high precision alone, and the rules that read them."""

import dataclasses
import functools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from intcert.runtime.certificate import (
    CertificateParameters,
    CertificateTable,
    OneClassTable,
    SequentialTable,
    TwoClassTable,
    certificate_table,
    one_class_claims,
)
from intcert.runtime.confidence import upper_tail
from intcert.runtime.errors import ArtifactError, CertificateError, SigmaError
from intcert.runtime.high_precision import context, normal_quantile, number
from intcert.runtime.noise import noise_law
from intcert.runtime.smoothing import SmoothingBound, smoothing_bound

COHEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "cohen2019" / "resnet110"


def table(rule: str = "cp1", n: int = 100_000, sigma: str = "0.25", dimension: int = 3072, alpha: str = "0.001"):
    return certificate_table(CertificateParameters(sigma, dimension, alpha, 100, n, rule), noise_law(sigma))


def root(grows: Callable[[mpmath.mpf], mpmath.mpf], low: mpmath.mpf, high: mpmath.mpf) -> mpmath.mpf:
    """The zero of a growing function between low and high, to 150 bits."""
    assert grows(high) >= 0
    while high - low > context.mpf(2) ** -150:
        middle = (low + high) / 2
        low, high = (middle, high) if grows(middle) < 0 else (low, middle)
    return (low + high) / 2


@functools.cache
def lower_bound(count: int, n: int, alpha: Fraction) -> mpmath.mpf:
    """The Clopper-Pearson lower bound in high precision alone, where the tables start from float64."""
    if count == n:
        return context.exp(context.log(number(alpha)) / n)
    return root(lambda p: upper_tail(count, n, p) - number(alpha), context.mpf(0), context.mpf(count) / n)


def test_all_answers_equal_at_a_hundred_thousand():
    assert table().m(100_000) == 59_012
    # p = alpha^(1/N), and the radius of the continuous theorem loses 0.03 % at most.
    p = float(lower_bound(100_000, 100_000, Fraction(1, 1000)))
    assert f"{p:.8f}" == "0.99993092"
    assert (255 * 0.25 * (1 - 0.0003) * special.ndtri(p)) ** 2 < 59_013


@pytest.mark.parametrize(("sigma", "dimension"), [("0.25", 3072), ("0.12", 3072), ("1", 150_528), ("4", 784)])
def test_one_class_table_equals_high_precision_alone(sigma, dimension):
    n, alpha = 100_000, Fraction(1, 1000)
    certificate = table(sigma=sigma, dimension=dimension)
    random = np.random.default_rng(7)
    for count in [n, n - 1, *random.integers(50_001, n, 12).tolist(), *random.integers(n - 900, n, 6).tolist()]:
        assert certificate.m(count) == certificate.bound.claim(lower_bound(count, n, alpha)), count


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 60), st.sampled_from(["0.001", "0.05", "0.000001"]), st.sampled_from(["0.1", "0.5", "4"]))
def test_small_one_class_tables_equal_high_precision_alone(n, alpha, sigma):
    certificate = table("cp1", n, sigma, 784, alpha)
    claims = [certificate.m(count) for count in range(1, n + 1)]
    assert claims == [certificate.bound.claim(lower_bound(c, n, Fraction(alpha))) for c in range(1, n + 1)]
    assert certificate.m(0) == -1


def test_close_calls_are_settled_in_high_precision():
    """A noise level chosen so that R^2 lies within 10^-25 of an integer, on either side."""
    n, count, alpha, m = 1000, 990, Fraction(1, 1000), 3000
    z = normal_quantile(lower_bound(count, n, alpha))
    tau = context.sqrt(m) / z
    for offset, expected in ((context.mpf(10) ** -28, m), (-(context.mpf(10) ** -28), m - 1)):
        sigma = Fraction(int(context.ldexp(context.sqrt((tau + offset) ** 2 + 1), 220)), 1 << 220)
        bound = SmoothingBound(sigma, Fraction(1), 1, Fraction(0))
        assert abs(bound.radius(lower_bound(count, n, alpha)) ** 2 - m) < context.mpf(10) ** -25
        claims = one_class_claims(bound, n, alpha)
        assert claims[len(claims) - 1 - (n - count)] == expected


def test_one_class_claims_never_decrease_and_begin_at_the_first_certificate():
    certificate = table()
    claims = certificate.claims
    assert claims.dtype == np.int32
    assert (np.diff(claims) >= 0).all()
    first = 100_000 - len(claims) + 1
    assert certificate.m(first) >= 0
    assert certificate.m(first - 1) == -1
    assert certificate.bound.claim(lower_bound(first - 1, 100_000, Fraction(1, 1000))) == -1


def test_too_few_samples_abstain_always():
    certificate = table(n=9)  # 0.001^(1/9) < 1/2
    assert [certificate.m(count) for count in range(10)] == [-1] * 10
    assert table(n=10).m(10) == 0


@pytest.mark.parametrize("count", [1, 7, 500, 31_000, 50_000, 77_777, 99_999, 100_000])
def test_two_class_quantiles_equal_high_precision_alone(count):
    n, alpha = 100_000, Fraction(1, 2000)
    certificate = table("cp2")
    scale = context.ldexp(certificate.bound.tau, 20)
    eta = number(certificate.bound.eta)
    exact = scale * normal_quantile(lower_bound(count, n, alpha) - eta)
    assert certificate.quantiles[count] == int(context.floor(exact))
    # The upper bound of n - count answers on its own: P[Bin(n, q) <= n - count] = alpha.
    low = context.mpf(n - count) / n
    high = min(low + 4 * context.sqrt(low * (1 - low) / n) + context.mpf(20) / n, 1 - context.mpf(10) ** -12)
    q = root(lambda q: number(alpha) - 1 + upper_tail(n - count + 1, n, q), low, high)
    assert -certificate.quantiles[count] == int(context.ceil(scale * normal_quantile(q + eta)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_two_class_claims_are_sound_and_tight(data):
    n = 1000
    first = data.draw(st.integers(300, n))
    second = data.draw(st.integers(0, n - first))
    certificate = table("cp2", n)
    m = certificate.certify(np.array([n - first - second, second, first]), 2)
    runner_up = max(second, n - first - second)
    alpha = Fraction(1, 2000)
    p = lower_bound(first, n, alpha)
    q = 1 - lower_bound(n - runner_up, n, alpha)
    radius = certificate.bound.two_class_radius(p, q)
    if m < 0:
        assert radius < 1e-4
    else:
        assert m < radius**2
        assert context.sqrt(m + 1) > radius - context.mpf(2) ** -18


def test_two_classes_certify_where_one_cannot():
    counts = np.array([45_000, 20_000, 20_000, 15_000])
    assert table().decide(counts, 100_000, 0) == -1
    assert table("cp2").decide(counts, 100_000, 0) > 400
    assert table("cp2").decide(counts, 100_000, 1) == -1


def test_two_class_rule_abstains_beyond_its_bound_on_the_middle():
    n = 100_000
    certificate = table("cp2", n, alpha="0.4")
    counts = np.zeros(n, dtype=np.int64)
    counts[:3] = 5, 0, 0
    gap = int(certificate.quantiles[5]) + int(certificate.quantiles[n]) - 2 * certificate.loss
    assert gap > 0  # a - b - 2 u: a certificate, were u known for |M| > 4
    assert certificate.certify(counts, 0) == -1


def test_two_class_rule_with_a_single_class():
    assert table("cp2", 1000).certify(np.array([1000]), 0) == table("cp2", 1000).certify(np.array([1000, 0]), 0) > 0


@pytest.mark.parametrize("rule", ["cp1", "cp2"])
@pytest.mark.parametrize("n", [100, 128, 1000])
def test_fixed_rules_decide_after_the_last_sample_only(rule, n):
    certificate = table(rule, n)
    for samples in range(64, n, 64):
        assert certificate.decide(np.array([0, samples, 0]), samples, 1) is None
    assert certificate.decide(np.array([0, n, 0]), n, 1) >= 0
    assert certificate.decide(np.array([0, n, 0]), n, 0) == -1


def test_sequential_rule_stops_at_check_points_only():
    certificate = table("kt:0.25", 10_000)
    assert isinstance(certificate, SequentialTable)
    assert certificate.claim == 4064
    assert certificate.check_points.tolist()[:5] == [64, 128, 256, 512, 768]
    assert certificate.check_points[-1] == 10_000
    decisions = {}
    for samples in [*range(64, 10_000, 64), 10_000]:
        up, down = np.array([samples, 0]), np.array([0, samples])
        decisions[samples] = certificate.decide(up, samples, 0), certificate.decide(down, samples, 0)
    for samples, (certified, given_up) in decisions.items():
        looked = samples in certificate.check_points
        assert certified == (4064 if looked else None)
        assert given_up == (-1 if looked else None)


def test_sequential_rule_goes_on_while_undecided_and_abstains_at_the_end():
    certificate = table("kt:0.25", 10_000)
    p0 = float(certificate.bound.threshold(4064))
    for k in certificate.check_points.tolist():
        count = round(p0 * k)
        decision = certificate.decide(np.array([count, k - count]), k, 0)
        assert decision == (-1 if k == 10_000 else None)


def test_sequential_thresholds_belong_to_the_radius():
    certificate = table("kt:0.5", 4096)
    p0 = certificate.bound.threshold(16_256)
    for k, up, down in zip(certificate.check_points, certificate.accept, certificate.reject, strict=True):
        assert down < p0 * int(k) <= up <= k + 1


def test_sequential_rule_needs_far_fewer_samples_than_the_fixed_one():
    certificate = table("kt:0.5")
    share = 0.999
    used = next(
        int(k)
        for k, up in zip(certificate.check_points, certificate.accept, strict=True)
        if round(share * int(k)) >= up
    )
    assert used < 1000


@pytest.mark.parametrize("rule", ["kt:0.9", "kt:4"])
def test_radius_that_no_count_can_reach_is_refused(rule):
    with pytest.raises(CertificateError, match=r"certifies nothing with n = 1000.*larger n or a smaller radius"):
        table(rule, 1000)


@pytest.mark.parametrize("rule", ["cp1", "cp2", "kt:0.5"])
def test_lost_samples_are_an_error(rule):
    certificate = table(rule, 1000)
    with pytest.raises(CertificateError, match="63 counts for 64 of 1000 samples"):
        certificate.decide(np.array([60, 3]), 64, 0)
    with pytest.raises(CertificateError, match="1064 counts for 1064 of 1000 samples"):
        certificate.decide(np.array([1064, 0]), 1064, 0)


@pytest.mark.parametrize(
    ("rule", "kind"), [("cp1", OneClassTable), ("cp2", TwoClassTable), ("kt:0.50", SequentialTable)]
)
def test_round_trip(rule, kind):
    certificate = table(rule, 1000)
    again = CertificateTable.from_bytes(certificate.to_bytes())
    assert type(again) is type(certificate) is kind
    assert again.digest == certificate.digest
    for field in dataclasses.fields(kind):
        assert np.array_equal(getattr(again, field.name), getattr(certificate, field.name))
    counts = np.array([1000, 0])
    assert again.decide(counts, 1000, 0) == certificate.decide(counts, 1000, 0) >= 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data.replace(b'"format":1', b'"format":2'),
        lambda data: data.replace(b'"rule":"cp1"', b'"rule":"cp2"'),
        lambda data: data.replace(b'"alpha":"0.001"', b'"alpha":"2"'),
        lambda data: data.replace(b'"sigma":"0.25"', b'"sigma":"25"'),
        lambda data: data.replace(b'"eta":', b'"Eta":'),
        lambda data: data.replace(b'"width":"34/25"', b'"width":"34/0"'),
    ],
)
def test_damaged_bytes_are_an_artifact_error(damage):
    data = table(n=1000).to_bytes()
    broken = damage(data)
    assert broken != data
    with pytest.raises(ArtifactError, match="damaged certificate table"):
        CertificateTable.from_bytes(broken)


def test_digest_covers_every_parameter():
    base = CertificateParameters("0.25", 3072, "0.001", 100, 500, "cp1")
    changes = [{}, {"dimension": 3073}, {"alpha": "0.01"}, {"n0": 99}, {"n": 501}, {"rule": "cp2"}, {"rule": "kt:0.1"}]
    parameters = [dataclasses.replace(base, **change) for change in changes]
    digests = [certificate_table(p, noise_law(p.sigma)).digest for p in parameters]
    digests.append(table(n=500, sigma="0.26").digest)
    assert len(set(digests)) == len(changes) + 1


def test_spellings_of_the_same_parameters_are_equal():
    assert CertificateParameters(".250", 3072, "0.0010", rule="kt:0.50") == CertificateParameters(
        "0.25", 3072, "0.001", rule="kt:0.5"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "an image of 0 coordinates"),
        ({"alpha": "0"}, "alpha '0' is not a plain decimal between 0 and 0.5"),
        ({"alpha": "0.5"}, "alpha '0.5'"),
        ({"alpha": "1e-3"}, "alpha '1e-3'"),
        ({"n0": 0}, "n0 = 0 selection samples"),
        ({"n": 0}, "n = 0 estimation samples"),
        ({"n": 10_000_001}, "outside 1..10000000"),
        ({"rule": "cp3"}, "rule 'cp3' is unknown"),
        ({"rule": "kt"}, "rule 'kt' is unknown"),
        ({"rule": "kt:"}, "rule 'kt:' is unknown"),
        ({"rule": "kt:-1"}, "rule 'kt:-1' is unknown"),
        ({"rule": "cp1:0.5"}, "rule 'cp1:0.5' is unknown"),
    ],
)
def test_nonsense_parameters_are_refused(change, message):
    with pytest.raises(CertificateError) as error:
        CertificateParameters(**({"sigma": "0.25", "dimension": 3072} | change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sigma_on_the_pixel_scale_is_refused():
    with pytest.raises(SigmaError, match=r"63\.75 / 255 = 0\.25"):
        CertificateParameters("63.75", 3072)


def test_sigma_too_small_for_the_dimension_is_refused():
    with pytest.raises(SigmaError, match="too little to certify images of 3072 coordinates"):
        table(sigma="0.005")


def test_noise_of_another_sigma_is_refused():
    with pytest.raises(CertificateError, match=r"noise of sigma 0\.5 cannot certify at sigma 0\.25"):
        certificate_table(CertificateParameters("0.25", 3072), noise_law("0.5"))


def test_tables_are_made_once():
    assert table(n=777) is table(n=777)


def test_bound_of_a_table_is_the_law_s():
    assert table(n=1000).bound == smoothing_bound(noise_law("0.25"), 3072)


@pytest.mark.parametrize(
    ("log", "sigma", "alpha"),
    [
        ("noise_0.25/test/sigma_0.25", 0.25, 0.01),
        ("noise_0.50/test/sigma_0.50", 0.5, 0.01),
        ("noise_0.12/test/sigma_0.12", 0.12, 0.001),
    ],
)
def test_ceiling_of_the_published_logs(log, sigma, alpha):
    """The largest radius that N = 100,000 samples can give, at the three digits those logs print."""
    if not COHEN.is_dir():
        pytest.skip(f"the logs of Cohen et al. are not at {COHEN}")
    rows = [line.split("\t") for line in (COHEN / log).read_text().splitlines()]
    radii = [row[rows[0].index("radius")] for row in rows[1:]]
    largest = max(radii, key=float)
    assert f"{sigma * special.ndtri(alpha ** (1 / 100_000)):.3}" == largest
