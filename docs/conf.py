# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of Sphinx: ``make docs`` makes a site of these pages, with warnings as errors.

The pages are plain Markdown, to be read where they lie. The links of ``index.md`` are the table of contents, so that no
page needs a directive; a page that is not linked there is an error.
"""

import re

from sphinx.application import Sphinx

project = "sparsecv"
author = "The sparsecv developers"
copyright = "The sparsecv developers, GPL-3.0-or-later"
extensions = ["myst_parser"]
myst_heading_anchors = 4
smartquotes = False  # "--option" is no dash
html_theme = "alabaster"
html_theme_options = {"fixed_sidebar": True, "page_width": "1160px", "show_powered_by": False}
html_copy_source = False
html_use_index = False


def _contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the pages that the first one links to, in their order, as its table of contents."""
    if name == "index":
        pages = dict.fromkeys(re.findall(r"\]\((\w+)\.md\)", source[0]))
        source[0] += "\n".join(["\n```{toctree}", ":hidden:", *pages, "```\n"])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _contents)
