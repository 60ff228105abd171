"""Configuration of Sphinx, which builds the documentation as a site: `make docs`."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("_ext")))

project = "cni"
release = version = version_of("cni")
html_title = f"cni {version}"
html_theme = "furo"
html_copy_source = False
html_show_copyright = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "reference"]
exclude_patterns = ["_ext"]
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

# Docstrings put code between single backticks, too. Types are shown in the signature only.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
nitpicky = True
# References to the standard library stay unresolved, because a build must not fetch anything from the network.
# Public signatures name a few internal types.
nitpick_ignore_regex = [(r"py:.*", r"(?!cni\b).*"), (r"py:class", r"cni\.(_core|netfilter)\..*")]
suppress_warnings = ["ref.python"]  # "Route" in a signature may be a result's or the kernel's
