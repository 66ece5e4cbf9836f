"""Certificates as integer tables: class counts in, proven squared radius out.

A table is made once from the certification parameters and the noise law; from then on certifying takes integer
comparisons only, so a board decides exactly as the fastest machine does. docs/certificate.md has the theorem and the
three stopping rules: ``cp1`` (Algorithm 1 of Cohen et al., ICML 2019, CERTIFY), ``cp2`` (runner-up class bounded too)
and ``kt:R`` (sequential, for one radius R).

A claim is an integer m: the class holds at x + delta for every integer delta, in pixel steps, with |delta|^2 <= m.
m = 0 certifies the class at x alone; -1 is an abstention.
"""

import dataclasses
import functools
import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from scipy import special

from intcert.runtime import packing
from intcert.runtime.confidence import RELATIVE_ERROR, lower_bound_exceeds, lower_bounds, parse_alpha
from intcert.runtime.decimals import canonical_decimal, parse_decimal
from intcert.runtime.errors import ArtifactError, CertificateError, SigmaError
from intcert.runtime.high_precision import context, normal_cdf, number
from intcert.runtime.noise import PIXEL_STEPS, NoiseLaw, parse_sigma
from intcert.runtime.sequential import accept_thresholds, check_points, reject_thresholds
from intcert.runtime.smoothing import ABSTAIN, SmoothingBound, smoothing_bound, squared_steps

MAX_SAMPLES = 10_000_000
FUTILITY = Fraction(1, 100)

_FORMAT = 1
_QUANTILE_BITS = 20  # cp2 stores normal quantiles in units of 2^-20 / tau
_QUANTILE_RANGE = 8  # and limits them to +-8: no table reaches a certificate beyond |M| = 4
_MIDDLE_LIMIT = 4


@dataclass(frozen=True)
class CertificateParameters:
    """What a certification run fixes before it sees an image; every field enters the table's hash.

    Attributes:
        sigma: noise level on the [0, 1] scale, exact decimal.
        dimension: coordinates of an image, H W C.
        alpha: probability that a certificate is wrong, exact decimal.
        n0: selection samples; they choose the class and count for nothing else.
        n: estimation samples, at most.
        rule: ``cp1``, ``cp2`` or ``kt:R`` with R an exact decimal on the [0, 1] scale.

    Decimals are brought to canonical form (``0.250`` becomes ``0.25``).

    Raises:
        SigmaError: as ``parse_sigma``.
        CertificateError: any other field defines no valid test.
    """

    sigma: str
    dimension: int
    alpha: str = "0.001"
    n0: int = 100
    n: int = 100_000
    rule: str = "cp1"

    def __post_init__(self) -> None:
        parse_sigma(self.sigma)
        parse_alpha(self.alpha)
        if self.dimension < 1:
            raise CertificateError(f"an image of {self.dimension} coordinates cannot be certified; give at least 1")
        if self.n0 < 1:
            raise CertificateError(f"n0 = {self.n0} selection samples cannot choose a class; give at least 1")
        if not 1 <= self.n <= MAX_SAMPLES:
            raise CertificateError(f"n = {self.n} estimation samples is outside 1..{MAX_SAMPLES}; give n in that range")
        radius = self._kt_radius()
        if radius is None and self.rule not in ("cp1", "cp2"):
            raise CertificateError(f"rule {self.rule!r} is unknown; give cp1, cp2 or kt:R with a radius R like kt:0.5")
        object.__setattr__(self, "sigma", canonical_decimal(self.sigma))
        object.__setattr__(self, "alpha", canonical_decimal(self.alpha))
        if radius is not None:
            object.__setattr__(self, "rule", f"kt:{canonical_decimal(radius)}")

    @property
    def radius(self) -> str | None:
        """The radius that the ``kt`` rule tests, on the [0, 1] scale; None for the other rules."""
        return self._kt_radius()

    def _kt_radius(self) -> str | None:
        kind, separator, radius = self.rule.partition(":")
        return radius if kind == "kt" and separator and parse_decimal(radius) is not None else None


@dataclass(frozen=True, eq=False)
class CertificateTable(ABC):
    """Integer tables from counts to claims; ``certificate_table`` makes one and ``from_bytes`` reads one."""

    parameters: CertificateParameters
    bound: SmoothingBound

    _arrays: ClassVar[tuple[str, ...]]
    _scalars: ClassVar[tuple[str, ...]] = ()

    def decide(self, counts: np.ndarray, samples: int, selected: int) -> int | None:
        """Look at the counts after a row of 64 samples, or after the last and possibly shorter row.

        Args:
            counts: int[classes], argmax counts of the first ``samples`` estimation samples.
            samples: a multiple of 64, or n.
            selected: the class chosen from the selection samples.

        Returns:
            the claim m (-1: abstain) once the rule has decided, None to go on. After n samples it always decides.

        Raises:
            CertificateError: the counts do not add up to ``samples``: some were lost, and no certificate follows.
        """
        total = int(np.sum(counts))
        if total != samples or samples > self.parameters.n:
            raise CertificateError(
                f"{total} counts for {samples} of {self.parameters.n} samples: some were lost; run the image again"
            )
        return self._decide(counts, samples, selected)

    @abstractmethod
    def _decide(self, counts: np.ndarray, samples: int, selected: int) -> int | None: ...

    def to_bytes(self) -> bytes:
        """The table as bytes, for a cache or an artifact; the same parameters give the same bytes everywhere."""
        header: dict[str, Any] = {
            "format": _FORMAT,
            "parameters": dataclasses.asdict(self.parameters),
            "width": str(self.bound.width),
            "eta": str(self.bound.eta),
        }
        header |= {name: getattr(self, name) for name in self._scalars}
        return packing.pack(header, [getattr(self, name) for name in self._arrays])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 in hex of ``to_bytes()``."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @staticmethod
    def from_bytes(data: bytes) -> "CertificateTable":
        """Read what ``to_bytes`` wrote.

        Raises:
            ArtifactError: the bytes are damaged, of another version, or no certificate table.
        """
        try:
            header, arrays = packing.unpack(data)
            if header.pop("format") != _FORMAT:
                raise ValueError("unknown format")
            parameters = CertificateParameters(**header.pop("parameters"))
            sigma = PIXEL_STEPS * parse_sigma(parameters.sigma)
            width, eta = Fraction(header.pop("width")), Fraction(header.pop("eta"))
            bound = SmoothingBound(sigma, width, parameters.dimension, eta)
            kind = _TABLES[parameters.rule.partition(":")[0]]
            fields = dict(zip(kind._arrays, arrays, strict=True)) | header
            return kind(parameters, bound, **fields)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            ZeroDivisionError,
            SigmaError,
            CertificateError,
        ) as error:
            raise ArtifactError(f"damaged certificate table ({error}); make it again") from error


@dataclass(frozen=True, eq=False)
class OneClassTable(CertificateTable):
    """Rule ``cp1``: the selected class alone, after exactly n samples.

    claims: int32[k], the claims of the counts n - k + 1 .. n, never decreasing; every smaller count abstains.
    """

    claims: np.ndarray

    _arrays = ("claims",)

    def m(self, count: int) -> int:
        """The claim where ``count`` of the n samples fell in the selected class."""
        position = count - (self.parameters.n - len(self.claims) + 1)
        return int(self.claims[position]) if position >= 0 else ABSTAIN

    def _decide(self, counts: np.ndarray, samples: int, selected: int) -> int | None:
        return self.m(int(counts[selected])) if samples == self.parameters.n else None


@dataclass(frozen=True, eq=False)
class TwoClassTable(CertificateTable):
    """Rule ``cp2``: the selected class against the most frequent other one, after exactly n samples.

    quantiles: int64[n + 1], a[c] = floor(2^20 tau Phi^-1(p(c) - eta)) within +-8 2^20 tau, p(c) the lower bound at
        alpha / 2. The upper bound is q(c) = 1 - p(n - c), so b[c] = ceil(2^20 tau Phi^-1(q(c) + eta)) is -a[n - c].
    loss: ceil(2^20 tau U), U >= u of docs/certificate.md for every pair with |M| < 4.
    limit: floor(2^20 tau 8); |a + b| + 2 <= limit guarantees |M| < 4.
    """

    quantiles: np.ndarray
    loss: int
    limit: int

    _arrays = ("quantiles",)
    _scalars = ("loss", "limit")

    def certify(self, counts: np.ndarray, selected: int) -> int:
        """The claim for n samples with these ``counts``, int[classes]."""
        other = max((int(count) for label, count in enumerate(counts) if label != selected), default=0)
        a = int(self.quantiles[int(counts[selected])])
        b = -int(self.quantiles[self.parameters.n - other])
        twice_radius = a - b - 2 * self.loss
        if twice_radius <= 0 or abs(a + b) + 2 > self.limit:
            return ABSTAIN
        return (twice_radius**2 - 1) >> (2 * _QUANTILE_BITS + 2)

    def _decide(self, counts: np.ndarray, samples: int, selected: int) -> int | None:
        return self.certify(counts, selected) if samples == self.parameters.n else None


@dataclass(frozen=True, eq=False)
class SequentialTable(CertificateTable):
    """Rule ``kt:R``: certify radius R, give up, or go on, at each check point.

    claim: floor((255 R)^2).
    check_points: int32[k], sample counts at which the rule looks, the last one n.
    accept: int32[k], certify when the selected class has this count or more.
    reject: int32[k], abstain when it has this count or less.
    """

    claim: int
    check_points: np.ndarray
    accept: np.ndarray
    reject: np.ndarray

    _arrays = ("check_points", "accept", "reject")
    _scalars = ("claim",)

    def _decide(self, counts: np.ndarray, samples: int, selected: int) -> int | None:
        position = int(np.searchsorted(self.check_points, samples))
        if self.check_points[position] != samples:
            return None
        count = int(counts[selected])
        if count >= self.accept[position]:
            return self.claim
        return ABSTAIN if count <= self.reject[position] or samples == self.parameters.n else None


_TABLES: dict[str, type[CertificateTable]] = {"cp1": OneClassTable, "cp2": TwoClassTable, "kt": SequentialTable}


@functools.lru_cache(maxsize=16)
def certificate_table(parameters: CertificateParameters, law: NoiseLaw) -> CertificateTable:
    """Make the table of ``parameters`` for noise drawn from ``law``.

    Raises:
        CertificateError: the law is of another noise level, or no count whatever could certify.
        SigmaError: the noise is too small for images of this dimension.
    """
    if law.sigma != parameters.sigma:
        raise CertificateError(f"noise of sigma {law.sigma} cannot certify at sigma {parameters.sigma}; use one sigma")
    bound = smoothing_bound(law, parameters.dimension)
    if parameters.rule == "cp1":
        return OneClassTable(parameters, bound, one_class_claims(bound, parameters.n, parse_alpha(parameters.alpha)))
    if parameters.rule == "cp2":
        return _two_class_table(parameters, bound)
    return _sequential_table(parameters, bound)


def one_class_claims(bound: SmoothingBound, n: int, alpha: Fraction) -> np.ndarray:
    """int32[k]: ``bound.claim`` of the Clopper-Pearson lower bounds of the counts n - k + 1 .. n.

    The largest array whose first claim is not an abstention, so k may be 0.
    """
    counts = np.arange(n // 2 + 1, n + 1)
    z, error = _lower_quantiles(bound, counts, n, alpha)
    counts, z, error = (values[np.isfinite(z)] for values in (counts, z, error))
    tau = float(bound.tau)
    radius, error = tau * (z - float(bound.half)), tau * error
    square = radius * np.abs(radius)
    square_error = 2 * np.abs(radius) * error + error**2
    nearest = np.rint(square)
    claims = np.where(radius > 0, np.ceil(square) - 1, ABSTAIN).astype(np.int32)
    for i in np.flatnonzero((np.abs(square - nearest) <= square_error) & (nearest >= 0)):
        m = int(nearest[i])
        claims[i] = m if lower_bound_exceeds(int(counts[i]), n, alpha, bound.threshold(m)) else m - 1
    claims = claims[np.argmax(claims >= 0) :] if (claims >= 0).any() else claims[:0]
    claims.flags.writeable = False
    return claims


def _two_class_table(parameters: CertificateParameters, bound: SmoothingBound) -> TwoClassTable:
    n, alpha = parameters.n, parse_alpha(parameters.alpha) / 2
    scale = context.ldexp(bound.tau, _QUANTILE_BITS)
    # Phi is convex left of -1, so its increment over [M - u, M + u] at M = -4 is at least 2 u phi(4), and larger for
    # every |M| < 4: u = eta / phi(4) serves as long as the interval stays left of -1.
    loss = number(bound.eta) / context.npdf(_MIDDLE_LIMIT)
    if loss > _MIDDLE_LIMIT - 1:
        raise CertificateError(
            f"rule cp2 cannot bear the error {float(bound.eta):.3g} of {bound.dimension} coordinates; use rule cp1"
        )
    counts = np.arange(1, n + 1)
    z, error = _lower_quantiles(bound, counts, n, alpha)
    scaled, error = float(scale) * np.clip(z, -_QUANTILE_RANGE, _QUANTILE_RANGE), float(scale) * error
    nearest = np.rint(scaled)
    quantiles = np.floor(scaled).astype(np.int64)
    for i in np.flatnonzero((np.abs(z) < _QUANTILE_RANGE) & (np.abs(scaled - nearest) <= error)):
        whole = int(nearest[i])
        probability = number(bound.eta) + normal_cdf(whole / scale)
        quantiles[i] = whole if lower_bound_exceeds(int(counts[i]), n, alpha, probability) else whole - 1
    lowest, highest = (int(context.floor(end * scale)) for end in (-_QUANTILE_RANGE, _QUANTILE_RANGE))
    quantiles = np.clip(np.concatenate([[lowest], quantiles]), lowest, highest)
    quantiles.flags.writeable = False
    return TwoClassTable(
        parameters,
        bound,
        quantiles=quantiles,
        loss=int(context.ceil(scale * loss)),
        limit=int(context.floor(2 * _MIDDLE_LIMIT * scale)),
    )


def _sequential_table(parameters: CertificateParameters, bound: SmoothingBound) -> SequentialTable:
    claim = squared_steps(parameters.radius)
    # Rounded up: a larger p0 only makes the test stricter.
    p0 = Fraction(int(context.ceil(context.ldexp(bound.threshold(claim), 128))), 1 << 128)
    points = check_points(parameters.n)
    accept = accept_thresholds(points, p0, parse_alpha(parameters.alpha)) if p0 < 1 else [k + 1 for k in points]
    if all(count > k for k, count in zip(points, accept, strict=True)):
        raise CertificateError(
            f"rule {parameters.rule} certifies nothing with n = {parameters.n}: {parameters.n} equal answers do not "
            f"prove that radius at alpha {parameters.alpha}; give a larger n or a smaller radius"
        )
    reject = reject_thresholds(points, p0, FUTILITY)
    arrays = [np.array(values, dtype=np.int32) for values in (points, accept, reject)]
    for array in arrays:
        array.flags.writeable = False
    return SequentialTable(parameters, bound, claim, *arrays)


def _lower_quantiles(
    bound: SmoothingBound, counts: np.ndarray, n: int, alpha: Fraction
) -> tuple[np.ndarray, np.ndarray]:
    """Phi^-1(p - eta) for the lower bounds p of ``counts``, float64, and a bound on its error."""
    eta = float(bound.eta)
    p, rest = lower_bounds(counts, n, alpha)
    z = np.where(p < 0.5, special.ndtri(np.maximum(p - eta, 0)), -special.ndtri(rest + eta))
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    with np.errstate(divide="ignore"):
        error = RELATIVE_ERROR * (np.minimum(p, rest) / density + np.abs(z) + 1)
    return z, error
