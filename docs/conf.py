"""Sphinx: builds the pages, which read well without it, into a site."""

from __future__ import annotations

import workerd

project = "workerd"
author = "the authors of workerd"
release = version = workerd.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "generators"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
# A block names the file that it is, which the lexers do not know.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = "workerd"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
