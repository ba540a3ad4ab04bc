"""A matplotlib figure as inline SVG, with the page's colours, unique ids and text as text."""

import re
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from alignrun.evaluation.plots import as_svg
from alignrun.security.text import visible
from alignrun.security.working_directory import elsewhere

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER = "#010100", "#010101", "#010102", "#010103"
SERIES = tuple(f"#01011{index}" for index in range(6))
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--paper"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
"""Placeholder colours, and the variables of style.css that replace them in light and dark mode."""
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "text.parse_math": False,  # a run may be named $x_1$
    "font.size": 10,
    "axes.formatter.limits": (-3, 5),
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "errorbar.capsize": 2.5,
}


def inline(draw: "Callable[[Figure], None]", size: tuple[float, float], key: str, label: str) -> Markup:
    """The SVG of what `draw` draws on a figure of this size in inches; the key must be unique on the page.

    The label is the text alternative.
    """
    with elsewhere():  # a matplotlibrc of the current folder is not the user's
        import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has the fonts
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        root = ElementTree.fromstring(as_svg(figure))
    for element in list(root):
        # A style element would apply to the whole page.
        if element.tag.endswith(("metadata", "title")) or element.find("{*}style") is not None:
            root.remove(element)
    used = {reference for element in root.iter() for reference in _references(element)}
    for element in root.iter():
        _localise(element, key, used)
    # Without a size the figure takes the available width.
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": visible(label)}
    title = ElementTree.Element("title")
    title.text = visible(label)
    root.insert(0, title)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(element: ElementTree.Element) -> Iterator[str]:
    for name, value in element.attrib.items():
        if name.endswith("href"):
            yield value.removeprefix("#")
        yield from re.findall(r"url\(#([^)]+)\)", value)


def _localise(element: ElementTree.Element, key: str, used: set[str]) -> None:
    """Remove namespaces, which HTML does not use; make ids unique; replace colours by variables."""
    element.tag = element.tag.rpartition("}")[2]
    attributes = {}
    for name, value in element.attrib.items():
        name = name.rpartition("}")[2]
        if name == "id":
            if value not in used:
                continue
            value = f"{key}-{value}"
        elif name == "href":
            value = f"#{key}-{value.removeprefix('#')}"
        value = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", value)
        attributes[name] = re.sub(r"#0101\d\d", lambda found: f"var({VARIABLES[found[0]]})", value)
    element.attrib = attributes
