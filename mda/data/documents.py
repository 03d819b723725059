"""Real text out of installed packages: source code, and docstrings as prose, LaTeX, XML, HTML.

Files are parsed, never imported. A docstring is rendered in exactly one format, picked by the
hash of its text, so that no two classes share their content.
"""

import ast
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path

from mda.types import Document

FORMATS = ("prose", "latex", "xml", "html")
_SETTINGS = {
    "report_level": 5,
    "halt_level": 5,
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "_disable_config": True,
    "smart_quotes": False,
    "syntax_highlight": "none",
    "math_output": "MathML",
}
_ROLE = re.compile(r":(?!math\b)[a-z:]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`")
_SECTION = re.compile(r"^(\S[^\n]*)\n([=\-~^])\2{2,}[ \t]*$", re.MULTILINE)


def source_files(package: str) -> list[Path]:
    """Python files of an installed package, sorted, without those written at build time."""
    root = Path(str(distribution(package).locate_file(package)))
    skip = {"version.py", "_version.py", "__config__.py", "__config.py"}
    return sorted(path for path in root.rglob("*.py") if path.name not in skip)


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings of the module, its classes and functions, in source order."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def render(text: str, kind: str) -> str:
    """A reStructuredText docstring as `latex`, `xml` or `html` through docutils' writers."""
    from docutils.core import publish_parts

    text = _ROLE.sub(r"``\1``", text)
    text = _SECTION.sub(lambda m: f"{m[1]}\n{m[2] * max(len(m[1]), 4)}", text)
    writer = {"latex": "latex", "xml": "xml", "html": "html5"}[kind]
    parts = publish_parts(text, writer=writer, settings_overrides=_SETTINGS)
    return parts["whole"].partition("\n")[2] if kind == "xml" else parts["body"]


def documents_of(path: Path, package: str, min_chars: int = 400) -> list[Document]:
    """The file itself as `code`, and each longer docstring in one of `FORMATS`."""
    try:
        text = path.read_text("utf-8")
        tree = ast.parse(text)
    except (UnicodeDecodeError, SyntaxError):
        return []
    out = [Document("code", text, package)] if len(text) >= min_chars else []
    for doc in docstrings(tree):
        if len(doc) < min_chars:
            continue
        kind = FORMATS[sha256(doc.encode()).digest()[0] % len(FORMATS)]
        try:
            out.append(Document(kind, doc if kind == "prose" else render(doc, kind), package))
        except Exception as error:  # docutils raises bare errors of many kinds on foreign markup
            if isinstance(error, (MemoryError, KeyboardInterrupt)):
                raise
    return out
