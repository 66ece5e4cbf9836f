"""The consistency regularizer equals its definition, and its numbers are checked."""

import math

import pytest
import torch

from intcert.runtime.errors import IntcertError
from intcert.train.consistency import Consistency


def by_definition(logits, draws, strength, eta):
    """Equation 7 of Jeong and Shin, one image at a time."""
    probabilities = logits.double().reshape(draws, -1, logits.shape[-1]).softmax(-1)
    total = 0.0
    for image in range(probabilities.shape[1]):
        parts = probabilities[:, image].tolist()
        mean = [sum(column) / draws for column in zip(*parts, strict=True)]
        divergence = sum(sum(m * math.log(m / p) for m, p in zip(mean, part, strict=True)) for part in parts) / draws
        total += strength * divergence - eta * sum(m * math.log(m) for m in mean)
    return total / probabilities.shape[1]


@pytest.mark.parametrize(("draws", "strength", "eta"), [(2, 20.0, 0.5), (3, 5.0, 0.1), (2, 0.0, 1.0)])
def test_regularizer_is_its_definition(draws, strength, eta):
    logits = torch.randn(draws * 4, 7, generator=torch.Generator().manual_seed(0))
    value = Consistency(strength, eta, draws)(logits)
    assert value.shape == ()
    assert float(value) == pytest.approx(by_definition(logits, draws, strength, eta), rel=1e-5)


def test_equal_predictions_leave_the_entropy_alone():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert float(Consistency(20.0, 0.5, 2)(logits)) == pytest.approx(0.5 * math.log(2), rel=1e-6)


def test_certain_predictions_keep_gradients_finite():
    logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0]], requires_grad=True)
    Consistency()(logits).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"noises": 1}, "m = 1; give at least 2"),
        ({"strength": -1.0}, "lambda = -1.0"),
        ({"eta": -0.5}, "eta = -0.5"),
    ],
)
def test_numbers_that_make_no_sense(numbers, message):
    with pytest.raises(IntcertError, match=message):
        Consistency(**numbers)
