"""Activation ranges: outliers are cut, ordinary batches are not."""

import pytest
import torch

from intcert.train.ranges import OBSERVERS, ClippedMinMaxObserver


def observed(observer, *batches):
    for batch in batches:
        assert observer(batch) is batch
    return float(observer.min_val), float(observer.max_val)


def test_outliers_are_cut_on_both_sides():
    values = torch.linspace(-1, 1, 50_000)
    values[::10_000] = 100.0
    values[5::10_000] = -100.0
    assert observed(ClippedMinMaxObserver(), values) == (-100.0, 100.0)  # 5 of 50,000 are exactly the share
    values[1::50_000] = 100.0
    values[6::50_000] = -100.0
    low, high = observed(ClippedMinMaxObserver(), values)
    assert (low, high) == (-100.0, 100.0)
    values = torch.linspace(-1, 1, 50_000)
    values[0], values[-1] = -100.0, 100.0
    low, high = observed(ClippedMinMaxObserver(), values)
    assert -1 < low < -0.999
    assert 0.999 < high < 1


def test_small_batches_keep_their_whole_range():
    values = torch.tensor([[-3.0, 0.0], [2.0, 1.0]])
    assert observed(ClippedMinMaxObserver(), values) == (-3.0, 2.0)


def test_the_range_moves_by_the_averaging_constant():
    observer = ClippedMinMaxObserver(averaging_constant=0.5)
    assert observed(observer, torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 3.0])) == (-0.5, 2.0)


def test_an_empty_batch_says_nothing():
    observer = ClippedMinMaxObserver()
    assert observed(observer, torch.tensor([0.0, 1.0]), torch.empty(0)) == (0.0, 1.0)


def test_large_tensors_are_looked_at_evenly():
    """The distance between the values taken is odd, so it does not run along one column of the images."""
    values = torch.zeros(64, 32, 32, 32)
    values[..., 7] = 5.0
    assert observed(ClippedMinMaxObserver(), values) == (0.0, 5.0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_choice_observes(name):
    assert observed(OBSERVERS[name](), torch.tensor([-1.0, 2.0])) == (-1.0, 2.0)
