# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration; `make docs` builds with every warning an error."""

import sys
from pathlib import Path

from storelib import _version

sys.path.insert(0, str(Path(__file__).parent))

project = "storelib"
author = "The storelib maintainers"
copyright = "The storelib maintainers"  # noqa: A001  (Sphinx's name for it)
release = version = _version.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "oslo_config.sphinxext", "generated"]
exclude_patterns = ["_build"]
default_role = "py:obj"
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}

html_theme = "furo"
html_title = "storelib"
html_show_sourcelink = False
