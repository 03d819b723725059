"""Real text is found through the package's own list and each docstring has one format."""

import re
import warnings
import xml.etree.ElementTree as ET

import pytest

from mda.data import documents
from mda.data.documents import FORMATS, SourceFile, documents_of, render, source_files

DOCSTRING = """Sum of two things.

Details
=======

Adds :class:`~pkg.Thing` objects, *always*, as in :math:`x^2 + y`.

- first
- second < third

>>> add(1, 2)
3
"""


@pytest.fixture
def parse(monkeypatch):
    """Documents of one source text, as if it were a file of the package `pkg`."""

    def documents_in(text: str, **limits):
        monkeypatch.setattr(documents, "read_source", lambda file: text)
        return documents_of(SourceFile("pkg", "pkg/m.py"), **limits)

    return documents_in


def test_files_come_from_the_packages_own_list(tmp_path):
    files = source_files("jinja2")
    paths = [file.path for file in files]
    assert "jinja2/environment.py" in paths
    assert paths == sorted(paths)
    assert all(path.startswith("jinja2/") and path.endswith(".py") for path in paths)
    assert not any(path.endswith("/version.py") for path in paths)


@pytest.mark.parametrize("name", ["no-such-package", "pip_no"])
def test_a_missing_package_is_named(name):
    with pytest.raises(LookupError, match=name):
        source_files(name)


def test_newlines_are_the_same_on_every_platform(tmp_path, monkeypatch):
    class Distribution:
        def locate_file(self, path):
            return tmp_path / path

    monkeypatch.setattr(documents, "distribution", lambda name: Distribution())
    (tmp_path / "m.py").write_bytes("a = 'é'\r\nb = 2\rc = 3\n".encode())
    assert documents.read_source(SourceFile("pkg", "m.py")) == "a = 'é'\nb = 2\nc = 3\n"


def test_latex_xml_and_html_are_what_they_say():
    latex, html = render(DOCSTRING, "latex"), render(DOCSTRING, "html")
    assert r"\begin{itemize}" in latex and "$x^2 + y$" in latex
    assert "<li>" in html and "&lt; third" in html and "<math" in html
    tree = ET.fromstring(render(DOCSTRING, "xml"))
    assert tree.tag == "document"
    assert len(tree.findall(".//list_item")) == 2
    assert render(DOCSTRING, "prose") == DOCSTRING


def test_titles_stay_and_no_tool_is_named():
    for kind in ("latex", "xml", "html"):
        assert "Details" in render(DOCSTRING, kind)
        assert "ocutils 0" not in render(DOCSTRING, kind)
    assert not re.search("<!DOCTYPE|<[?]xml", render(DOCSTRING, "xml"))


@pytest.mark.parametrize("kind", ["latex", "xml", "html"])
def test_a_leading_title_stays_in_the_text(kind):
    assert "Details" in render("Details\n=======\n\nAdds things.\n", kind)


def test_sphinx_roles_become_literals():
    assert r"\texttt{pkg.Thing}" in render(DOCSTRING, "latex")
    assert "<literal>pkg.Thing</literal>" in render(DOCSTRING, "xml")


@pytest.mark.parametrize("kind", FORMATS)
def test_rendering_warns_of_nothing(kind, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(DOCSTRING, kind)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match=r"'rtf'.*prose, latex, xml, html"):
        render(DOCSTRING, "rtf")


def test_a_docstring_appears_in_one_format_only(parse):
    body = "\n".join(
        f'def f{i}():\n    """Function number {i} of many, {"word " * 30}"""\n' for i in range(40)
    )
    found = parse(body, min_chars=50)
    assert [d.label for d in found].count("code") == 1
    rendered = [d for d in found if d.label != "code"]
    assert len(rendered) == 40
    assert {d.label for d in rendered} == set(FORMATS)
    for i in range(40):
        holding = {d.label for d in rendered if f"number {i} of" in d.text}
        assert len(holding) == 1


def test_short_texts_are_left_out_and_long_ones_cut(parse):
    assert parse("x = 1\n") == []
    (document,) = parse("x = 1\n" * 100, max_chars=90)
    assert document.label == "code" and len(document.text) == 90
    assert document.source == "pkg"


def test_what_is_no_python_gives_nothing(parse):
    assert parse("def broken(:\n" * 100) == []


def test_markup_that_cannot_be_rendered_is_left_out(parse, monkeypatch):
    def fail(text, kind):
        raise AttributeError("docutils")

    monkeypatch.setattr(documents, "render", fail)
    found = parse("".join(f'def f{i}():\n    """{"a " * 300}{i}"""\n' for i in range(9)))
    assert {d.label for d in found} <= {"code", "prose"}
