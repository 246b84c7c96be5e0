"""Sphinx's settings: `make docs` builds the pages of this folder, with warnings as errors."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import docstrings  # noqa: E402  (of this folder)

import sparring  # noqa: E402

project = "sparring"
author = "The sparring maintainers"
copyright = "2026, the sparring maintainers; Apache-2.0"
version = release = sparring.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "figures"]
html_theme = "furo"
html_title = "sparring"
html_static_path = ["_static"]
pygments_dark_style = "github-dark"  # the theme's own underlines modules, as if they were links
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 4
myst_dmath_allow_labels = False
suppress_warnings = ["myst.header"]  # pages that are included begin below the first level

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Pages outside this folder that pages in it link to, as GitHub wants them linked; each has its place in the site.
OUTSIDE = {"BENCHMARKS.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_OUTSIDE = re.compile(
    r"\]\((?P<up>(?:\.\./)+)(?P<page>" + "|".join(map(re.escape, OUTSIDE)) + r")(?P<anchor>#[\w-]*)?\)"
)
_SOURCE = re.compile(r"\[(?P<text>[^\]]+)\]\((?:\.\./)+(?:tests|src|benchmarks)/[^)]*\)")


def _inside(app: Any, name: str, source: list[str]) -> None:
    """Links out of this folder, as they are right on GitHub, to the same page in the site; links to code become text."""
    up = "../" * name.count("/")
    text = _OUTSIDE.sub(lambda found: f"]({up}{OUTSIDE[found['page']]}{found['anchor'] or ''})", source[0])
    source[0] = _SOURCE.sub(lambda found: found["text"], text)


def setup(app: Any) -> None:
    app.connect("source-read", _inside)
    app.connect("include-read", lambda app, path, name, source: _relative(app, name, source))
    docstrings.setup(app)


def _relative(app: Any, name: str, source: list[str]) -> None:
    """Links of an included page, which lies one folder up: `docs/x.md` is `x.md` here."""
    source[0] = re.sub(r"(\]\(|src=\")docs/", r"\1", source[0])
    source[0] = re.sub(r"\]\((BENCHMARKS|CONTRIBUTING|CHANGELOG)\.md", lambda m: f"]({m[1].lower()}.md", source[0])
