"""``intcert replay``: equal where it must be, and the first difference where it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from intcert.runtime import LedgerRow, read_ledger
from intcert.runtime.ledger import HEADER
from intcert.targets import runnable

HERE = [target.name for target in runnable()]


def rewrite(ledger: Path, rows: list[LedgerRow]) -> None:
    ledger.write_text("".join(f"{line}\n" for line in (HEADER, *(row.to_line() for row in rows))))


@pytest.mark.parametrize("target", HERE)
def test_every_target_counts_the_same(intcert, ledger, colour_model, colour_folder, tmp_path, target):
    artifact = tmp_path / "m.intcert"
    assert intcert("compile", colour_model, "--target", target, "-o", artifact).exit_code == 0
    result = intcert("replay", ledger, artifact, "--data", f"folder:{colour_folder}")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"7 rows, 7,700 samples: counts and certificates are equal on {target}\n"


def test_rows_limits_the_work(intcert, ledger, colour_artifact, colour_folder):
    result = intcert("replay", ledger, colour_artifact, "--data", f"folder:{colour_folder}", "--rows", 2)
    assert result.stdout.startswith("2 rows, 2,200 samples")


@pytest.mark.parametrize("rule", [("--rule", "cp2"), ("--radius", "0.25")])
def test_replay_knows_every_rule(intcert, colour_artifact, colour_folder, tmp_path, rule):
    path, data = tmp_path / "run.tsv", ("--data", f"folder:{colour_folder}")
    assert intcert("certify", colour_artifact, *data, "--n", 2000, *rule, "-o", path).exit_code == 0
    result = intcert("replay", path, colour_artifact, *data)
    assert result.exit_code == 0, result.output


def test_the_first_difference_is_exit_code_1(intcert, ledger, colour_artifact, colour_folder):
    rows = read_ledger(ledger)
    counts = dict(rows[6].counts)
    counts[0], counts[1] = counts[0] + 1, counts[1] - 1
    rows[6] = replace(rows[6], counts=tuple(counts.items()))
    rewrite(ledger, rows)
    result = intcert("replay", ledger, colour_artifact, "--data", f"folder:{colour_folder}")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: row 6: counts 0:")
    assert f"0:{counts[0]},1:{counts[1]}" in result.stderr

    rows = read_ledger(ledger)
    rows[3] = replace(rows[3], sqradius=rows[3].sqradius + 1)
    rewrite(ledger, rows)
    result = intcert("replay", ledger, colour_artifact, "--data", f"folder:{colour_folder}")
    assert result.exit_code == 1
    assert f"row 3: m {rows[3].sqradius - 1} on" in result.stderr


def test_other_networks_and_images_are_refused(
    refused, intcert, ledger, colour_model, colour_artifact, colour_folder, tmp_path
):
    data = ("--data", f"folder:{colour_folder}")
    for name, words in (("sigma", ("--sigma", "0.5")), ("graph", ("--scheme", "q31"))):
        other = tmp_path / f"{name}.intcert"
        assert intcert("compile", colour_model, *words, "-o", other).exit_code == 0
        refused("replay", ledger, other, *data, saying=("another network", name))

    rows = read_ledger(ledger)
    rewrite(ledger, [replace(rows[0], idx=1), *rows[2:]])
    refused("replay", ledger, colour_artifact, *data, saying=("image 1", "not the one"))
    rewrite(ledger, [replace(rows[0], idx=100)])
    refused("replay", ledger, colour_artifact, *data, saying=("row 100", "no image"))


def test_what_is_no_ledger_is_refused(refused, ledger, colour_artifact, colour_folder, tmp_path):
    data = ("--data", f"folder:{colour_folder}")
    refused("replay", tmp_path / "missing.tsv", colour_artifact, *data, saying=("missing.tsv",))
    rewrite(ledger, [])
    refused("replay", ledger, colour_artifact, *data, saying=(ledger, "no rows"))
    ledger.write_text("idx\tlabel\n")
    refused("replay", ledger, colour_artifact, *data, saying=(ledger, "not a ledger"))
