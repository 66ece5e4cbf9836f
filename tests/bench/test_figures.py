"""The figure commands: each writes its tables with the numbers of the ledgers, and a picture."""

import csv
import importlib

import pytest
from click.testing import CliRunner

pytest.importorskip("matplotlib")

GOOD, FAIR, BAD, NONE = (0, 0, 16_256), (0, 0, 5000), (0, 1, 20_000), (0, -1, -1)
PNG = b"\x89PNG"


@pytest.fixture
def figures():
    return importlib.import_module("figures")


@pytest.fixture
def ledgers(write_ledger):
    write_ledger("intrs_0.25.tsv", [GOOD, GOOD, FAIR, NONE])
    write_ledger("float_0.25.tsv", [GOOD, FAIR, BAD, NONE])
    write_ledger("floatrs-quant_0.25.tsv", [GOOD, NONE, NONE, NONE])
    write_ledger("intrs-consistency_0.25.tsv", [GOOD, GOOD, GOOD, GOOD])
    write_ledger("float_0.5.tsv", [FAIR, FAIR, FAIR, NONE])
    return write_ledger("intrs_0.25_at_0.5.tsv", [FAIR, NONE, NONE, NONE])


def draw(figures, *words):
    result = CliRunner().invoke(figures.main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def table(path, *keys):
    """Rows of a table by the cells of some of its columns."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = {tuple(row[key] for key in keys): row for row in rows}
    assert len(found) == len(rows)
    return found


def is_picture(path):
    return path.read_bytes()[:4] == PNG and path.stat().st_size > 5000


def test_accuracy(figures, ledgers, tmp_path):
    draw(figures, "accuracy", ledgers, "-o", tmp_path)
    shares = table(tmp_path / "certified_accuracy.tsv", "sigma", "method", "radius")
    assert {key[:2] for key in shares} == {
        *(("0.25", m) for m in ("intrs", "float", "floatrs-quant", "intrs-consistency")),
        ("0.5", "float"),
    }
    assert shares["0.25", "intrs", "0"]["share"] == "0.75000"
    assert shares["0.25", "intrs", "0.5"]["share"] == "0.50000"
    assert shares["0.25", "float", "0.25"]["share"] == "0.50000"
    assert shares["0.25", "float", "0.5"]["images"] == "4"
    paired = table(tmp_path / "certified_accuracy_paired.tsv", "sigma", "minus", "radius")
    assert {key[:2] for key in paired} == {("0.25", "float"), ("0.25", "floatrs-quant")}
    assert paired["0.25", "float", "0"]["difference"] == "0.25000"
    assert paired["0.25", "floatrs-quant", "0.5"]["difference"] == "0.25000"
    row = paired["0.25", "float", "0.5"]
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])
    assert is_picture(tmp_path / "certified_accuracy.png")


def test_percentage(figures, ledgers, tmp_path):
    draw(figures, "percentage", ledgers, "-o", tmp_path)
    rows = table(tmp_path / "certified_percentage.tsv", "sigma", "method")
    row = rows["0.25", "float"]
    assert (row["equation9"], row["equation10_at_0"], row["cohen_at_0"]) == ("0.75000", "0.66667", "0.50000")
    assert (row["equation10_at_0.5"], row["cohen_at_0.5"]) == ("0.33333", "0.25000")
    assert is_picture(tmp_path / "certified_percentage.png")


def test_mismatch(figures, ledgers, tmp_path, write_ledger):
    draw(figures, "mismatch", ledgers, "-o", tmp_path)
    rows = table(tmp_path / "sigma_mismatch.tsv", "trained", "certified", "method", "radius")
    assert {key[0] for key in rows} == {"0.25"}
    assert rows["0.25", "0.5", "intrs", "0"]["share"] == "0.25000"
    assert rows["0.25", "0.25", "intrs", "0"]["share"] == "0.75000"
    assert is_picture(tmp_path / "sigma_mismatch.png")


def test_radius(figures, ledgers, tmp_path):
    draw(figures, "radius", ledgers, "-o", tmp_path)
    rows = table(tmp_path / "average_radius.tsv", "sigma", "method")
    assert rows["0.25", "intrs-consistency"]["radius"] == "0.50000"
    paired = table(tmp_path / "average_radius_paired.tsv", "method", "minus")
    assert set(paired) == {("intrs-consistency", "intrs")}
    difference = 0.5 - (2 * 16_256**0.5 + 5000**0.5) / 4 / 255
    assert float(paired["intrs-consistency", "intrs"]["difference"]) == pytest.approx(difference, abs=2e-5)
    assert is_picture(tmp_path / "average_radius.png")


def test_size(figures, tmp_path):
    (tmp_path / "float.pt2").write_bytes(bytes(1000))
    (tmp_path / "int8.pt2").write_bytes(bytes(600))
    draw(figures, "size", tmp_path / "float.pt2", tmp_path / "int8.pt2", "-o", tmp_path / "out")
    rows = table(tmp_path / "out" / "size.tsv", "file")
    assert rows[("int8.pt2",)] == {"file": "int8.pt2", "bytes": "600", "of_first": "0.60000"}
    assert is_picture(tmp_path / "out" / "size.png")


def test_errors_are_one_line(figures, write_ledger, tmp_path):
    folder = write_ledger("intrs_0.25.tsv", [GOOD])
    write_ledger("float_0.25.tsv", [GOOD, GOOD])
    for words, text in (
        (("accuracy", folder), "different images"),
        (("mismatch", folder), "no ledger named like intrs_0.25_at_0.5.tsv"),
        (("radius", tmp_path), "holds no ledgers"),
    ):
        result = CliRunner().invoke(figures.main, [*map(str, words), "-o", str(tmp_path / "out")])
        assert result.exit_code == 1
        assert text in result.stderr
        assert len(result.stderr.splitlines()) == 1
