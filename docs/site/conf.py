"""Settings of Sphinx for `make docs`; the pages are collected by stage.py."""

from pathlib import Path

import anyformer

project = "anyformer"
author = copyright = "The anyformer authors"
release = version = anyformer.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
highlight_language = "none"  # of blocks that name no language: outputs
default_role = "code"  # docstrings write `name` as Markdown does

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_custom_sections = [("Shapes", "params_style")]
HIDDEN = "\ue000"  # a colon, while napoleon reads
add_module_names = False
# Types in signatures are links where they are documented here. Nothing is fetched to resolve the others.
nitpick_ignore_regex = [("py:.*", r".*")]

html_theme = "furo"
html_title = "anyformer"
html_static_path = [str(Path(__file__).with_name("style.css"))]
html_css_files = ["style.css"]
html_extra_path = [str(Path(__file__).parents[2] / "build" / "docs-reports")]  # of reports.py
html_show_sourcelink = html_copy_source = html_show_sphinx = False
html_show_search_summary = False  # it would be fetched, which pages that are opened as files cannot
pygments_style, pygments_dark_style = "friendly", "one-dark"


def hide_colons(app, what, name, value, options, lines: list[str]) -> None:
    """Napoleon takes "a: b" in the first line about an attribute for its type. Here it is text."""
    if what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(":", HIDDEN)


def show_colons(app, what, name, value, options, lines: list[str]) -> None:
    lines[:] = [line.replace(HIDDEN, ":") for line in lines]


def leave_out_signature(app, what, name, value, options, signature: str | None, returns: str | None):
    """The contract of a recipe is a protocol, and nobody calls it."""
    return ("", returns) if signature == "(*args, **kwargs)" else None


def setup(app) -> None:
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)
    app.connect("autodoc-process-signature", leave_out_signature)
