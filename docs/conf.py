"""How the docs become a site: Sphinx, MyST and furo, from the markdown as it stands.

Pages are read where they lie, so that a link that works in the repository works here too. No page
needs the network: formulas are MathML, which browsers draw by themselves.

Not here: the pages that the code says (scripts/generate_docs.py), and their order (index.md).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]

project = "Counterpoint"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/**", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs"]
# a block of code may be abridged
suppress_warnings = ["misc.highlighting_failure"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "Counterpoint"
html_static_path = ["_site/site.css"]
html_css_files = ["site.css"]
html_extra_path = ["_site/index.html"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def drawn(formula: str, *, as_block: bool = False) -> str:
    """A formula as MathML."""
    # the macron that docutils takes lies within the letter, where no font for formulas is there
    bar, better = '<mo stretchy="false">\N{MODIFIER LETTER MACRON}</mo>', "<mo>\N{MACRON}</mo>"
    made = tex2mathml(formula, as_block=as_block)
    return made.replace(bar, better).replace('<mover accent="true">', "<mover>")


def draw_inline(writer: Any, node: Any) -> None:
    """A formula within a line."""
    writer.body.append(drawn(node.astext()))
    raise SkipNode


def draw_block(writer: Any, node: Any) -> None:
    """A formula on lines of its own."""
    writer.body.append(f'<div class="formula">{drawn(node.astext(), as_block=True)}</div>')
    raise SkipNode


def tell_language(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Chinese pages say so, and get Chinese forms of their characters."""
    context["language"] = "zh-CN" if page.endswith(".zh-CN") else "en"


def is_of_a_page(record: logging.LogRecord) -> bool:
    """Not that a page that index.md names has not been written yet; that warning has no name."""
    return "toctree glob pattern" not in str(record.msg)


def setup(app: Sphinx) -> None:
    """What the site does beyond Sphinx."""
    logging.getLogger("sphinx.sphinx.directives.other").addFilter(is_of_a_page)
    app.add_html_math_renderer("mathml", (draw_inline, None), (draw_block, None))
    app.connect("html-page-context", tell_language)
