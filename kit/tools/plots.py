"""Learning curves as SVG inside a page, in the page's own colours."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Placeholder colours, which are replaced by the page's: they differ in light and dark
# mode.
INK, FAINT = "#010203", "#040506"
COLORS = {"tensorflow": "#070809", "jax": "#0a0b0c", "torch": "#0d0e0f"}
STYLES: dict[str, Any] = {
    "tensorflow": (0, (5, 1.5)),
    "jax": "-",
    "torch": (0, (1.5, 1)),
}

Curve = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]


def learning_curves(
    series: Mapping[str, Sequence[Curve]],
    x_label: str,
    y_label: str,
    names: Mapping[str, str],
    key: str,
) -> str:
    """Plots each run as a thin line, and each backend's mean over seeds as a thick one.

    Args:
        series: For each backend the curves of its runs, x ascending.
        x_label: Label of x.
        y_label: Label of y.
        names: Names of the backends.
        key: A name that is unique among the page's plots.

    Returns:
        An SVG element whose colours are the CSS variables `--ink`, `--faint`,
        `--tensorflow`, `--jax` and `--torch`.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # Text stays text, in the page's font.
        "svg.hashsalt": key,  # The same picture has the same ids, another one others.
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": INK,
        "ytick.color": INK,
        "path.simplify_threshold": 1.0,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for backend, curves in series.items():
            color = COLORS[backend]
            if len(curves) > 1:
                for x, y in curves:
                    axes.plot(x, y, color=color, linewidth=0.8, alpha=0.5)
            x, y = mean_curve(curves)
            axes.plot(
                x,
                y,
                color=color,
                linestyle=STYLES[backend],
                linewidth=2,
                marker="o" if len(x) == 1 else "",  # A line needs two points.
                label=names[backend],
            )
        axes.set_xlabel({"timesteps": "environment steps"}.get(x_label, x_label))
        axes.set_ylabel(y_label.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.5)
        axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        axes.xaxis.set_major_formatter("{x:,g}")
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return for_page(file.getvalue())


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Returns the mean of curves, over the range that all of them cover."""
    if len(curves) == 1:
        return curves[0]
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = np.unique(np.concatenate([x for x, _ in curves]))
    places = places[(places >= low) & (places <= high)]
    return places, np.mean([np.interp(places, x, y) for x, y in curves], axis=0)


def for_page(svg: str) -> str:
    """Returns the SVG element without size and namespaces, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # Other pictures have the same ids.
    head, rest = svg.split(">", 1)
    head = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    variables = {INK: "--ink", FAINT: "--faint"}
    variables |= {color: f"--{backend}" for backend, color in COLORS.items()}
    for color, variable in variables.items():
        rest = rest.replace(color, f"var({variable})")
    # Matplotlib names a list of fonts for each text, which would win over the page's.
    rest = re.sub(r"(font: [\d.]+px )[^;\"]*", r"\1var(--font)", rest)
    return f'{head} role="img">{rest}'
