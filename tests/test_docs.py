"""The documentation's Python code, page by page: it runs, and its asserts hold."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# A block within another one has fewer backticks.
BLOCK = re.compile(r"^(`{3,})python\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text("utf-8")
    names = {"__name__": "page"}
    for match in BLOCK.finditer(text):
        before = "\n" * (text[: match.start()].count("\n") + 1)  # for tracebacks
        exec(compile(before + match[2], page, "exec"), names)


@pytest.mark.once
def test_no_figure_is_left_to_be_filled_in():
    files = [
        *DOCS.rglob("*.md"),
        *(DOCS.parent / "recipes").glob("*.py"),
        DOCS.parent / "README.md",
    ]
    assert len(files) > 50
    marks = [path for path in files if "@@" in path.read_text(encoding="utf-8")]
    assert not marks


@pytest.mark.once
def test_every_page_is_in_a_table_of_contents():
    index = (DOCS / "index.md").read_text("utf-8")
    listed = re.findall(r"^(?!auto_steps)[\w/]+$", index, re.MULTILINE)
    assert sorted([*(f"{name}.md" for name in listed), "index.md"]) == PAGES
