"""How the documentation is built: `python -m sphinx -W docs docs/_build`."""

import html
import re
import subprocess
import sys
from pathlib import Path

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
html_show_copyright = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
copybutton_prompt_text = ">>> "
nitpicky = False


def setup(_app: object) -> None:
    """Write `command-line.md` from the commands' own help, before pages are read."""
    done = subprocess.run(
        [sys.executable, "-m", "typer", "sea_peft.cli", "utils", "docs", "--name", "seapeft"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    plain = html.unescape(re.sub(r"</?span[^>]*>", "", done.stdout)).replace(
        "# `seapeft`", "# Command line", 1
    )
    page = Path(__file__).with_name("command-line.md")
    if not page.is_file() or page.read_text(encoding="utf-8") != plain:
        page.write_text(plain, encoding="utf-8")
