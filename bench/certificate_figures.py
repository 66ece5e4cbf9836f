"""Print every figure of docs/noise.md and docs/certificate.md.

Run from anywhere: ``python bench/certificate_figures.py``. It takes half a minute on one core and needs no data.
"""

import math
from fractions import Fraction

import numpy as np

from intcert.runtime.certificate import CertificateParameters, CertificateTable, certificate_table
from intcert.runtime.high_precision import context, normal_quantile, number
from intcert.runtime.noise import ESCAPE, noise_law
from intcert.runtime.sequential import log_mixture
from intcert.runtime.smoothing import (
    SmoothingBound,
    certified_at,
    kernel_distance,
    radius_string,
    sampler_distance,
    smoothing_bound,
)

SIGMAS = ("0.12", "0.25", "0.5", "1", "4")
DIMENSIONS = (784, 3072, 150_528)
SPLITS = ((100_000, 0), (99_000, 1000), (80_000, 20_000), (80_000, 10_000), (55_000, 15_000), (45_000, 20_000))
SHIFTS = (
    *((1, (3,)), (1, (9,)), (1, (15,)), (2, (5, 5)), (2, (10, 11)), (3, (8, 8, 8))),
    *((3072, (9,)), (3072, (1,) * 81)),
)
QUARTER = Fraction(255, 4)  # sigma = 0.25 in pixel steps


def log2(value: Fraction) -> float:
    return math.log2(value.numerator) - math.log2(value.denominator)


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def noise_tables() -> None:
    heading("Noise laws")
    columns = f"{'sigma':>6} {'steps':>8} {'s':>2} {'L':>3} {'bytes':>7} {'escapes':>9} {'of 3072':>8} {'log2 tv':>8}"
    print(f"{columns}  digest")
    for sigma in SIGMAS:
        law = noise_law(sigma)
        capacity = 1 << law.cell_bits
        cells = int(law.thr[ESCAPE]) + int((capacity - law.thr[law.al == ESCAPE].astype(int)).sum())
        share = cells / (256 * capacity)
        size = law.thr.nbytes + law.al.nbytes + law.rt.nbytes
        print(
            f"{sigma:>6} {float(law.sigma_steps):8.2f} {law.s:2} {law.L:3} {size:7} {share:9.5f} {3072 * share:8.1f} "
            f"{log2(law.tv):8.2f}  {law.digest[:16]}"
        )


def errors_and_cost() -> None:
    heading("Error terms, and radius lost to them and to the width s (pixel steps; R > 1)")
    columns = f"{'sigma':>6} {'d':>7} {'s':>5} {'log2 eta_K':>11} {'log2 eta_S':>11} {'1 - tau/sigma':>14}"
    print(f"{columns} {'worst loss':>11}")
    for sigma in SIGMAS:
        law = noise_law(sigma)
        for dimension in DIMENSIONS:
            bound = smoothing_bound(law, dimension)
            kernel = kernel_distance(bound.sigma, bound.width, dimension)
            sampler = sampler_distance(law.tv, dimension)
            steps = float(bound.sigma)
            print(
                f"{sigma:>6} {dimension:7} {float(bound.width):5.2f} {log2(kernel):11.1f} {log2(sampler):11.1f} "
                f"{1 - float(bound.tau) / steps:14.6%} {worst_loss(bound):11.6%}"
            )


def worst_loss(bound: SmoothingBound) -> float:
    """Largest 1 - R / (sigma Phi^-1(p)) over p with R > 1, from p just above 1/2 to 1 - 2^-20."""
    losses = []
    for exponent in np.linspace(1, 20, 200):
        p = 1 - context.mpf(2) ** -context.mpf(exponent)
        if (radius := bound.radius(p)) > 1:
            losses.append(1 - radius / (number(bound.sigma) * normal_quantile(p)))
    return float(max(losses))


def table(rule: str, n: int, sigma: str = "0.25", dimension: int = 3072) -> CertificateTable:
    return certificate_table(CertificateParameters(sigma, dimension, "0.001", 100, n, rule), noise_law(sigma))


def unanimous_claims() -> None:
    heading("Claim m when all N samples agree, d = 3072, alpha = 0.001 (sqrt(m)/255 in brackets)")
    print(f"{'sigma':>6} " + " ".join(f"{'N = ' + format(n, ','):>22}" for n in (1000, 10_000, 100_000, 1_000_000)))
    for sigma in SIGMAS:
        claims = [table("cp1", n, sigma).m(n) for n in (1000, 10_000, 100_000, 1_000_000)]
        print(f"{sigma:>6} " + " ".join(f"{m:11} ({radius_string(m)})" for m in claims))
    p = context.exp(context.log(context.mpf("0.001")) / 100_000)
    continuous = 0.25 * float(normal_quantile(p))
    print(f"p = alpha^(1/N) at N = 100,000: {float(p):.8f}; sigma Phi^-1(p) at 0.25: {continuous:.6f}")


def two_classes() -> None:
    heading("One class and two classes, sigma = 0.25, d = 3072, N = 100,000, alpha = 0.001")
    print(f"{'selected':>9} {'second':>7} {'m, cp1':>7} {'m, cp2':>7}")
    one, two = table("cp1", 100_000), table("cp2", 100_000)
    for first, second in SPLITS:
        counts = np.array([first, second, *divide(100_000 - first - second, second)])
        print(f"{first:9} {second:7} {one.decide(counts, 100_000, 0):7} {two.decide(counts, 100_000, 0):7}")


def divide(rest: int, largest: int) -> list[int]:
    """``rest`` answers over further classes, none of them above ``largest``."""
    parts = []
    while rest > 0:
        parts.append(min(rest, largest))
        rest -= parts[-1]
    return parts


def sequential() -> None:
    heading("Samples until kt:R certifies or gives up, sigma = 0.25, d = 3072, alpha = 0.001, n = 100,000")
    shares = (1.0, 0.999, 0.99, 0.95, 0.9, 0.8, 0.5)
    print(f"{'R':>5} {'p0':>8} " + " ".join(f"{'c = ' + format(share, '.1%'):>11}" for share in shares))
    for radius in ("0.25", "0.5", "0.75"):
        certificate = table(f"kt:{radius}", 100_000)
        p0 = float(certificate.bound.threshold(certificate.claim))
        cells = []
        for share in shares:
            for k in certificate.check_points.tolist():
                count = round(share * k)
                if (m := certificate.decide(np.array([count, k - count]), k, 0)) is not None:
                    cells.append(f"{k} {'yes' if m >= 0 else 'no'}")
                    break
        print(f"{radius:>5} {p0:8.5f} " + " ".join(f"{cell:>11}" for cell in cells))


def one_number_facts() -> None:
    heading("Single figures")
    print(f"m = 16256 shows as {radius_string(16_256)}; certified at 0.5: {certified_at(16_256, '0.5')}")
    print(f"log E_100(0) at p0 = 0.51: {float(log_mixture(100, 0, Fraction(51, 100))):.2f}")


def exact_threshold(delta: tuple[int, ...], sigma: float) -> tuple[float, float]:
    """p*(delta), and 1 - p*(delta) summed on its own: P[<n, delta> > |delta|^2] + P[= |delta|^2] / 2."""
    reach = 40 * math.ceil(sigma)
    values = np.arange(-reach, reach + 1)
    base = np.exp(-(values**2) / (2 * sigma**2))
    base /= base.sum()
    law = np.ones(1)
    for step in delta:
        spread = np.zeros((len(base) - 1) * step + 1)
        spread[::step] = base
        law = np.convolve(law, spread)
    edge = len(law) // 2 + sum(step * step for step in delta)
    rest = law[edge + 1 :].sum() + law[edge] / 2
    return 1 - rest, rest


def exact_worst_case() -> None:
    heading("One-dimensional quantiles and the exact threshold p*(delta) at sigma = 2 pixel steps")
    one_dimension = np.exp(-(np.arange(-80, 81) ** 2) / 8)
    for value in (0, 1):
        print(f"P[n <= {value}] = {one_dimension[: 81 + value].sum() / one_dimension.sum():.6f}")
    for delta in ((1,), (1, 1, 1)):
        print(f"delta = {delta}: p* = {exact_threshold(delta, 2)[0]:.6f}")
    heading("R(p*(delta)) / |delta| at sigma = 3 pixel steps, best s in 0.60, 0.61, .. 1.00 (below 1: sound)")
    for dimension, delta in SHIFTS:
        p = 1 - context.mpf(exact_threshold(delta, 3)[1])
        length = math.sqrt(sum(step * step for step in delta))
        ratios = {}
        for hundredths in range(60, 101):
            width = Fraction(hundredths, 100)
            bound = SmoothingBound(Fraction(3), width, dimension, kernel_distance(Fraction(3), width, dimension))
            ratios[float(width)] = float(bound.radius(p)) / length
        best = max(ratios, key=ratios.__getitem__)
        shown = f"{delta}" if len(delta) < 9 else f"({delta[0]},) * {len(delta)}"
        print(f"d = {dimension:4}, delta = {shown:10}: {ratios[best]:.4f} at s = {best:.2f}")
    heading("What the simple bound eta_K <= (1 + eps0)^d - 1 would cost, R at p = 0.999, d = 3072")
    for sigma, s in ((Fraction(3), Fraction(71, 100)), (Fraction(3), Fraction(98, 100)), (QUARTER, Fraction(136, 100))):
        eps0 = 2 * context.exp(-2 * context.pi**2 * number(s) ** 2)
        simple = Fraction(int(context.ldexp(context.expm1(3072 * context.log1p(eps0)), 128)) + 1, 1 << 128)
        p, sharp = context.mpf("0.999"), kernel_distance(sigma, s, 3072)
        sharp_radius, simple_radius = (float(SmoothingBound(sigma, s, 3072, eta).radius(p)) for eta in (sharp, simple))
        print(f"sigma = {float(sigma):5.2f}, s = {float(s):.2f}: {simple_radius:9.4f} instead of {sharp_radius:9.4f}")


if __name__ == "__main__":
    noise_tables()
    errors_and_cost()
    unanimous_claims()
    two_classes()
    sequential()
    exact_worst_case()
    one_number_facts()
