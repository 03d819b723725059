"""Real text out of installed packages: source code, and docstrings as prose, LaTeX, XML, HTML.

Files are parsed, never imported, and found through the package's own list of files, so nothing
that was written into its folder later gets in. A docstring is rendered in exactly one format,
picked by the hash of its text: no two classes share their content.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from typing import NamedTuple

from mda.types import Document

FORMATS = ("prose", "latex", "xml", "html")
REAL_LABELS = ("code", *FORMATS)
# The legacy_* and use_* entries name the future defaults: without them docutils warns.
_SETTINGS = {
    "report_level": 5,
    "halt_level": 5,
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "_disable_config": True,
    "doctitle_xform": False,
    "smart_quotes": False,
    "syntax_highlight": "none",
    "math_output": "MathML",
    "xml_declaration": False,
    "doctype_declaration": False,
    "use_latex_citations": True,
    "legacy_column_widths": False,
    "legacy_class_functions": False,
}
_WRITERS = {"latex": ("latex", "body"), "xml": ("xml", "whole"), "html": ("html5", "body")}
_ROLE = re.compile(r":(?!math\b)[a-z:]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`")
_SECTION = re.compile(r"^(\S[^\n]*)\n([=\-~^])\2{2,}[ \t]*$", re.MULTILINE)
_GENERATED = frozenset({"version.py", "_version.py", "__config__.py"})


class SourceFile(NamedTuple):
    """A Python file of an installed package; `path` is relative to the folder of the package."""

    package: str
    path: str


def package_version(package: str) -> str:
    """Returns the installed version. Raises LookupError, naming the package, if there is none."""
    try:
        return distribution(package).version
    except PackageNotFoundError:
        raise LookupError(
            f"package {package!r} of the embedded corpus is not installed; install the versions "
            "pinned in pyproject.toml"
        ) from None


def source_files(package: str) -> list[SourceFile]:
    """Returns Python files that the package lists as its own, without those that a build writes.

    Sorted by path, so the file system's order does not matter. Raises LookupError if the package
    is not installed or lists no Python file under its own name.
    """
    package_version(package)
    paths = (entry.as_posix() for entry in distribution(package).files or ())
    sources = sorted(
        path
        for path in paths
        if path.startswith(f"{package}/")
        and path.endswith(".py")
        and path.rpartition("/")[2] not in _GENERATED
    )
    if not sources:
        raise LookupError(f"package {package!r} lists no Python files under {package}/")
    return [SourceFile(package, path) for path in sources]


def read_source(file: SourceFile) -> str:
    r"""Returns the file's text, decoded as UTF-8 and with newlines as \n on every platform."""
    path = distribution(file.package).locate_file(file.path)
    text = path.read_bytes().decode("utf-8")  # pyright: ignore[reportAttributeAccessIssue]
    return text.replace("\r\n", "\n").replace("\r", "\n")


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yields the docstrings of the module, its classes and functions, breadth first."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def format_of(text: str) -> str:
    """Returns the one of `FORMATS` in which a docstring appears, chosen by the hash of its text."""
    return FORMATS[sha256(text.encode()).digest()[0] % len(FORMATS)]


def render(text: str, kind: str) -> str:
    """Returns a reStructuredText docstring as `latex`, `xml` or `html` through docutils' writers.

    Sphinx roles become literals and short section underlines are lengthened first, because plain
    docutils knows neither. `prose` is the text unchanged. Raises ValueError on another kind.
    """
    from docutils.core import publish_parts

    if kind == "prose":
        return text
    if kind not in _WRITERS:
        raise ValueError(f"cannot render a docstring as {kind!r}; use one of {', '.join(FORMATS)}")
    text = _ROLE.sub(r"``\1``", text)
    text = _SECTION.sub(lambda m: f"{m[1]}\n{m[2] * max(len(m[1]), 4)}", text)
    writer, part = _WRITERS[kind]
    out = publish_parts(text, writer=writer, settings_overrides=_SETTINGS)[part]
    # The writer's first line names its version; text must not change with what it says.
    return out.partition("\n")[2] if kind == "xml" else out


def documents_of(file: SourceFile, min_chars: int = 400, max_chars: int = 40_000) -> list[Document]:
    """Returns the file itself as `code`, and each longer docstring in one of `FORMATS`.

    A document is cut at `max_chars`, so that long tables of data do not crowd out the rest. A
    docstring that docutils cannot render is left out; so is a file that is no UTF-8 Python.
    """
    try:
        text = read_source(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(text)
    except (UnicodeDecodeError, SyntaxError):
        return []
    out = [Document("code", text[:max_chars], file.package)] if len(text) >= min_chars else []
    for doc in docstrings(tree):
        if len(doc) < min_chars:
            continue
        kind = format_of(doc)
        try:
            rendered = render(doc, kind)
        except MemoryError:
            raise
        except Exception:  # docutils raises bare errors of many kinds on foreign markup
            continue
        out.append(Document(kind, rendered[:max_chars], file.package))
    return out
