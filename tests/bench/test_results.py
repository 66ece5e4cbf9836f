"""The numbers of the figures, against ledgers made by hand."""

import math

import pytest
from results import (
    Run,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_of_answered,
    certified_percentage,
    find_runs,
    mean,
    paired_accuracy,
    paired_radius,
    wilson,
    write_table,
)
from scipy import stats

from intcert.runtime.errors import LedgerError

# 255 * 0.5 = 127.5: m = 16,256 covers radius 0.5 and 16,255 does not.
OUTCOMES = [(0, 0, 16_256), (1, 1, 16_255), (2, 2, 0), (3, 1, 20_000), (4, -1, -1)]


def test_certified_accuracy_is_cohens(rows):
    shares = {radius: certified_accuracy(rows(OUTCOMES), radius).value for radius in ("0", "0.25", "0.5", "0.75")}
    assert shares == {"0": 3 / 5, "0.25": 2 / 5, "0.5": 1 / 5, "0.75": 0.0}


def test_certified_percentage_is_equation_9(rows):
    assert certified_percentage(rows(OUTCOMES)).value == 4 / 5
    assert certified_percentage(rows(OUTCOMES[-1:])).value == 0.0


def test_equation_10_divides_by_the_answered_alone(rows):
    shares = {radius: certified_accuracy_of_answered(rows(OUTCOMES), radius).value for radius in ("0", "0.25", "0.5")}
    assert shares == {"0": 3 / 4, "0.25": 2 / 4, "0.5": 1 / 4}
    assert certified_accuracy_of_answered(rows(OUTCOMES[-1:]), "0") == (0.0, 0.0, 1.0)


def test_average_certified_radius_counts_wrong_answers_as_0(rows):
    radii = [math.sqrt(16_256) / 255, math.sqrt(16_255) / 255, 0, 0, 0]
    assert average_certified_radius(rows(OUTCOMES)).value == pytest.approx(sum(radii) / 5, rel=1e-12)


def test_wilson_is_scipys():
    for successes, trials in ((0, 10), (3, 10), (10, 10), (700, 1000)):
        expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        found = wilson(successes, trials)
        assert found.value == successes / trials
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_mean_has_a_normal_interval():
    assert mean([1.0]) == (1.0, 1.0, 1.0)
    found = mean([1.0, 2.0, 3.0, 6.0])
    half = 1.959963984540054 * math.sqrt(14 / 3) / 2
    assert found == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-12)


def runs_of(rows, first, second):
    return Run("intrs", "0.25", "0.25", tuple(rows(first))), Run("float", "0.25", "0.25", tuple(rows(second)))


def test_paired_difference_follows_agresti_and_min(rows):
    """40 images on which the first gains 6 and loses 2: (6.5 - 2.5) / 42, and its standard error."""
    right, wrong = (0, 0, 0), (0, -1, -1)
    first = [right] * 6 + [wrong] * 2 + [right] * 20 + [wrong] * 12
    second = [wrong] * 6 + [right] * 2 + [right] * 20 + [wrong] * 12
    found = paired_accuracy(*runs_of(rows, first, second), "0")
    centre, error = 4 / 42, math.sqrt(9 - 16 / 42) / 42
    assert found.value == 4 / 40
    assert (found.low, found.high) == pytest.approx((centre - 1.959964 * error, centre + 1.959964 * error), abs=1e-6)
    swapped = paired_accuracy(*runs_of(rows, second, first), "0")
    assert swapped == pytest.approx((-found.value, -found.high, -found.low), abs=1e-12)


def test_equal_runs_still_have_an_interval(rows):
    found = paired_accuracy(*runs_of(rows, OUTCOMES, OUTCOMES), "0.25")
    assert found.value == 0
    assert found.low == -found.high < 0


def test_paired_radius_is_the_mean_difference(rows):
    first, second = [(0, 0, 255**2), (0, 0, 0), (0, 1, 99)], [(0, 0, 0), (0, 0, 255**2 * 4), (0, 0, 0)]
    assert paired_radius(*runs_of(rows, first, second)).value == pytest.approx((1 - 2 + 0) / 3)


def test_runs_on_different_images_are_not_compared(rows):
    for other in (OUTCOMES[:-1], OUTCOMES[::-1]):
        first, second = runs_of(rows, OUTCOMES, other)
        if len(other) == len(OUTCOMES):
            second = Run("float", "0.25", "0.25", tuple(reversed(second.rows)))
        with pytest.raises(LedgerError, match="were certified on different images"):
            paired_accuracy(first, second, "0")
        with pytest.raises(LedgerError, match="were certified on different images"):
            paired_radius(first, second)


def test_ledgers_are_found_by_their_names(write_ledger):
    for name in ("intrs_0.5.tsv", "float_0.25.tsv", "intrs_0.25_at_0.5.tsv", "intrs_0.25.tsv", "notes.tsv", "x_1.tsv"):
        folder = write_ledger(name, OUTCOMES)
    found = [(run.method, run.trained, run.certified) for run in find_runs(folder)]
    assert found == [
        ("intrs", "0.25", "0.25"),
        ("float", "0.25", "0.25"),
        ("intrs", "0.25", "0.5"),
        ("intrs", "0.5", "0.5"),
    ]
    assert [row.idx for row in find_runs(folder)[0].rows] == [0, 5, 10, 15, 20]


def test_folders_without_results(write_ledger, tmp_path):
    with pytest.raises(LedgerError, match="holds no ledgers named like"):
        find_runs(tmp_path)
    folder = write_ledger("float_0.25.tsv", [])
    with pytest.raises(LedgerError, match=r"float_0\.25\.tsv has no rows yet"):
        find_runs(folder)


def test_tables_are_tab_separated(tmp_path):
    write_table(tmp_path / "new" / "t.tsv", ("a", "b"), [("x", 1 / 3), (2, 0.5)])
    assert (tmp_path / "new" / "t.tsv").read_text() == "a\tb\nx\t0.33333\n2\t0.50000\n"
