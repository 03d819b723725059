"""The API reference, built from the docstrings by the command that CONTRIBUTING.md gives."""

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import mda

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """The ids of a page and the links in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if name := found.get("id"):
            self.ids.add(name)
        if tag == "a" and (link := found.get("href")):
            self.links.append(link)


def dead_links(folder: Path) -> list[str]:
    """Links from page to page, or within one, that lead nowhere."""
    folder = folder.resolve()
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):  # https:, mailto:
                continue
            place, _, anchor = unquote(link).partition("#")
            there = (path.parent / place).resolve() if place else path
            target = pages.get(there)
            if not there.is_file() or (anchor and (target is None or anchor not in target.ids)):
                dead.append(f"{path.relative_to(folder)}: {link}")
    return dead


@pytest.mark.slow
def test_every_link_of_the_reference_leads_somewhere(tmp_path):
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    found = re.search(r"^\S*python -m pdoc (.+?) -o \S+", page, re.MULTILINE)
    assert found is not None
    command = [sys.executable, "-m", "pdoc", *shlex.split(found[1]), "-o", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mda" / "unit" / "capture.html").exists()
    assert dead_links(tmp_path) == []


@pytest.mark.slow
def test_the_documentation_is_built_without_a_warning_and_every_link_leads_somewhere(tmp_path):
    pytest.importorskip("sphinx", reason="see experiments/docs/requirements.txt")
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    found = re.search(r"^\S*python -m sphinx (.+?) outputs/docs$", page, re.MULTILINE)
    assert found is not None and "-W" in found[1]
    command = [sys.executable, "-m", "sphinx", *shlex.split(found[1]), tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    library = Page(tmp_path / "experiments" / "docs" / "library.html")
    assert {f"mda.{name}" for name in mda._LIBRARY} <= library.ids
    assert dead_links(tmp_path) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#x"></a><a href="c.html"></a><p id="y">')
    (tmp_path / "b.html").write_text('<a href="#x"></a><a href="a.html#y"></a>')
    assert sorted(dead_links(tmp_path)) == ["a.html: b.html#x", "a.html: c.html", "b.html: #x"]
