"""How the documentation is built: `python -m sphinx -W docs docs/_build`."""

import sea_peft

project = "sea_peft"
author = "The sea_peft authors"
version = release = sea_peft.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sea_peft {release}"
html_theme_options = {"source_repository": ""}
html_static_path: list[str] = []
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
copybutton_prompt_text = ">>> "
nitpicky = False
