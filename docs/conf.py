"""The documentation site: MyST pages, built by Sphinx with furo; `make docs`."""

import importlib.metadata

project = "jaxseg"
author = "The jaxseg authors"
copyright = "The jaxseg authors"
release = importlib.metadata.version("jaxseg")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "gen"]

html_theme = "furo"
html_title = "jaxseg"
html_theme_options = {"navigation_with_keys": True}

# Shapes are written as types; the pages show them as they stand in the source.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
nitpicky = False
