"""What the documents promise exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from intcert.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_usage_page_has_every_option(name):
    usage = (ROOT / "docs" / "usage.md").read_text()
    section = re.search(rf"^## {name}\n(.*?)(?=^## )", usage, re.MULTILINE | re.DOTALL)
    assert section, f"docs/usage.md has no section {name}"
    options = {option for parameter in main.get_command(None, name).params for option in parameter.opts}
    synopsis = section[1].strip("\n").partition("\n\n")[0]
    promised = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", synopsis))
    expected = {option for option in options if option.startswith("-")}
    assert promised | {"--output"} == expected | {"--output"}


@pytest.mark.slow
def test_the_readme_s_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert re.search(r"class \d+, certified for every \|delta\|\^2 <= \d+", capsys.readouterr().out)
    assert (tmp_path / "model.pt2").exists()
