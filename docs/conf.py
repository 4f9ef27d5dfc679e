"""How Sphinx makes the documentation: `python -m tox -e docs`."""

import os
import re
import sys
from pathlib import Path

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
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"] if os.environ.get("KIT_DOCS_DRAFT") else []
html_theme = "furo"
html_title = "kit: algorithms in Keras 3, written once"
html_static_path = ["_static"]
copybutton_exclude = ".linenos, .gp, .go"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# Sections of docstrings in Keras' order that napoleon doesn't know.
SECTIONS = ("Call arguments", "Input shape", "Output shape", "Reference")
napoleon_custom_sections = [
    (name, "params_style") if name == "Call arguments" else name for name in SECTIONS
]

HEADINGS = (
    *SECTIONS,
    *("Args", "Arguments", "Attributes", "Returns", "Yields", "Raises", "Example"),
)


def to_rst(app, what, name, obj, options, lines):
    """Turns a docstring of the kit, whose markup is Markdown's, into Sphinx's."""
    lines[:] = converted(lines)


def converted(lines):
    """Returns lines in reStructuredText: code, formulas, and characters it reads."""
    result, fence, formula, before = [], None, None, ""
    lines = escaped_outside_of_code(lines)
    for line in lines:
        indent = len(line) - len(line.lstrip())
        stripped = line.strip()
        if fence is not None:
            if stripped == "```":
                fence = None
                result.append("")
            else:
                result.append("    " + line)
            continue
        if match := re.match(r"```(\w*)$", stripped):
            fence = match[1] or "text"
            result += ["", " " * indent + f".. code-block:: {fence}", ""]
            continue
        if formula is not None and stripped and indent < formula:
            formula = None
        # An indented block after an empty line is a formula or a command.
        begins = (
            formula is None
            and stripped
            and result
            and not result[-1].strip()
            and indent > len(before) - len(before.lstrip())
            and before.strip().rstrip(":") not in HEADINGS
            and not stripped.startswith(("- ", "1."))
        )
        if begins:
            formula = indent
            result += [" " * (len(before) - len(before.lstrip())) + "::", ""]
        result.append(line.replace("\0", "") if formula is None else plain(line))
        if stripped and formula is None:
            before = line
    return result


def escaped_outside_of_code(lines):
    """Marks what reStructuredText would read as markup, by a zero and a backslash."""
    parts = re.split(r"(```.*?```|`[^`]+`)", "\n".join(lines), flags=re.DOTALL)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            part = re.sub(r"(?<=\S)\*|\*(?=\S)|\||(?<=\w)_(?!\w)", "\0\\\\\\g<0>", part)
            parts[i] = part
        elif not part.startswith("```"):
            ends = "\0\\ " if parts[i + 1][:1].isalnum() else ""  # as in `RBM`s
            parts[i] = f"`{part}`{ends}"
    return "".join(parts).split("\n")


def plain(line):
    """Returns a line of a literal block as it was."""
    return line.replace("\0\\ ", "").replace("\0\\", "").replace("``", "`")


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", to_rst, priority=400)
