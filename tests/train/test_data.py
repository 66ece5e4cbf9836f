"""Training data: the noise has exactly the table's law, images are read and augmented as said."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from intcert.runtime.datasets import open_dataset
from intcert.runtime.errors import DatasetError
from intcert.runtime.noise import NoiseLaw, noise_law
from intcert.train.data import NoiseSampler, augment, load_images, network_input

# Sub-block offsets of 0, 1 and 4 bits (s), and residual tables of 2^10 to 2^14 entries.
SIGMAS = ["0.12", "0.25", "0.5", "4"]


# The noise


def draw_by_definition(law: NoiseLaw, column: int, byte: int) -> int | None:
    """The primary draw written down from its definition, one integer at a time; None where the residual decides."""
    cell_bits = 7 - law.s
    offset, cell = (byte % 128) // 2**cell_bits, byte % 2**cell_bits
    block = column if cell < int(law.thr[column]) else int(law.al[column])
    if block == 255:
        return None
    magnitude = block * 2**law.s + offset
    return -magnitude if byte >= 128 else magnitude


@pytest.mark.parametrize("sigma", SIGMAS)
def test_every_primary_draw_is_the_definition(sigma):
    law = noise_law(sigma)
    sampler = NoiseSampler(law)
    drawn = sampler.primary.tolist()
    for column, byte in product(range(256), range(256)):
        expected = draw_by_definition(law, column, byte)
        assert drawn[byte << 8 | column] == (NoiseSampler.ESCAPED if expected is None else expected)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_every_residual_column_splits_at_its_threshold(sigma):
    law = noise_law(sigma)
    sampler = NoiseSampler(law)
    columns = torch.arange(2**law.L)
    capacity = 2 ** (64 - law.L)
    for low in (0, 1, capacity // 3, capacity - 1):
        expected = [c if low < e >> law.L else e % 2**law.L for c, e in enumerate(law.rt.tolist())]
        assert sampler.residual(columns, torch.full((2**law.L,), low)).tolist() == expected
    threshold = torch.tensor([e >> law.L for e in law.rt.tolist()])
    alias = torch.tensor([e % 2**law.L for e in law.rt.tolist()])
    assert torch.equal(sampler.residual(columns, threshold).long(), alias)
    own = threshold > 0
    assert torch.equal(sampler.residual(columns[own], threshold[own] - 1).long(), columns[own])


def exact_law(sampler: NoiseSampler) -> dict[int, Fraction]:
    """P[|noise| = x], by counting all 2^16 primary draws and all 2^64 residual draws."""
    values, counts = sampler.primary.int().abs().unique(return_counts=True)
    primary = dict(zip(values.tolist(), counts.tolist(), strict=True))
    escapes = primary.pop(-NoiseSampler.ESCAPED)
    mass = [0] * len(sampler.threshold)
    capacity = 2**64 // len(mass)
    for column, (own, alias) in enumerate(zip(sampler.threshold.tolist(), sampler.alias.tolist(), strict=True)):
        mass[column] += own
        mass[alias] += capacity - own
    return {x: Fraction(primary.get(x, 0), 2**16) + Fraction(escapes * m, 2**80) for x, m in enumerate(mass)}


@pytest.mark.parametrize("sigma", ["0.12", "0.25"])
def test_the_sampler_is_as_close_to_the_discrete_gaussian_as_the_law_promises(sigma):
    law = noise_law(sigma)
    drawn = exact_law(NoiseSampler(law))
    assert sum(drawn.values()) == 1
    with mpmath.workdps(60):
        steps = mpmath.mpf(255) * mpmath.mpf(sigma)
        weight = [mpmath.exp(-(x**2) / (2 * steps**2)) * (1 if x == 0 else 2) for x in range(4096)]
        total = mpmath.fsum(weight)
        exact = [w / total for w in weight]
        distance = mpmath.fsum(
            abs(p - mpmath.mpf(q.numerator) / q.denominator)
            for p, q in zip(exact, [drawn.get(x, Fraction(0)) for x in range(4096)], strict=True)
        )
        assert 0 < distance / 2 <= mpmath.mpf(law.tv.numerator) / law.tv.denominator < mpmath.mpf(2) ** -60


def histogram_p_value(noise: torch.Tensor, law: dict[int, Fraction]) -> float:
    """Chi-square p-value of a signed sample against a symmetric law; magnitudes expected under 20 times are pooled."""
    observed, expected = [], []
    rest_observed, rest_expected = 0, 0.0
    for x, probability in law.items():
        for value in {x, -x}:
            share = float(probability) * noise.numel() / (1 if x == 0 else 2)
            seen = int((noise == value).sum())
            if share < 20:
                rest_observed, rest_expected = rest_observed + seen, rest_expected + share
            else:
                observed.append(seen)
                expected.append(share)
    assert sum(observed) + rest_observed == noise.numel()
    return stats.chisquare([*observed, rest_observed], [*expected, rest_expected]).pvalue


def test_sample_follows_the_law():
    law = noise_law("0.12")
    sampler = NoiseSampler(law)
    torch.manual_seed(1)
    noise = sampler((64, 100, 100))
    assert noise.shape == (64, 100, 100)
    assert noise.dtype == torch.int16
    assert histogram_p_value(noise, exact_law(sampler)) > 1e-4


def test_forced_escapes_follow_the_residual_law():
    law = noise_law("0.12")
    always = replace(law, thr=np.zeros(256, np.uint8), al=np.full(256, 255, np.uint8))
    sampler = NoiseSampler(always)
    assert (sampler.primary == NoiseSampler.ESCAPED).all()
    torch.manual_seed(2)
    noise = sampler((200_000,))
    assert histogram_p_value(noise, exact_law(sampler)) > 1e-4


# Images


def test_network_input_is_pixel_plus_noise_over_255_unclamped():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 256, 1).expand(1, 3, 256, 1)
    noise = torch.tensor([-300, 0, 300], dtype=torch.int16).reshape(1, 3, 1, 1).expand(1, 3, 256, 1)
    x = network_input(pixels, noise)
    assert x.shape == (1, 1, 3, 256)
    expected = (np.arange(256)[None] + np.array([-300, 0, 300])[:, None]).astype(np.float32) / np.float32(255)
    assert np.array_equal(x[0, 0].numpy(), expected)
    assert torch.equal(network_input(pixels), network_input(pixels, torch.zeros_like(noise)))


def test_network_input_moves_channels_first():
    images = torch.randint(256, (2, 4, 5, 3), dtype=torch.uint8)
    x = network_input(images)
    assert x.shape == (2, 3, 4, 5)
    assert torch.equal((x * 255).round().to(torch.uint8), images.permute(0, 3, 1, 2))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), padding=st.integers(0, 3), flip=st.booleans())
def test_augmented_images_are_shifted_and_perhaps_mirrored(seed, padding, flip):
    torch.manual_seed(seed)
    images = torch.randint(256, (3, 4, 5, 2), dtype=torch.uint8)
    results = augment(images, padding, flip)
    assert results.dtype == torch.uint8
    padded = np.pad(images.numpy(), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for index, result in enumerate(results.numpy()):
        windows = [
            padded[index, row : row + 4, column : column + 5]
            for row, column in product(range(2 * padding + 1), repeat=2)
        ]
        mirrored = [window[:, ::-1] for window in windows] if flip else []
        assert any(np.array_equal(result, candidate) for candidate in windows + mirrored)


def test_augmentation_makes_every_choice():
    torch.manual_seed(0)
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 3, 3, 1)
    results = augment(image.expand(500, 3, 3, 1), 1, True)
    assert len({result.numpy().tobytes() for result in results}) == 3 * 3 * 2


def test_images_are_loaded_in_the_order_of_the_data_set(write_images):
    folder = write_images(classes=("b", "B", "a"), count=2)
    data = load_images(open_dataset(f"folder:{folder}"))
    assert data.classes == ("B", "a", "b")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.images.shape == (6, 32, 32, 3)
    assert np.array_equal(data.images[3].numpy(), np.array(Image.open(folder / "a" / "1.png")))


def test_classes_without_names_are_called_by_their_numbers(tmp_path):
    images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5, 1)
    np.savez(tmp_path / "d.npz", images=images, labels=np.array([2, 0, 2]))
    data = load_images(open_dataset(f"npz:{tmp_path / 'd.npz'}"))
    assert data.classes == ("0", "1", "2")
    assert data.labels.tolist() == [2, 0, 2]
    assert np.array_equal(data.images.numpy(), images)


def test_unreadable_images_are_refused(write_images):
    folder = write_images()
    (folder / "cat" / "0.png").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"0\.png is not a readable image"):
        load_images(open_dataset(f"folder:{folder}"))
