"""How Sphinx makes the documentation: `python -m tox -e docs`."""

import os
import re
import sys
import textwrap
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# Imported for its docstrings only, which are the same on each backend.
os.environ.setdefault("KERAS_BACKEND", "jax")

project = "kit"
author = "The kit authors"
copyright = author
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
default_role = "literal"
exclude_patterns = ["steps"]  # The gallery has pages of them.
sphinx_gallery_conf = {
    "examples_dirs": "steps",
    "gallery_dirs": "auto_steps",
    "filename_pattern": "plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
}
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["kit.css"]
html_math_renderer = "mathml"
html_title = "kit: algorithms in Keras 3, written once"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# Sections of docstrings in Keras' order that napoleon doesn't know.
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    "Input shape",
    "Output shape",
    "Reference",
]

# A fenced piece of code, or lines up to an empty one.
BLOCK = re.compile(r"^ *```\w*\n(?:.*\n)*? *```$|(?:^.*\S.*$\n?)+", re.MULTILINE)
FENCE = re.compile(r"( *)```(\w*)\n(.*)\n *```", re.DOTALL)


def to_rst(app, what, name, obj, options, lines):
    """Turns a docstring of the kit, whose markup is Markdown's, into Sphinx's."""
    lines[:] = converted("\n".join(lines)).split("\n")


def converted(text):
    """Returns a docstring in reStructuredText."""
    blocks, outer = [], ""  # outer: indentation of the prose before
    for block in BLOCK.findall(text):
        block = block.rstrip("\n")
        if match := FENCE.fullmatch(block):
            indent, language, code = match.groups()
            blocks.append(f"{indent}.. code-block:: {language or 'text'}")
            blocks.append(textwrap.indent(code, "    "))
        elif len(indentation(block)) > len(outer) and not block.lstrip().startswith(
            "- "
        ):
            blocks += [f"{outer}::", block]  # a formula or a command
        else:
            blocks.append(escaped(block))
            outer = indentation(block.split("\n")[-1])
    return "\n\n".join(blocks) + "\n"


def indentation(text):
    """Returns the spaces that a text begins with."""
    return text[: len(text) - len(text.lstrip())]


def escaped(prose):
    """Returns prose in which nothing but backticks is markup."""
    parts = re.split(r"(`[^`]+`)", prose)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"`{part}`" + r"\ " * parts[i + 1][:1].isalnum()  # `RBM`s
        else:
            parts[i] = re.sub(r"(?<=\S)\*|\*(?=\S)|\||(?<=\w)_(?!\w)", r"\\\g<0>", part)
    return "".join(parts)


def write_inline_math(writer, node):
    """Writes a formula as MathML, which browsers typeset without a script."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_math_block(writer, node):
    """Writes a formula on lines of its own."""
    # The converter knows `aligned`, which is right here, under another name only.
    text = node.astext().replace("{aligned}", "{align*}")
    formula = convert(text, display="block")
    if "<mi>&</mi>" in formula:
        raise ValueError(f"An environment that latex2mathml doesn't know: {text}")
    writer.body.append(f'<div class="math" style="overflow-x: auto">{formula}</div>')
    raise nodes.SkipNode


class LearningCurves(SphinxDirective):
    """Draws the curves that `python -m kit report --curves docs/curves` has stored.

    Each line has the name of a file, without `.csv`, and a title.
    """

    has_content = True

    def run(self):
        """Called by Sphinx."""
        from kit.tools.report import NAMES, draw, read_curves

        pictures = []
        for line in self.content:
            key, title = line.split(maxsplit=1)
            path = ROOT / "docs" / "curves" / f"{key}.csv"
            self.env.note_dependency(str(path))
            svg = draw(read_curves(path), NAMES, key)
            pictures.append(f"<figure>{svg}<figcaption>{title}</figcaption></figure>")
        page = f'<div class="learning-curves">{"".join(pictures)}</div>'
        return [nodes.raw("", page, format="html")]


def setup(app):
    """Called by Sphinx."""
    app.add_directive("learning-curves", LearningCurves)
    app.add_html_math_renderer(
        "mathml", (write_inline_math, None), (write_math_block, None)
    )
    app.connect("autodoc-process-docstring", to_rst, priority=400)
