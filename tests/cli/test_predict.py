"""``intcert predict``."""

from __future__ import annotations

import pytest

CLEAR = [f"{name}/{number}.png" for name in ("blue", "green", "red") for number in range(2)]


def test_predict_names_the_class_of_files(intcert, colour_artifact, colour_folder):
    result = intcert("predict", colour_artifact, "--images", *(colour_folder / name for name in CLEAR))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [f"{colour_folder / name}\t{name.partition('/')[0]}" for name in CLEAR]


def test_predict_takes_a_folder_and_abstains_on_grey(intcert, colour_artifact, colour_folder):
    result = intcert("predict", colour_artifact, colour_folder / "red", "--n", 300, "--seed", 3)
    assert [line.split("\t")[1] for line in result.stdout.splitlines()] == ["red", "red", "ABSTAIN"]
    assert result.exit_code == 0


def test_predict_compares_with_labels(intcert, colour_artifact, colour_folder):
    spec = f"folder:{colour_folder}"
    result = intcert("predict", colour_artifact, "--data", spec, "--n", 300, "--skip", 3, "--seed", 3)
    assert result.stdout.splitlines() == [
        f"{spec}[0]\tblue\tblue",
        f"{spec}[3]\tgreen\tgreen",
        f"{spec}[6]\tABSTAIN\tred",
    ]
    assert result.stderr == "2 correct, 0 wrong, 1 abstained\n"
    limited = intcert("predict", colour_artifact, "--data", spec, "--n", 300, "--max", 1)
    assert len(limited.stdout.splitlines()) == 1


def test_too_few_samples_abstain(intcert, colour_artifact, colour_folder):
    """Nine equal answers have probability 2 / 2^9 > alpha under a fair coin."""
    image = colour_folder / "red" / "0.png"
    assert intcert("predict", colour_artifact, image, "--n", 9).stdout == f"{image}\tABSTAIN\n"
    assert intcert("predict", colour_artifact, image, "--n", 12).stdout == f"{image}\tred\n"


@pytest.mark.parametrize("words", [(), ("--images", "{folder}", "--data", "demo")])
def test_images_come_from_one_place(refused, colour_artifact, colour_folder, words):
    words = [word.format(folder=colour_folder) for word in words]
    refused("predict", colour_artifact, *words, saying=("--images", "--data"))


def test_unusable_images_are_refused(refused, colour_artifact, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    refused("predict", colour_artifact, text, saying=(text,))
    refused("predict", colour_artifact, tmp_path / "missing.png", saying=("missing.png",))
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("predict", colour_artifact, empty, saying=(empty,))
    refused("predict", colour_artifact, empty, "--seed", "x", saying=("'x'",))
