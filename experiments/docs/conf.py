"""Settings of the documentation: `python -m sphinx -W -c experiments/docs . outputs/docs`."""

import re
from pathlib import Path
from typing import Any

project = "Mechanistic data attribution"
copyright = "The MDA authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

# The pages are those of the repository, where they are: links between them work in both places.
root_doc = "README"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md"),
    *("experiments/*.md", "experiments/docs/*.md", "sweeps/results/*.md", "sweeps/results/**/*.md"),
]
exclude_patterns = [".venv", "outputs", "tests", "mda"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = project
html_extra_path = ["index.html"]  # leads to the first page

CONTENTS = """
```{toctree}
:hidden:
:caption: Use

Manual <experiments/README>
experiments/published
experiments/machines
experiments/docs/library
experiments/docs/protocols
```

```{toctree}
:hidden:
:caption: Results
:glob:

sweeps/results/README
sweeps/results/plans
sweeps/results/*/README
```

```{toctree}
:hidden:
:caption: Project

CONTRIBUTING
CHANGELOG
LOG
```
"""
LINK = re.compile(r"\[([^]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")


def setup(app: Any) -> None:
    """Adds the contents to the first page, and takes links to folders out of all pages."""

    def read(_: Any, name: str, source: list[str]) -> None:
        here = (Path(app.srcdir) / name).parent
        source[0] = LINK.sub(lambda m: m[1] if (here / m[2]).is_dir() else m[0], source[0])
        source[0] += CONTENTS if name == root_doc else ""

    app.connect("source-read", read)
