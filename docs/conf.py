"""Sphinx's configuration: the pages of this directory, and what is generated from the code while they are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from docs.generated import PIECES  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "hugepfn"
copyright = "the hugepfn developers, GPL-2.0-only"
html_title = "hugepfn"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
# before-and-after.md is a record of one round of work, and is read in the repository.
exclude_patterns = ["before-and-after.md"]
html_theme = "furo"
html_show_sphinx = False

myst_heading_anchors = 3
default_role = "code"  # a docstring's `hugepfn run` is code
highlight_language = "none"  # most blocks are a terminal
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100


def _fill(_app: Sphinx, _name: str, source: list[str]) -> None:
    """Replace each ``<!-- generated: NAME -->`` of a page."""
    for name, piece in PIECES.items():
        marker = f"<!-- generated: {name} -->"
        if marker in source[0]:
            source[0] = source[0].replace(marker, piece())


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
